// total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight, over the last axis.
//
// A row of the total is read back from cache. Must move: two arrays in, two out; moves just that.
#include "norm.h"

namespace m2ml {

template <class T, class W> void forward(const Call& call, float eps, const W* weight) {
  const int64_t n = call.in(0).size(-1);
  const T *x = call.in(0).data<T>(), *residual = call.in(1).data<T>();
  T *y = call.out(0).data<T>(), *total = call.out(1).data<T>();
  const int64_t bytes = 4 * call.in(0).count() * sizeof(T);
  const bool past = y != x && total != residual && streams(y, n, bytes) && streams(total, n, bytes);
  each_rows(call, call.in(0).rows(-1), n, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(past ? n : 0);
    for (int64_t row = begin; row < end; ++row) {
      const T *a = x + row * n, *b = residual + row * n;
      T *to = y + row * n, *sums = total + row * n, *kept = past ? scratch.data() : sums;
      const float squares = sum_of<T>(n, [=](int64_t i, auto whole, int64_t count) {
        store_at(kept + i, load_at(a + i, whole, count) + load_at(b + i, whole, count), whole, count);
        const auto value = load_at(kept + i, whole, count);  // as the next layer sees it, rounded
        return value * value;
      });
      const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
      each_two<T>(n, [=](int64_t i, auto whole, int64_t count) {
        const auto sum = load_at(kept + i, whole, count);
        auto value = sum * scale;
        if (weight) value *= load_at(weight + i, whole, count);
        if (past) store_at(sums + i, sum, whole, count, past);
        store_at(to + i, value, whole, count, past);
      });
    }
  });
}

}  // namespace m2ml

// in: x[*b n], residual[*b n], weight[n] (may be absent); out: y[*b n], total[*b n]; static: eps.
M2ML_KERNEL(add_rms_norm) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (call.arguments() == 2) return forward<T, float>(call, call.number("eps"), nullptr);
    with_type(call.in(2).type(), [&](auto* w) {
      using W = std::remove_pointer_t<decltype(w)>;
      forward<T, W>(call, call.number("eps"), call.in(2).data<W>());
    });
  });
}
