// y = x / sqrt(mean(x^2) + eps) * weight, over the last axis.
//
// A row is read twice, the second time from cache. Must move: x once, y once; moves just that for rows that fit it.
#include "norm.h"

namespace m2ml {

template <class T> float inverse_root(const T* x, int64_t n, float eps) {
  const float squares = sum_of<T>(n, [=](int64_t i, auto whole, int64_t count) {
    const auto value = load_at(x + i, whole, count);
    return value * value;
  });
  return 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
}

template <class T, class W> void forward(const Call& call, float eps, const W* weight) {
  const int64_t n = call.in(0).size(-1);
  const T* x = call.in(0).data<T>();
  T* y = call.out(0).data<T>();
  const bool past = streams(y, n, 2 * call.in(0).count() * sizeof(T));
  each_rows(call, call.in(0).rows(-1), n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * n;
      T* to = y + row * n;
      const float scale = inverse_root(from, n, eps);
      each_two<T>(n, [=](int64_t i, auto whole, int64_t count) {
        fetch(from + n + i);
        auto value = load_at(from + i, whole, count) * scale;
        if (weight) value *= load_at(weight + i, whole, count);
        store_at(to + i, value, whole, count, past);
      });
    }
  });
}

// kRows rows of dx = r (w dy - x r^2 mean(w dy x)), and dweight += dy x r, with r = 1 / sqrt(mean(x^2) + eps).
template <int kRows, class T, class W> void add_gradients(const T* x, const T* dy, const W* weight, T* dx, float* total, int64_t n, float eps, bool past) {
  struct Row { float r, shrink; } rows[kRows];
  for (int k = 0; k < kRows; ++k) {
    const T *from = x + k * n, *given = dy + k * n;
    const auto [squares, along] = sums_of<T, 2>(n, [=](int64_t i, auto whole, int64_t count) {
      fetch(from + kRows * n + i);
      const auto value = load_at(from + i, whole, count), d = load_at(given + i, whole, count);
      return Terms{value * value, (weight ? d * load_at(weight + i, whole, count) : d) * value};
    }).of;
    const float size = static_cast<float>(n), r = 1.0f / std::sqrt(squares / size + eps);
    rows[k] = {r, along / size * r * r * r};
  }
  each_two<T>(n, [=](int64_t i, auto whole, int64_t count) {
    using V = decltype(load_at(x, whole, count));
    const V w = weight ? load_at(weight + i, whole, count) : V(splat(1));
    V sums = weight ? load_at(total + i, in_order(whole), count) : V(splat(0));
    for (int k = 0; k < kRows; ++k) {
      const T *from = x + k * n + i, *given = dy + k * n + i;
      fetch(given + kRows * n);
      const V value = load_at(from, whole, count), d = load_at(given, whole, count) * rows[k].r;
      store_at(dx + k * n + i, d * w - value * rows[k].shrink, whole, count, past);
      sums += d * value;
    }
    if (weight) store_at(total + i, sums, in_order(whole), count);
  });
}

template <class T, class W> void backward(const Call& call, float eps, const W* weight) {
  const int64_t last = call.arguments() - 1, n = call.in(0).size(-1), rows = n ? call.in(0).rows(-1) : 0;
  const T *x = call.in(0).data<T>(), *dy = call.in(last).data<T>();
  T* dx = call.out(0).data<T>();
  const bool past = streams(dx, n, 3 * call.in(0).count() * sizeof(T));
  RowSums sums(call, rows, n, weight ? 1 : 0);
  sums.run(call, rows, [&](int64_t begin, int64_t end, float* total) {
    const auto add = [=](auto rows, int64_t row) {
      add_gradients<decltype(rows)::value>(x + row * n, dy + row * n, weight, dx + row * n, total, n, eps, past);
    };
    each_few_rows<T>(begin, end, add);
  });
  if (weight) sums.write<T>(0, call.out(1).data<W>());
}

}  // namespace m2ml

// in: x[*b n], weight[n] (may be absent); out: y[*b n]; static: eps.
M2ML_KERNEL(rms_norm) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (call.arguments() == 1) return forward<T, float>(call, call.number("eps"), nullptr);
    with_type(call.in(1).type(), [&](auto* w) {
      using W = std::remove_pointer_t<decltype(w)>;
      forward<T, W>(call, call.number("eps"), call.in(1).data<W>());
    });
  });
}

// in: x, weight (may be absent), dy; out: dx, dweight (where there is a weight); static: eps.
M2ML_KERNEL(rms_norm_backward) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (call.arguments() == 2) return backward<T, float>(call, call.number("eps"), nullptr);
    with_type(call.in(1).type(), [&](auto* w) {
      using W = std::remove_pointer_t<decltype(w)>;
      backward<T, W>(call, call.number("eps"), call.in(1).data<W>());
    });
  });
}
