// Two vectors at once, on AVX2: their steps alternate, so that neither waits for its own results.
//
// A step takes four cycles and division ten, and a processor looks ahead no farther than a few dozen steps: one function
// after the other leaves it idle half of the time. The vectors of AVX-512 and NEON are twice as many bytes to a step or
// two steps each, and go one by one.
#pragma once

#include <type_traits>

#include "vector.h"

namespace m2ml {

#if defined(M2ML_AVX2)
constexpr bool kTwoAtOnce = true;
#else
constexpr bool kTwoAtOnce = false;
#endif

struct Two {
  Floats low, high;
  Two() = default;
  Two(Floats l, Floats h) : low(l), high(h) {}
  Two(Floats x) : low(x), high(x) {}
  Two(float x) : Two(splat(x)) {}
};
struct TwoInts { Ints low, high; };

#define M2ML_INLINE [[gnu::always_inline]] inline
M2ML_INLINE Two operator+(Two a, Two b) { return {a.low + b.low, a.high + b.high}; }
M2ML_INLINE Two operator-(Two a, Two b) { return {a.low - b.low, a.high - b.high}; }
M2ML_INLINE Two operator*(Two a, Two b) { return {a.low * b.low, a.high * b.high}; }
M2ML_INLINE Two operator/(Two a, Two b) { return {a.low / b.low, a.high / b.high}; }
M2ML_INLINE Two operator-(Two a) { return {-a.low, -a.high}; }
M2ML_INLINE Two& operator+=(Two& a, Two b) { return a = a + b; }
M2ML_INLINE Two& operator*=(Two& a, Two b) { return a = a * b; }
M2ML_INLINE TwoInts operator<(Two a, Two b) { return {a.low < b.low, a.high < b.high}; }
M2ML_INLINE TwoInts operator<=(Two a, Two b) { return {a.low <= b.low, a.high <= b.high}; }
M2ML_INLINE TwoInts operator>=(Two a, Two b) { return {a.low >= b.low, a.high >= b.high}; }

// Of 2 kLanes elements the first and the last, or, where a kernel's arrays are of bfloat16, the even and the odd ones:
// those are found by a shift and a mask, and put back so, where neighbours would be spread and packed.
template <class T> struct Both : std::integral_constant<bool, true> {};
template <class T> constexpr bool kEvenAndOdd = std::is_same_v<T, bfloat16>;

// As `whole` is, for arrays that a kernel keeps for itself, in the order in which it works.
template <bool kWhole> std::integral_constant<bool, kWhole> in_order(std::integral_constant<bool, kWhole> whole) { return whole; }
template <class T> Both<float> in_order(Both<T>) { return {}; }

// As each_vector, for bodies that take two vectors as well: `whole` is Both<T> then, and load_at gives Two.
template <class T, class Body> M2ML_INLINE void each_two(int64_t n, const Body& body) {
  if constexpr (kTwoAtOnce) {
    int64_t begin = 0;
    for (; begin + 2 * kLanes <= n; begin += 2 * kLanes) body(begin, Both<T>{}, int64_t{2 * kLanes});
    each_vector(n - begin, [=](int64_t i, auto whole, int64_t count) { body(begin + i, whole, count); });
  } else {
    each_vector(n, body);
  }
}

#if defined(M2ML_AVX2)
M2ML_INLINE Two even_and_odd(Two x) {
  const __m256 a = _mm256_permute2f128_ps((__m256)x.low, (__m256)x.high, 0x20), b = _mm256_permute2f128_ps((__m256)x.low, (__m256)x.high, 0x31);
  return {(Floats)_mm256_shuffle_ps(a, b, 0x88), (Floats)_mm256_shuffle_ps(a, b, 0xdd)};
}
M2ML_INLINE Two first_and_last(Two x) {
  const __m256 a = _mm256_unpacklo_ps((__m256)x.low, (__m256)x.high), b = _mm256_unpackhi_ps((__m256)x.low, (__m256)x.high);
  return {(Floats)_mm256_permute2f128_ps(a, b, 0x20), (Floats)_mm256_permute2f128_ps(a, b, 0x31)};
}

template <class S, class T> M2ML_INLINE Two load_at(const S* p, Both<T>, int64_t) {
  if constexpr (kEvenAndOdd<S> && kEvenAndOdd<T>) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {(Floats)_mm256_slli_epi32(both, 16), (Floats)_mm256_and_si256(both, _mm256_set1_epi32(-0x10000))};
  } else {
    const Two x{load(p), load(p + kLanes)};
    return kEvenAndOdd<T> ? even_and_odd(x) : x;
  }
}
template <class S, class T> M2ML_INLINE void store_at(S* p, Two x, Both<T>, int64_t, bool = false) {
  if constexpr (kEvenAndOdd<S> && kEvenAndOdd<T>) {
    const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(rounded_above((__m256)x.low), 16), rounded_above((__m256)x.high), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), both);
  } else {
    if constexpr (kEvenAndOdd<T>) x = first_and_last(x);
    store(p, x.low), store(p + kLanes, x.high);
  }
}
#endif

}  // namespace m2ml
