// total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight, over the last axis.
//
// Must move: two arrays in, two out; moves just that: a row of the total is read back from cache.
#include "norm.h"

namespace m2ml {

template <class T, class W> void forward(const Call& call, float eps, const W* weight) {
  const int64_t n = call.in(0).size(-1);
  const T *x = call.in(0).data<T>(), *residual = call.in(1).data<T>();
  T *y = call.out(0).data<T>(), *total = call.out(1).data<T>();
  each_rows(call, call.in(0).rows(-1), n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * n;
      const float squares = sum_of(n, [&](int64_t i, auto whole, int64_t count) {
        store_at(total + at + i, load_at(x + at + i, whole, count) + load_at(residual + at + i, whole, count), whole, count);
        const Floats value = load_at(total + at + i, whole, count);  // as the next layer sees it, rounded
        return value * value;
      });
      const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
      each_vector(n, [&](int64_t i, auto whole, int64_t count) {
        Floats value = load_at(total + at + i, whole, count) * scale;
        if (weight) value *= load_at(weight + i, whole, count);
        store_at(y + at + i, value, whole, count);
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
