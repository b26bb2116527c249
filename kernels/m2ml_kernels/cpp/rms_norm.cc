// y = x / sqrt(mean(x^2) + eps) * weight, over the last axis.
//
// A row is read twice: the second time from cache. Must move: x once, y once; moves just that for rows that fit L1.
#include "vector.h"

namespace m2ml {

template <class T> float mean_of_squares(const T* x, int64_t n) {
  Floats a = splat(0), b = splat(0), c = splat(0), d = splat(0);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const Floats p = load(x + i), q = load(x + i + kLanes), r = load(x + i + 2 * kLanes), s = load(x + i + 3 * kLanes);
    a += p * p, b += q * q, c += r * r, d += s * s;
  }
  each_vector(n - i, [&](int64_t j, auto whole, int64_t count) {
    const Floats p = load_at(x + i + j, whole, count);
    a += p * p;
  });
  return sum((a + b) + (c + d)) / static_cast<float>(n);
}

template <class T, class W> void rows(const Call& call, float eps, const W* weight) {
  const Array input = call.in(0);
  const int64_t n = input.size(-1);
  const T* x = input.data<T>();
  T* y = call.out(0).data<T>();
  call.parallel(n ? input.rows(-1) : 0, 1 + (int64_t{1} << 14) / std::max<int64_t>(n, 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * n;
      T* to = y + row * n;
      const float scale = 1.0f / std::sqrt(mean_of_squares(from, n) + eps);
      each_vector(n, [&](int64_t i, auto whole, int64_t count) {
        Floats value = load_at(from + i, whole, count) * scale;
        if (weight) value *= load_at(weight + i, whole, count);
        store_at(to + i, value, whole, count);
      });
    }
  });
}

}  // namespace m2ml

// in: x[*b n], weight[n] (may be absent); out: y[*b n]; static: eps.
M2ML_KERNEL(rms_norm) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (call.arguments() == 1) return rows<T, float>(call, call.number("eps"), nullptr);
    with_type(call.in(1).type(), [&](auto* w) {
      using W = std::remove_pointer_t<decltype(w)>;
      rows<T, W>(call, call.number("eps"), call.in(1).data<W>());
    });
  });
}
