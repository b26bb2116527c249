// Functions of integers, and packing.
#pragma once
#include "math.h"

namespace metal {

namespace detail {
template <class T>
using integer_only = enable_if_t<is_integral_v<T> && !is_same_v<T, bool>, T>;
template <class T>
constexpr int bits = int(sizeof(T)) * 8;
}  // namespace detail

#define M2_INTEGER_1(name, value)                              \
  template <class T>                                           \
  inline detail::integer_only<T> name(T x) {                   \
    using U = make_unsigned_t<T>;                              \
    [[maybe_unused]] constexpr int width = detail::bits<T>;    \
    [[maybe_unused]] U u = U(x);                               \
    return T(value);                                           \
  }                                                            \
  template <class T, int N>                                    \
  inline vec<T, N> name(vec<T, N> x) {                         \
    for (int i = 0; i < N; ++i) x.data[i] = name(x.data[i]);   \
    return x;                                                  \
  }
M2_INTEGER_1(popcount, __builtin_popcountll((unsigned long long)u))
M2_INTEGER_1(clz, u == 0 ? width : __builtin_clzll((unsigned long long)u) - (64 - width))
M2_INTEGER_1(ctz, u == 0 ? width : __builtin_ctzll((unsigned long long)u))
#undef M2_INTEGER_1

template <class T>
inline detail::integer_only<T> reverse_bits(T x) {
  make_unsigned_t<T> u = x, out = 0;
  for (int i = 0; i < detail::bits<T>; ++i) out = make_unsigned_t<T>(out | (make_unsigned_t<T>((u >> i) & 1) << (detail::bits<T> - 1 - i)));
  return T(out);
}
template <class T>
inline detail::integer_only<T> rotate(T x, T by) {
  make_unsigned_t<T> u = x;
  int n = int(by) & (detail::bits<T> - 1);
  return n ? T((u << n) | (u >> (detail::bits<T> - n))) : x;
}
template <class T>
inline detail::integer_only<T> mulhi(T x, T y) {
  return T(((__int128)x * (__int128)y) >> detail::bits<T>);
}
template <class T>
inline detail::integer_only<T> madhi(T x, T y, T z) {
  return T(mulhi(x, y) + z);
}
template <class T>
inline T mul24(T x, T y) {
  return T((x << 8 >> 8) * (y << 8 >> 8));
}
template <class T>
inline T mad24(T x, T y, T z) {
  return T(mul24(x, y) + z);
}
template <class T>
inline detail::integer_only<T> addsat(T x, T y) {
  T out;
  if (!__builtin_add_overflow(x, y, &out)) return out;
  return is_signed_v<T> && x < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <class T>
inline detail::integer_only<T> subsat(T x, T y) {
  T out;
  if (!__builtin_sub_overflow(x, y, &out)) return out;
  return !is_signed_v<T> || x < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <class T>
inline make_unsigned_t<T> absdiff(T x, T y) {
  return x < y ? make_unsigned_t<T>(y) - make_unsigned_t<T>(x) : make_unsigned_t<T>(x) - make_unsigned_t<T>(y);
}
template <class T>
inline detail::integer_only<T> hadd(T x, T y) {
  return T(((__int128)x + (__int128)y) >> 1);
}
template <class T>
inline detail::integer_only<T> rhadd(T x, T y) {
  return T(((__int128)x + (__int128)y + 1) >> 1);
}
template <class T>
inline detail::integer_only<T> extract_bits(T x, uint offset, uint count) {
  if (count == 0) return T(0);
  if (count >= uint(detail::bits<T>)) return x;
  make_unsigned_t<T> up = make_unsigned_t<T>(x) << (detail::bits<T> - offset - count);
  return T(T(up) >> (detail::bits<T> - count));
}
template <class T>
inline detail::integer_only<T> insert_bits(T base, T insert, uint offset, uint count) {
  make_unsigned_t<T> ones = count >= uint(detail::bits<T>) ? ~make_unsigned_t<T>(0) : (make_unsigned_t<T>(1) << count) - 1;
  make_unsigned_t<T> mask = ones << offset;
  return T((make_unsigned_t<T>(base) & ~mask) | ((make_unsigned_t<T>(insert) << offset) & mask));
}

inline float unpack_unorm(uint x, uint shift, float top) { return float((x >> shift) & uint(top)) / top; }
inline float4 unpack_unorm4x8_to_float(uint x) {
  return float4(unpack_unorm(x, 0, 255.0f), unpack_unorm(x, 8, 255.0f), unpack_unorm(x, 16, 255.0f), unpack_unorm(x, 24, 255.0f));
}
inline float2 unpack_unorm2x16_to_float(uint x) {
  return float2(unpack_unorm(x, 0, 65535.0f), unpack_unorm(x, 16, 65535.0f));
}
inline uint pack_float_to_unorm4x8(float4 x) {
  uint out = 0;
  for (int i = 0; i < 4; ++i) out |= uint(rint(saturate(x.data[i]) * 255.0f)) << (8 * i);
  return out;
}

}  // namespace metal
