// Functions of floating numbers: metal::precise, metal::fast, and metal, which is one of the two.
// Half and bfloat are computed in float and rounded once.
#pragma once
#include "noise.h"
#include "vector.h"

namespace m2 {
inline float sine_of_pi(float x) {
  double r = double(x) - 2.0 * __builtin_rint(double(x) / 2.0);
  return float(__builtin_sin(r * 3.14159265358979323846));
}
inline float cosine_of_pi(float x) {
  double r = double(x) - 2.0 * __builtin_rint(double(x) / 2.0);
  return float(__builtin_cos(r * 3.14159265358979323846));
}
}  // namespace m2

// One function of one argument, in one namespace, for every floating type and for vectors of it; `narrow` is its value
// before it is rounded to half.
#define M2_FOR_TYPES_1(name, value, narrow)                   \
  inline float name(float x) { return value; }                \
  inline half name(half h) {                                  \
    float x = float(h);                                       \
    return half(narrow);                                      \
  }                                                           \
  inline bfloat name(bfloat x) { return bfloat(name(float(x))); } \
  template <class T, int N>                                   \
  inline vec<T, N> name(vec<T, N> x) {                        \
    for (int i = 0; i < N; ++i) x.data[i] = name(x.data[i]);  \
    return x;                                                 \
  }
#define M2_FOR_TYPES_2(name, value, narrow)                                            \
  inline float name(float x, float y) { return value; }                                \
  inline half name(half g, half h) {                                                   \
    float x = float(g), y = float(h);                                                  \
    return half(narrow);                                                               \
  }                                                                                    \
  inline bfloat name(bfloat x, bfloat y) { return bfloat(name(float(x), float(y))); }  \
  M2_FOR_VECTORS_2(name)
#define M2_FOR_VECTORS_2(name)                                              \
  template <class T, int N>                                                 \
  inline vec<T, N> name(vec<T, N> x, vec<T, N> y) {                         \
    for (int i = 0; i < N; ++i) x.data[i] = name(x.data[i], y.data[i]);     \
    return x;                                                               \
  }                                                                         \
  template <class T, int N>                                                 \
  inline vec<T, N> name(vec<T, N> x, detail::same_t<T> y) {                 \
    return name(x, vec<T, N>(y));                                           \
  }                                                                         \
  template <class T, int N>                                                 \
  inline vec<T, N> name(detail::same_t<T> x, vec<T, N> y) {                 \
    return name(vec<T, N>(x), y);                                           \
  }
#define M2_FOR_TYPES_3(name, value, narrow)                                                                \
  inline float name(float x, float y, float z) { return value; }                                           \
  inline half name(half x, half y, half z) { return half(name(float(x), float(y), float(z))); }            \
  inline bfloat name(bfloat x, bfloat y, bfloat z) { return bfloat(name(float(x), float(y), float(z))); }  \
  M2_FOR_VECTORS_3(name)
#define M2_FOR_VECTORS_3(name)                                                       \
  template <class T, int N>                                                          \
  inline vec<T, N> name(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                     \
    for (int i = 0; i < N; ++i) x.data[i] = name(x.data[i], y.data[i], z.data[i]);   \
    return x;                                                                        \
  }                                                                                  \
  template <class T, int N>                                                          \
  inline vec<T, N> name(vec<T, N> x, vec<T, N> y, detail::same_t<T> z) {             \
    return name(x, y, vec<T, N>(z));                                                 \
  }                                                                                  \
  template <class T, int N>                                                          \
  inline vec<T, N> name(vec<T, N> x, detail::same_t<T> y, detail::same_t<T> z) {     \
    return name(x, vec<T, N>(y), vec<T, N>(z));                                      \
  }

#ifdef M2_SAFE_MATH
#define M2_CHOSEN precise
#else
#define M2_CHOSEN fast
#endif
// The function in metal::precise, off by up to `ulps`, in metal::fast with its allowed error, and in metal. For half
// there is one table, in which a function that is not correctly rounded is off by at most a unit.
#define M2_MATH(arity, name, value, ulps, allowed)                                               \
  namespace precise {                                                                            \
  M2_FOR_TYPES_##arity(name, m2::off_by_ulps(value, ulps), m2::off_in_half(value, ulps))         \
  }                                                                                              \
  namespace fast {                                                                               \
  M2_FOR_TYPES_##arity(name, allowed, m2::off_in_half(value, ulps))                              \
  }                                                                                              \
  using M2_CHOSEN::name;

namespace metal {

#define M2_ULPS(name, call, precise_ulps, fast_ulps) M2_MATH(1, name, __builtin_##call, precise_ulps, m2::off_by_ulps(__builtin_##call, fast_ulps))
#define M2_EXACT(name, call) M2_ULPS(name, call, 0.0f, 0.0f)
M2_EXACT(ceil, ceilf(x))
M2_EXACT(floor, floorf(x))
M2_EXACT(trunc, truncf(x))
M2_EXACT(round, roundf(x))
M2_EXACT(rint, rintf(x))
M2_EXACT(fabs, fabsf(x))
M2_MATH(1, rsqrt, float(1.0 / __builtin_sqrt(double(x))), 0.0f, m2::off_by_ulps(float(1.0 / __builtin_sqrt(double(x))), 2.0f))
M2_MATH(1, exp, __builtin_expf(x), 4.0f, m2::exponent_noise(__builtin_expf(x), x))
M2_MATH(1, exp2, __builtin_exp2f(x), 4.0f, m2::exponent_noise(__builtin_exp2f(x), x))
M2_MATH(1, log, __builtin_logf(x), 4.0f, m2::logarithm_noise(__builtin_logf(x), x, 0x1p-21f, 3.0f))
M2_MATH(1, log2, __builtin_log2f(x), 4.0f, m2::logarithm_noise(__builtin_log2f(x), x, 0x1p-22f, 2.0f))
M2_MATH(1, sin, __builtin_sinf(x), 4.0f, m2::circle_noise(__builtin_sinf(x)))
M2_MATH(1, cos, __builtin_cosf(x), 4.0f, m2::circle_noise(__builtin_cosf(x)))
M2_MATH(1, sinpi, m2::sine_of_pi(x), 4.0f, m2::circle_noise(m2::sine_of_pi(x)))
M2_MATH(1, cospi, m2::cosine_of_pi(x), 4.0f, m2::circle_noise(m2::cosine_of_pi(x)))
M2_ULPS(acos, acosf(x), 4.0f, 5.0f)
M2_ULPS(asin, asinf(x), 4.0f, 5.0f)
M2_ULPS(atan, atanf(x), 5.0f, 5.0f)
// Those that fast math builds of others.
#define M2_BUILT(arity, name, value, ulps, by_others) M2_MATH(arity, name, value, ulps, m2::built(value, by_others))
M2_BUILT(1, sqrt, __builtin_sqrtf(x), 0.0f, x == 0.0f || x == __builtin_inff() ? x : x * fast::rsqrt(x))
M2_BUILT(1, exp10, float(__builtin_pow(10.0, double(x))), 4.0f, fast::exp2(x * 3.32192809488736234787f))
M2_BUILT(1, log10, __builtin_log10f(x), 4.0f, fast::log2(x) * 0.301029995663981195214f)
M2_BUILT(1, acosh, __builtin_acoshf(x), 4.0f, fast::log(x + fast::sqrt(x * x - 1.0f)))
M2_BUILT(1, asinh, __builtin_asinhf(x), 4.0f, fast::log(x + fast::sqrt(x * x + 1.0f)))
M2_BUILT(1, atanh, __builtin_atanhf(x), 5.0f, 0.5f * fast::log((1.0f + x) / (1.0f - x)))
M2_BUILT(1, cosh, __builtin_coshf(x), 4.0f, 0.5f * (fast::exp(x) + fast::exp(-x)))
M2_BUILT(1, sinh, __builtin_sinhf(x), 4.0f, 0.5f * (fast::exp(x) - fast::exp(-x)))
M2_BUILT(1, tanh, __builtin_tanhf(x), 5.0f, (fast::exp(2.0f * x) - 1.0f) / (fast::exp(2.0f * x) + 1.0f))
M2_BUILT(1, tan, __builtin_tanf(x), 6.0f, fast::sin(x) * (1.0f / fast::cos(x)))
M2_BUILT(1, tanpi, m2::sine_of_pi(x) / m2::cosine_of_pi(x), 6.0f, fast::tan(x * 3.14159265358979323846f))
M2_BUILT(2, pow, __builtin_powf(x, y), 16.0f, fast::exp2(y * fast::log2(x)))
M2_BUILT(2, powr, __builtin_powf(x, y), 16.0f, fast::exp2(y * fast::log2(x)))
M2_BUILT(2, atan2, __builtin_atan2f(x, y), 6.0f, fast::atan(x / y) + (y > 0.0f ? 0.0f : x < 0.0f ? -3.14159265358979323846f : 3.14159265358979323846f))
#undef M2_BUILT
#undef M2_EXACT
#undef M2_ULPS
M2_MATH(1, fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f), 0.0f, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
M2_MATH(1, saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f), 0.0f, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
M2_MATH(1, sign, float((x > 0.0f) - (x < 0.0f)), 0.0f, float((x > 0.0f) - (x < 0.0f)))
M2_MATH(2, fmod, __builtin_fmodf(x, y), 0.0f, __builtin_fmodf(x, y))
M2_MATH(2, divide, x / y, 0.0f, m2::off_by_ulps(x / y, 2.5f))
M2_MATH(2, fdim, __builtin_fdimf(x, y), 0.0f, __builtin_fdimf(x, y))
M2_MATH(2, copysign, __builtin_copysignf(x, y), 0.0f, __builtin_copysignf(x, y))
M2_MATH(2, nextafter, __builtin_nextafterf(x, y), 0.0f, __builtin_nextafterf(x, y))
M2_MATH(2, fmin, __builtin_fminf(x, y), 0.0f, __builtin_fminf(x, y))
M2_MATH(2, fmax, __builtin_fmaxf(x, y), 0.0f, __builtin_fmaxf(x, y))
M2_MATH(2, step, y < x ? 0.0f : 1.0f, 0.0f, y < x ? 0.0f : 1.0f)
M2_MATH(3, mix, x + (y - x) * z, 0.0f, x + (y - x) * z)

namespace precise {
inline half fma(half x, half y, half z) { return half(double(x) * double(y) + double(z)); }
inline bfloat fma(bfloat x, bfloat y, bfloat z) { return bfloat(__builtin_fmaf(x, y, z)); }
inline float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
M2_FOR_VECTORS_3(fma)
}  // namespace precise
namespace fast {
using precise::fma;
}
using precise::fma;

// min, max, clamp and abs have one overload for each type, so a mixed call is ambiguous, as in Metal.
#define M2_ORDER(T, least, greatest)                                           \
  inline T min(T x, T y) { return least; }                                     \
  inline T max(T x, T y) { return greatest; }                                  \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }        \
  inline T min3(T x, T y, T z) { return min(x, min(y, z)); }                   \
  inline T max3(T x, T y, T z) { return max(x, max(y, z)); }                   \
  inline T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }
#define M2_ORDER_INTEGER(T) M2_ORDER(T, y < x ? y : x, x < y ? y : x)
#define M2_ABS_SIGNED(T) inline T abs(T x) { return x < 0 ? T(-x) : x; }
#define M2_ABS_UNSIGNED(T) inline T abs(T x) { return x; }
M2_ORDER(float, __builtin_fminf(x, y), __builtin_fmaxf(x, y))
M2_ORDER(half, half(__builtin_fminf(x, y)), half(__builtin_fmaxf(x, y)))
M2_ORDER(bfloat, bfloat(__builtin_fminf(x, y)), bfloat(__builtin_fmaxf(x, y)))
M2_ORDER_INTEGER(int8_t)
M2_ORDER_INTEGER(char)
M2_ORDER_INTEGER(uchar)
M2_ORDER_INTEGER(short)
M2_ORDER_INTEGER(ushort)
M2_ORDER_INTEGER(int)
M2_ORDER_INTEGER(unsigned)
M2_ORDER_INTEGER(long)
M2_ORDER_INTEGER(ulong)
M2_ABS_SIGNED(int8_t)
M2_ABS_SIGNED(char)
M2_ABS_SIGNED(short)
M2_ABS_SIGNED(int)
M2_ABS_SIGNED(long)
M2_ABS_UNSIGNED(uchar)
M2_ABS_UNSIGNED(ushort)
M2_ABS_UNSIGNED(unsigned)
M2_ABS_UNSIGNED(ulong)
inline float abs(float x) { return __builtin_fabsf(x); }
inline half abs(half x) { return half(__builtin_fabsf(x)); }
inline bfloat abs(bfloat x) { return bfloat::from_bits(x.bits & 0x7fff); }
template <class T, int N>
inline vec<T, N> abs(vec<T, N> x) {
  for (int i = 0; i < N; ++i) x.data[i] = abs(x.data[i]);
  return x;
}
M2_FOR_VECTORS_2(min)
M2_FOR_VECTORS_2(max)
M2_FOR_VECTORS_3(clamp)
M2_FOR_VECTORS_3(min3)
M2_FOR_VECTORS_3(max3)
M2_FOR_VECTORS_3(median3)
#undef M2_ORDER
#undef M2_ORDER_INTEGER
#undef M2_ABS_SIGNED
#undef M2_ABS_UNSIGNED
#define M2_FLOAT_ORDER(name, other, count, parameters, arguments) \
  template <class T>                                              \
  inline enable_if_t<is_floating_point_v<T>, T> name parameters { \
    return other arguments;                                       \
  }
M2_FLOAT_ORDER(fmin3, min3, 3, (T x, T y, T z), (x, y, z))
M2_FLOAT_ORDER(fmax3, max3, 3, (T x, T y, T z), (x, y, z))
M2_FLOAT_ORDER(fmedian3, median3, 3, (T x, T y, T z), (x, y, z))
#undef M2_FLOAT_ORDER
namespace precise {
using metal::abs;
using metal::clamp;
using metal::max;
using metal::min;
}  // namespace precise
namespace fast {
using metal::abs;
using metal::clamp;
using metal::max;
using metal::min;
}  // namespace fast

#define M2_TEST(name, value)                                    \
  inline bool name(float x) { return value; }                   \
  inline bool name(half h) { return name(float(h)); }           \
  inline bool name(bfloat b) { return name(float(b)); }         \
  template <class T, int N>                                     \
  inline vec<bool, N> name(vec<T, N> x) {                       \
    vec<bool, N> out = vec<bool, N>::zero();                    \
    for (int i = 0; i < N; ++i) out.data[i] = name(x.data[i]);  \
    return out;                                                 \
  }
M2_TEST(isnan, __builtin_isnan(x))
M2_TEST(isinf, __builtin_isinf(x) != 0)
M2_TEST(isfinite, __builtin_isfinite(x))
M2_TEST(isnormal, __builtin_isnormal(x))
M2_TEST(signbit, __builtin_signbit(x) != 0)
#undef M2_TEST

template <class T>
inline T smoothstep(T low, T high, T x) {
  T t = clamp((x - low) / (high - low), T(0), T(1));
  return t * t * (T(3) - T(2) * t);
}
template <class T>
inline T ldexp(T x, int k) {
  return T(__builtin_ldexpf(float(x), k));
}
template <class T>
inline T frexp(T x, int& exponent) {
  return T(__builtin_frexpf(float(x), &exponent));
}
template <class T>
inline int ilogb(T x) {
  return __builtin_ilogbf(float(x));
}
template <class T>
inline T modf(T x, T& whole) {
  whole = trunc(x);
  return copysign(isinf(x) ? T(0) : T(x - whole), x);
}
template <class T>
inline T sincos(T x, T& cosine) {
  cosine = cos(x);
  return sin(x);
}
namespace precise {
template <class T>
inline T sincos(T x, T& cosine) {
  cosine = precise::cos(x);
  return precise::sin(x);
}
}  // namespace precise
namespace fast {
template <class T>
inline T sincos(T x, T& cosine) {
  cosine = fast::cos(x);
  return fast::sin(x);
}
}  // namespace fast

template <class T>
inline T select(T no, T yes, bool condition) {
  return condition ? yes : no;
}
template <class T, int N>
inline vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<bool, N> condition) {
  for (int i = 0; i < N; ++i) no.data[i] = condition.data[i] ? yes.data[i] : no.data[i];
  return no;
}
template <int N>
inline bool all(vec<bool, N> x) {
  bool out = true;
  for (int i = 0; i < N; ++i) out = out && x.data[i];
  return out;
}
template <int N>
inline bool any(vec<bool, N> x) {
  return !all(!x);
}
inline bool all(bool x) { return x; }
inline bool any(bool x) { return x; }

#define M2_GEOMETRY(T)                                                    \
  template <int N>                                                        \
  inline T dot(vec<T, N> x, vec<T, N> y) {                                \
    T sum = x.data[0] * y.data[0];                                        \
    for (int i = 1; i < N; ++i) sum = sum + x.data[i] * y.data[i];        \
    return sum;                                                           \
  }                                                                       \
  template <int N>                                                        \
  inline T length_squared(vec<T, N> x) { return dot(x, x); }              \
  template <int N>                                                        \
  inline T length(vec<T, N> x) { return sqrt(dot(x, x)); }                \
  template <int N>                                                        \
  inline T distance(vec<T, N> x, vec<T, N> y) { return length(x - y); }   \
  template <int N>                                                        \
  inline vec<T, N> normalize(vec<T, N> x) { return x * rsqrt(dot(x, x)); } \
  inline vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {                      \
    return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x); \
  }
M2_GEOMETRY(float)
M2_GEOMETRY(half)
M2_GEOMETRY(bfloat)
#undef M2_GEOMETRY

}  // namespace metal

#undef M2_MATH
#undef M2_CHOSEN
