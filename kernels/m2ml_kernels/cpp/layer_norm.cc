// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axis.
//
// A row is read twice, the second time from cache; where its mean is so far from zero that digits of the mean of its
// squares cancel, once more. Must move: x once, y once (backward: x and dy once, dx once); moves just that for rows
// that fit the cache.
#include "norm.h"

namespace m2ml {

struct Moments { float mean, inverse; };

// x - mean, and 0 behind the end of a row.
template <class T, class Whole> auto apart_from(float mean, const T* x, int64_t i, Whole whole, int64_t count) {
  if constexpr (Whole::value) return load_at(x + i, whole, count) - mean;
  else return load_part(x + i, count, mean) - mean;
}

// Whether the variance is what is left of the mean of the squares without losing more than a digit.
inline bool near_zero(float mean, float squares) { return mean * mean < 0.75f * squares; }

template <class T> Moments moments(const T* x, int64_t n, float eps) {
  const float size = static_cast<float>(n);
  const auto [all, all_squares] = sums_of<T, 2>(n, [=](int64_t i, auto whole, int64_t count) {
    const auto value = load_at(x + i, whole, count);
    return Terms{value, value * value};
  }).of;
  const float mean = all / size;
  float variance = all_squares / size - mean * mean;
  if (!near_zero(mean, all_squares / size))
    variance = sum_of<T>(n, [=](int64_t i, auto whole, int64_t count) {
      const auto apart = apart_from(mean, x, i, whole, count);
      return apart * apart;
    }) / size;
  return {mean, 1.0f / std::sqrt(variance + eps)};
}

template <class T, class W> void forward(const Call& call, float eps, const W* weight, const W* bias) {
  const int64_t n = call.in(0).size(-1);
  const T* x = call.in(0).data<T>();
  T* y = call.out(0).data<T>();
  const bool past = streams(y, n, 2 * call.in(0).count() * sizeof(T));
  each_rows(call, call.in(0).rows(-1), n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * n;
      T* to = y + row * n;
      const Moments m = moments(from, n, eps);
      each_two<T>(n, [=](int64_t i, auto whole, int64_t count) {
        fetch(from + n + i);
        auto value = (load_at(from + i, whole, count) - m.mean) * m.inverse;
        if (weight) value *= load_at(weight + i, whole, count);
        if (bias) value += load_at(bias + i, whole, count);
        store_at(to + i, value, whole, count, past);
      });
    }
  });
}

// What the gradient of a row needs: level = r mean(d) and along = r mean(d z).
struct Row { float mean, inverse, level, along; };

// x lies `apart` before the row that comes next.
template <class T, class W> Row about(const T* x, const T* dy, const W* weight, int64_t n, float eps, int64_t apart) {
  const auto slope = [=](int64_t i, auto whole, int64_t count) {
    const auto d = load_at(dy + i, whole, count);
    return weight ? d * load_at(weight + i, whole, count) : d;
  };
  const float size = static_cast<float>(n);
  const auto [all, all_squares, slopes, products] = sums_of<T, 4>(n, [=](int64_t i, auto whole, int64_t count) {
    fetch(x + apart + i);
    const auto value = load_at(x + i, whole, count), d = slope(i, whole, count);
    return Terms{value, value * value, d, d * value};
  }).of;
  const float mean = all / size;
  float variance = all_squares / size - mean * mean, along = products - mean * slopes;
  if (!near_zero(mean, all_squares / size)) {
    const auto [apart_squares, apart_products] = sums_of<T, 2>(n, [=](int64_t i, auto whole, int64_t count) {
      const auto apart = apart_from(mean, x, i, whole, count);
      return Terms{apart * apart, slope(i, whole, count) * apart};
    }).of;
    variance = apart_squares / size, along = apart_products;
  }
  const float inverse = 1.0f / std::sqrt(variance + eps);
  return {mean, inverse, slopes / size * inverse, along / size * inverse * inverse};
}

// kRows rows of dx = r (d - mean(d) - z mean(d z)), dweight += dy z and dbias += dy, with z = (x - mean) r and d = w dy.
template <int kRows, class T, class W> void add_gradients(const T* x, const T* dy, const W* weight, T* dx, float* total, int64_t n, float eps, bool past) {
  Row rows[kRows];
  for (int k = 0; k < kRows; ++k) rows[k] = about(x + k * n, dy + k * n, weight, n, eps, kRows * n);
  each_two<T>(n, [=](int64_t i, auto whole, int64_t count) {
    using V = decltype(load_at(x, whole, count));
    const auto own = in_order(whole);
    const V w = weight ? load_at(weight + i, whole, count) : V(splat(1));
    V sums = weight ? load_at(total + i, own, count) : V(splat(0)), plain = weight ? load_at(total + n + i, own, count) : V(splat(0));
    for (int k = 0; k < kRows; ++k) {
      const Row& r = rows[k];
      const T *from = x + k * n + i, *given = dy + k * n + i;
      fetch(given + kRows * n);
      const V z = (load_at(from, whole, count) - r.mean) * r.inverse, d = load_at(given, whole, count);
      store_at(dx + k * n + i, d * r.inverse * w - r.level - z * r.along, whole, count, past);
      sums += d * z, plain += d;
    }
    if (weight) store_at(total + i, sums, own, count), store_at(total + n + i, plain, own, count);
  });
}

template <class T, class W> void backward(const Call& call, float eps, const W* weight) {
  const int64_t last = call.arguments() - 1, n = call.in(0).size(-1), rows = n ? call.in(0).rows(-1) : 0;
  const T *x = call.in(0).data<T>(), *dy = call.in(last).data<T>();
  T* dx = call.out(0).data<T>();
  const bool past = streams(dx, n, 3 * call.in(0).count() * sizeof(T));
  RowSums sums(call, rows, n, weight ? 2 : 0);
  sums.run(call, rows, [&](int64_t begin, int64_t end, float* total) {
    const auto add = [=](auto rows, int64_t row) {
      add_gradients<decltype(rows)::value>(x + row * n, dy + row * n, weight, dx + row * n, total, n, eps, past);
    };
    each_few_rows<T>(begin, end, add);
  });
  if (weight) sums.write<T>(0, call.out(1).data<W>());
  if (weight && call.integer("bias")) sums.write<T>(1, call.out(2).data<W>());
}

}  // namespace m2ml

// in: x[*b n], weight[n] and bias[n] (both or weight alone or none); out: y[*b n]; static: eps.
M2ML_KERNEL(layer_norm) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (call.arguments() == 1) return forward<T, float>(call, call.number("eps"), nullptr, nullptr);
    with_type(call.in(1).type(), [&](auto* w) {
      using W = std::remove_pointer_t<decltype(w)>;
      forward<T, W>(call, call.number("eps"), call.in(1).data<W>(), call.arguments() == 3 ? call.in(2).data<W>() : nullptr);
    });
  });
}

// in: x, weight (may be absent), dy; out: dx, dweight and, where `bias` is 1, dbias; static: eps, bias.
M2ML_KERNEL(layer_norm_backward) {
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
