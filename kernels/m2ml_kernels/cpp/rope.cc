// Pairs (a, b) of dimensions become (a cos - b sin, b cos + a sin), by the angle position * frequency.
//
// Sines are worked out once per token and serve all its heads. Must move: x once, y once; moves just that.
#include <vector>

#include "functions.h"

namespace m2ml {

// Cosines and sines of one token, times the magnitude. Of neighbours each stands twice, the first sine with a minus.
struct Angles { const float *cosine, *sine; int64_t count; };

// kVectors vectors of pairs from pair i on, of all heads of a token: their sines stay in registers.
template <int kVectors, class T, class Whole>
void rotate_heads(const T* x, T* y, const Angles& angles, int64_t heads, int64_t dim, int64_t i, Whole whole, int64_t n, bool past) {
  decltype(load_at(x, whole, n)) c[kVectors], s[kVectors];
  for (int k = 0; k < kVectors; ++k) c[k] = load_at(angles.cosine + i + k * n, whole, n), s[k] = load_at(angles.sine + i + k * n, whole, n);
  for (int64_t h = 0; h < heads; ++h, x += dim, y += dim)
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = i + k * n;
      const auto a = load_at(x + at, whole, n), b = load_at(x + angles.count + at, whole, n);
      store_at(y + at, a * c[k] - b * s[k], whole, n, past);
      store_at(y + angles.count + at, b * c[k] + a * s[k], whole, n, past);
    }
}

// A whole line of the cache at a time, if there are so many pairs.
template <class T> void rotate_halves(const T* x, T* y, const Angles& angles, int64_t heads, int64_t dim, bool past) {
  const std::conditional_t<kTwoAtOnce, Both<T>, std::integral_constant<bool, true>> whole;
  constexpr int64_t kStep = kTwoAtOnce ? 2 * kLanes : kLanes;
  int64_t i = 0;
  for (; i + 2 * kStep <= angles.count; i += 2 * kStep) rotate_heads<2>(x, y, angles, heads, dim, i, whole, kStep, past);
  each_two<T>(angles.count - i, [&, i](int64_t j, auto whole, int64_t n) { rotate_heads<1>(x, y, angles, heads, dim, i + j, whole, n, past); });
}

inline Floats neighbours_exchanged(Floats x) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#endif
}

template <class T> Floats neighbours_exchanged(const T*, Floats x) { return neighbours_exchanged(x); }
template <class T> M2ML_INLINE Two neighbours_exchanged(const T*, Two x) {
  return kEvenAndOdd<T> ? Two{x.high, x.low} : Two{neighbours_exchanged(x.low), neighbours_exchanged(x.high)};
}

template <class T> void rotate_neighbours(const T* x, T* y, const Angles& angles, bool past) {
  each_two<T>(2 * angles.count, [=](int64_t i, auto whole, int64_t n) {
    const auto a = load_at(x + i, whole, n), c = load_at(angles.cosine + i, whole, n), s = load_at(angles.sine + i, whole, n);
    store_at(y + i, a * c + neighbours_exchanged(x, a) * s, whole, n, past);
  });
}

template <class T> void rope(const Call& call, const float* positions, const float* frequencies, bool interleaved, float magnitude) {
  const Array input = call.in(0);
  const int64_t dim = input.size(-1), heads = input.size(-2), count = call.in(2).count(), row = heads * dim;
  const T* x = input.data<T>();
  T* y = call.out(0).data<T>();
  const bool past = 2 * count == dim && streams(y, interleaved ? dim : count, 2 * input.count() * sizeof(T));
  call.parallel(input.rows(-2), 1 + (int64_t{1} << 13) / std::max<int64_t>(row, 1), [&](int64_t begin, int64_t end) {
    std::vector<float> table(6 * count);
    float *cosines = table.data(), *sines = cosines + count, *pairs = sines + count;
    for (int64_t token = begin; token < end; ++token) {
      each_vector(count, [&](int64_t i, auto whole, int64_t n) {
        Floats sine, cosine;
        sincos(load_at(frequencies + i, whole, n) * positions[token], sine, cosine);
        store_at(cosines + i, cosine * magnitude, whole, n);
        store_at(sines + i, sine * magnitude, whole, n);
      });
      for (int64_t i = 0; interleaved && i < count; ++i) {
        pairs[2 * i] = pairs[2 * i + 1] = cosines[i];
        pairs[2 * (count + i)] = -sines[i], pairs[2 * (count + i) + 1] = sines[i];
      }
      const T* from = x + token * row;
      T* to = y + token * row;
      if (!interleaved) rotate_halves(from, to, Angles{cosines, sines, count}, heads, dim, past);
      for (int64_t h = 0; h < heads; ++h, from += dim, to += dim) {
        if (interleaved) rotate_neighbours(from, to, Angles{pairs, pairs + 2 * count, count}, past);
        if (dim > 2 * count) std::memcpy(to + 2 * count, from + 2 * count, (dim - 2 * count) * sizeof(T));
      }
    }
  });
}

}  // namespace m2ml

// in: x[*b heads dim], positions[*b] and frequencies[f] in float32; out: y; static: interleaved, magnitude.
M2ML_KERNEL(rope) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rope<T>(call, call.in(1).data<float>(), call.in(2).data<float>(), call.integer("interleaved") != 0, call.number("magnitude"));
  });
}
