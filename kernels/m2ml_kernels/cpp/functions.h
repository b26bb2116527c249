// exp, tanh and their kin on vectors of floats, by the polynomials of Cephes (S. Moshier) but for `normal`: within 3 units
// in the last place.
#pragma once

#include <limits>

#include "two.h"

namespace m2ml {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Floats where(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }
M2ML_INLINE Two where(TwoInts condition, Two yes, Two no) { return {where(condition.low, yes.low, no.low), where(condition.high, yes.high, no.high)}; }
// Where one is not a number, b is given.
inline Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
inline Floats minimum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

M2ML_INLINE Two square_root(Two x) { return {square_root(x.low), square_root(x.high)}; }
M2ML_INLINE Two maximum(Two a, Two b) { return {maximum(a.low, b.low), maximum(a.high, b.high)}; }
M2ML_INLINE Two minimum(Two a, Two b) { return {minimum(a.low, b.low), minimum(a.high, b.high)}; }

inline float largest(Floats x) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter part[kLanes / 4];
  std::memcpy(part, &x, sizeof x);
  for (int i = 1; i < kLanes / 4; ++i) part[0] = part[i] > part[0] ? part[i] : part[0];
  return std::max(std::max(part[0][0], part[0][2]), std::max(part[0][1], part[0][3]));
}

// (1 + value) * 2^power of whole powers from -254 on, which come with kRounding added: in two halves, for 2^128 is no float.
constexpr float kRounding = 12582912.0f + 254.0f;  // 1.5 * 2^23: adding it rounds; and twice the bias of exponents
inline Floats scaled(Floats value, Floats power) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)(value + 1.0f), (__m512)(power - kRounding));
#else
  const Words both = (Words)power, half = both >> 1;
  const Floats low = (Floats)(half << 23);
  return (value * low + low) * (Floats)((both - half) << 23);
#endif
}
M2ML_INLINE Two scaled(Two value, Two power) { return {scaled(value.low, power.low), scaled(value.high, power.high)}; }

// Below, V is Floats or Two.

// exp(kSign x); 0 below -104 and infinity above 88.7. NaN stays NaN.
template <int kSign, class V> M2ML_INLINE V exp_signed(V x) {
  constexpr float sign = kSign;
  const V bounded = kSign > 0 ? minimum(V(splat(88.8f)), maximum(V(splat(-110)), x)) : minimum(V(splat(110)), maximum(V(splat(-88.8f)), x));
  const V power = bounded * (sign * 1.44269504088896341f) + kRounding, whole = power - kRounding;
  const V r = (bounded - whole * (sign * 0.693359375f)) + whole * (sign * 2.12194440e-4f);
  V p = splat(1.384360716e-3f);
  p = p * r + sign * 8.374195546e-3f;
  p = p * r + 4.166800529e-2f;
  p = p * r + sign * 1.666643023e-1f;
  p = p * r + 4.999999404e-1f;
  p = p * r + sign;
  return scaled(p * r, power);
}
template <class V> M2ML_INLINE V exp(V x) { return exp_signed<1>(x); }

// exp(x) of what is not above 0 but by its rounding, as the logarithms of weights are: 0 below -87.7. NaN stays NaN.
// Each step is taken for all vectors in turn, so that they need not wait for their own results.
template <int kCount> inline void exp_falling(Floats (&x)[kCount]) {
  const Floats magic = splat(12583039.0f);  // 1.5 * 2^23 + 127: adding it rounds, and leaves the exponent's bits of 2^whole
  const auto each = [](auto step) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) step(i);
  };
  Floats power[kCount], p[kCount];
  each([&](int i) { x[i] = maximum(splat(-88), x[i]); });
  each([&](int i) { power[i] = x[i] * 1.44269504088896341f + magic; });
  each([&](int i) { x[i] = x[i] - (power[i] - magic) * 0.69314718f; });
  each([&](int i) { p[i] = x[i] * 8.312501013e-3f + 4.189033061e-2f; });
  for (const float next : {1.666711569e-1f, 4.999923110e-1f, 1.0f, 1.0f}) each([&](int i) { p[i] = p[i] * x[i] + next; });
  each([&](int i) { x[i] = p[i] * (Floats)((Words)power[i] << 23); });
}

inline Floats exp_falling(Floats x) {
  Floats one[] = {x};
  return exp_falling(one), one[0];
}
M2ML_INLINE Two exp_falling(Two x) {
  Floats both[] = {x.low, x.high};
  return exp_falling(both), Two{both[0], both[1]};
}

template <class V> M2ML_INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp_signed<-1>(x)); }

inline Floats tanh(Floats x) {
  const Floats size = maximum(x, -x), square = x * x;
  Floats p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Floats small = p * square * x + x;
  const Floats large = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  return where(size < splat(0.625f), small, where(x < splat(0), -large, where(x != x, x, large)));
}

// Below x: the normal distribution P(x) and its density, within 3 units in the last place and, in the left tail, the
// x^2 / 2 units that rounding the square moves both.
//
// P(-x) = exp(-x^2 / 2) Q((z - 2) / (z + 2)) / (z + 2) for z = x / sqrt(2) >= 0, where Q is a polynomial fitted to
// (z + 2) exp(z^2) erfc(z) / 2 up to z = 10, whose error is 7e-8.
template <class V> struct Normal { V below, density; };
template <class V> M2ML_INLINE Normal<V> normal(V x) {
  const V share = 1.0f / (maximum(x, -x) * 0.70710678f + 2.0f), at = 1.0f - 4.0f * share, e = exp(x * x * -0.5f);
  V p = splat(-2.307380346e-4f);
  for (const float next : {-3.773367498e-4f, 1.489527291e-3f, 3.218646627e-3f, -1.074178889e-2f, -1.821759343e-2f, 1.397348195e-1f,
                           -3.435804844e-1f, 5.107913613e-1f})
    p = p * at + next;
  const V tail = e * share * p;
  return {where(x < splat(0), tail, 1.0f - tail), e * 0.39894228f};
}

// Sine and cosine; the angle is reduced in float64, so that large ones lose nothing but their own rounding.
inline void sincos(Floats angle, Floats& sine, Floats& cosine) {
  typedef double Doubles __attribute__((vector_size(8 * kLanes)));
  const Doubles wide = __builtin_convertvector(angle, Doubles), magic = Doubles{} + 6755399441055744.0;  // 1.5 * 2^52
  const Doubles quarters = (wide * 0.63661977236758134308 + magic) - magic;
  const Floats r = __builtin_convertvector(wide - quarters * 1.57079632679489661923, Floats), z = r * r;
  const Ints quarter = __builtin_convertvector(quarters - 4.0 * __builtin_convertvector(__builtin_convertvector(quarters * 0.25, Ints), Doubles), Ints) & 3;
  Floats s = splat(-1.9515295891e-4f) * z + 8.3321608736e-3f;
  s = (s * z - 1.6666654611e-1f) * z * r + r;
  Floats c = splat(2.443315711809948e-5f) * z - 1.388731625493765e-3f;
  c = (c * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const Ints odd = (quarter & 1) != 0;
  sine = where((quarter & 2) != 0, -where(odd, c, s), where(odd, c, s));
  cosine = where(((quarter + 1) & 2) != 0, -where(odd, s, c), where(odd, s, c));
}

}  // namespace m2ml
