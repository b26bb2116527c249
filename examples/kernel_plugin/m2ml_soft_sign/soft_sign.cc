// y = x / (1 + |x|), element by element. Must move: x once, y once; moves just that.
#include "functions.h"

M2ML_KERNEL(soft_sign) {
  using namespace m2ml;
  const float* x = call.in(0).data<float>();
  float* y = call.out(0).data<float>();
  call.parallel(call.in(0).count(), 1 << 14, [&](int64_t begin, int64_t end) {
    each_vector(end - begin, [&](int64_t i, auto whole, int64_t n) {
      const Floats value = load_at(x + begin + i, whole, n);
      store_at(y + begin + i, value / (1.0f + maximum(value, -value)), whole, n);
    });
  });
}
