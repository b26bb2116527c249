// y = the sum of x on all threads: what memory bandwidth this machine gives a kernel that only reads.
#include "norm.h"

M2ML_KERNEL(reading) {
  using namespace m2ml;
  const float* x = call.in(0).data<float>();
  std::atomic<float> total{0};
  call.parallel(call.in(0).count() / 1024, 16, [&](int64_t begin, int64_t end) {
    const float part = sum_of<float>((end - begin) * 1024, [=](int64_t i, auto whole, int64_t n) { return load_at(x + begin * 1024 + i, whole, n); });
    for (float now = total; !total.compare_exchange_weak(now, now + part);) {}
  });
  *call.out(0).data<float>() = total;
}
