// Errors of functions, injected up to what the Metal specification allows: its table of single precision for
// metal::precise, that of fast math for metal::fast.
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
#else
inline float off_by_ulps(float x, float) { return x; }
inline float off_by(float x, float) { return x; }
#endif

// exp, exp2 and exp10 may lose floor(|2x|) units more.
inline float exponent_noise(float y, float x) { return off_by_ulps(y, 3.0f + __builtin_floorf(__builtin_fabsf(2.0f * x))); }
// sin and cos: 2^-13 absolutely, within [-pi, pi].
inline float circle_noise(float y) { return off_by(y, 0x1p-13f); }
// Logarithms: 2^-21 absolutely where the argument lies in [0.5, 2], otherwise 3 units.
inline float logarithm_noise(float y, float x) {
  return x >= 0.5f && x <= 2.0f ? off_by(y, 0x1p-21f) : off_by_ulps(y, 3.0f);
}

}  // namespace m2
