// metal::numeric_limits.
#pragma once
#include "base.h"

namespace metal {

template <class T>
struct numeric_limits {
  static constexpr bool is_specialized = is_integral_v<T>;
  static constexpr bool is_integer = true;
  static constexpr bool is_signed = is_signed_v<T>;
  static constexpr bool has_infinity = false;
  static constexpr int digits = is_same_v<T, bool> ? 1 : int(sizeof(T)) * 8 - is_signed;
  static constexpr T min() { return is_signed ? T(make_unsigned_t<T>(1) << (digits % (8 * sizeof(T)))) : T(0); }
  static constexpr T max() { return is_same_v<T, bool> ? T(1) : T(make_unsigned_t<T>(~make_unsigned_t<T>(0)) >> is_signed); }
  static constexpr T lowest() { return min(); }
  static constexpr T infinity() { return T(0); }
  static constexpr T quiet_NaN() { return T(0); }
  static constexpr T epsilon() { return T(0); }
};

namespace detail {
template <class T, class Bits, int mantissa, Bits inf, Bits largest, Bits smallest, Bits eps, Bits nan>
struct float_limits {
  static constexpr bool is_specialized = true, is_integer = false, is_signed = true, has_infinity = true;
  static constexpr int digits = mantissa;
  static constexpr T make(Bits bits) { return __builtin_bit_cast(T, bits); }
  static constexpr T min() { return make(smallest); }
  static constexpr T max() { return make(largest); }
  static constexpr T lowest() { return -max(); }
  static constexpr T infinity() { return make(inf); }
  static constexpr T quiet_NaN() { return make(nan); }
  static constexpr T signaling_NaN() { return make(nan); }
  static constexpr T epsilon() { return make(eps); }
  static constexpr T denorm_min() { return make(Bits(1)); }
};
}  // namespace detail

template <>
struct numeric_limits<float>
    : detail::float_limits<float, uint, 24, 0x7f800000, 0x7f7fffff, 0x00800000, 0x34000000, 0x7fc00000> {};
template <>
struct numeric_limits<half> : detail::float_limits<half, ushort, 11, 0x7c00, 0x7bff, 0x0400, 0x1400, 0x7e00> {};
template <>
struct numeric_limits<bfloat> : detail::float_limits<bfloat, ushort, 8, 0x7f80, 0x7f7f, 0x0080, 0x3c00, 0x7fc0> {};

}  // namespace metal

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX half(65504.0f)
#define HALF_MIN half(6.103515625e-05f)
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define CHAR_BIT 8
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
