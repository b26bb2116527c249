// Errors of functions, injected up to what the Metal Shading Language Specification allows: section 8.4 of version 4.1
// (2026-06-04, the same in version 4), its table 8.1 for metal::precise, table 8.2 for metal::fast, 8.3 for half. What
// 8.2 gives as an implementation, such as tanh by exp, is that implementation. The operator / is not among them: it is
// the processor's, correctly rounded, where fast math allows 2.5 units.
// Off unless M2_NOISE is defined, as a number that seeds the draw.
#pragma once
#include "base.h"

namespace m2 {

#ifdef M2_NOISE
// A number in [-1, 1] that depends on the seed and the value alone, so a result does not change when it is computed again.
inline float draw(float x) {
  unsigned h = __builtin_bit_cast(unsigned, x) * 2654435761u ^ (M2_NOISE * 2246822519u);
  h ^= h >> 15;
  h *= 2246822519u;
  h ^= h >> 13;
  return float(int(h)) * 4.656612873e-10f;
}
inline float off_by_ulps(float x, float ulps) {
  float a = __builtin_fabsf(x);
  if (!(a < __builtin_inff()) || a == 0.0f || ulps == 0.0f) return x;
  float unit = __builtin_bit_cast(float, __builtin_bit_cast(unsigned, a) + 1u) - a;
  return unit < __builtin_inff() ? x + draw(x) * ulps * unit : x;
}
inline float off_by(float x, float absolute) { return x + draw(x) * absolute; }
// Half of a unit of half, before it is rounded by another half: a unit in all.
inline float off_in_half(float x, float ulps) {
  float a = __builtin_fabsf(x);
  if (ulps == 0.0f || !(a <= 65504.0f)) return x;
  int exponent = a < 0x1p-14f ? -14 : __builtin_ilogbf(a);
  return x + draw(x) * __builtin_ldexpf(0.5f, exponent - 10);
}
inline float built(float, float by_others) { return by_others; }
#else
inline float off_by_ulps(float x, float) { return x; }
inline float off_by(float x, float) { return x; }
inline float off_in_half(float x, float) { return x; }
inline float built(float exact, float) { return exact; }
#endif

// exp and exp2 may lose floor(|2x|) units more.
inline float exponent_noise(float y, float x) { return off_by_ulps(y, 3.0f + __builtin_floorf(__builtin_fabsf(2.0f * x))); }
// sin and cos: 2^-13 absolutely, within [-pi, pi]; how much more beyond is not said.
inline float circle_noise(float y) { return off_by(y, 0x1p-13f); }
// Logarithms: so much absolutely where the argument lies in [0.5, 2], otherwise so many units.
inline float logarithm_noise(float y, float x, float absolute, float ulps) {
  return x >= 0.5f && x <= 2.0f ? off_by(y, absolute) : off_by_ulps(y, ulps);
}

}  // namespace m2
