// exp, tanh and their kin on vectors of floats, by the polynomials of Cephes (S. Moshier): within 2 units in the last place.
#pragma once

#include <limits>

#include "vector.h"

namespace m2ml {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Floats where(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }
// Where one is not a number, b is given.
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

inline float largest(Floats x) {
  float best = x[0];
  for (int i = 1; i < kLanes; ++i) best = std::max(best, x[i]);
  return best;
}

// value * 2^power of whole powers; 2^128 is no float, so that elsewhere the power is applied in two halves.
inline Floats scaled(Floats value, Floats power) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)value, (__m512)power);
#else
  const Ints whole = __builtin_convertvector(power, Ints), half = whole >> 1;
  const Ints low = (half + 127) << 23, high = (whole - half + 127) << 23;
  Floats a, b;
  std::memcpy(&a, &low, sizeof a);
  std::memcpy(&b, &high, sizeof b);
  return value * a * b;
#endif
}

// exp(x); 0 below -87.3, where the result would be subnormal, and infinity above 88.7. NaN stays NaN.
inline Floats exp(Floats x) {
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats lowest = splat(-87.3f), clamped = minimum(splat(88.8f), maximum(lowest, x));
  const Floats whole = (clamped * 1.44269504088896341f + magic) - magic;
  Floats r = clamped - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return where(x < lowest, splat(0), scaled(p * (r * r) + r + 1.0f, whole));
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

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

// 1 - erf(x), which keeps its digits where erf is near 1.
inline Floats erfc(Floats x) {
  const Floats size = maximum(x, -x), square = x * x, inverse = 1.0f / maximum(size, splat(0.5f)), z = inverse * inverse;
  const auto polynomial = [](Floats at, auto... coefficients) {
    Floats p = splat(0);
    ((p = p * at + coefficients), ...);
    return p;
  };
  const Floats inside = 1.0f - x * polynomial(square, 7.853861353153693e-5f, -8.010193625184903e-4f, 5.188327685732524e-3f,
                                              -2.685381193529856e-2f, 1.128358514861418e-1f, -3.761262582423300e-1f, 1.128379165726710f);
  const Floats near = polynomial(z, 2.326819970068386e-2f, -1.387039388740657e-1f, 3.687424674597105e-1f, -5.824733027278666e-1f,
                                 6.210004621745983e-1f, -4.944515323274145e-1f, 3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f);
  const Floats far = polynomial(z, -1.047766399936249e+1f, 1.297719955372516e+1f, -7.495518717768503f, 2.921019019210786f,
                                -1.015265279202700f, 4.218463358204948e-1f, -2.820767439740514e-1f, 5.641895067754075e-1f);
  const Floats tail = exp(-square) * inverse * where(size < splat(2), near, far);
  return where(size < splat(1), inside, where(x < splat(0), 2.0f - tail, where(x != x, x, tail)));
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
