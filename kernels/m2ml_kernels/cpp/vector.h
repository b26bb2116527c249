// Vectors of floats: one source for AVX2, AVX-512 and NEON through the compilers' vector extension.
//
// Storage is float32, float16 or bfloat16; arithmetic is float32, rounded to nearest even where it is stored.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "call.h"

namespace m2ml {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef _Float16 Halves __attribute__((vector_size(2 * kLanes)));

struct bfloat16 { uint16_t bits; };
using float16 = _Float16;

inline Floats splat(float x) { return Floats{} + x; }

inline Floats load(const float* p) { Floats x; std::memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

inline Floats load(const float16* p) {
  Halves x; std::memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, Floats);
}
inline void store(float16* p, Floats x) {
  const Halves y = __builtin_convertvector(x, Halves);
  std::memcpy(p, &y, sizeof y);
}

inline Floats load(const bfloat16* p) {
  Shorts x; std::memcpy(&x, p, sizeof x);
  const Words wide = __builtin_convertvector(x, Words) << 16;
  Floats y; std::memcpy(&y, &wide, sizeof y);
  return y;
}
inline void store(bfloat16* p, Floats x) {
  Words bits; std::memcpy(&bits, &x, sizeof bits);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet = (bits >> 16) | 0x40u;
  const Words nan = (Words)(x != x);
  const Shorts y = __builtin_convertvector((rounded & ~nan) | (quiet & nan), Shorts);
  std::memcpy(p, &y, sizeof y);
}

inline Floats square_root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(float16 x) { return static_cast<float>(x); }
inline float to_float(bfloat16 x) {
  const uint32_t wide = uint32_t{x.bits} << 16;
  float y;
  std::memcpy(&y, &wide, sizeof y);
  return y;
}

// The first n lanes; the others are `rest`.
template <class T> Floats load_part(const T* p, int64_t n, float rest = 0) {
  T part[kLanes] = {};
  std::memcpy(part, p, n * sizeof(T));
  Floats x = load(part);
  for (int64_t i = n; i < kLanes; ++i) x[i] = rest;
  return x;
}
template <class T> void store_part(T* p, Floats x, int64_t n) {
  T part[kLanes];
  store(part, x);
  std::memcpy(p, part, n * sizeof(T));
}

inline float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// Calls body(begin, n) for whole vectors and then for the rest: body(i, kLanes) ... body(i, n % kLanes).
template <class Body> void each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, std::integral_constant<bool, true>{}, int64_t{kLanes});
  if (i < n) body(i, std::integral_constant<bool, false>{}, n - i);
}
template <class T, bool kWhole> Floats load_at(const T* p, std::integral_constant<bool, kWhole>, int64_t n) {
  if constexpr (kWhole) return load(p);
  else return load_part(p, n);
}
template <class T, bool kWhole> void store_at(T* p, Floats x, std::integral_constant<bool, kWhole>, int64_t n) {
  if constexpr (kWhole) store(p, x);
  else store_part(p, x, n);
}

// Calls body with a null pointer of the element type of `type`.
template <class Body> void with_type(Type type, const Body& body) {
  switch (type) {
    case Type::f32: return body(static_cast<float*>(nullptr));
    case Type::f16: return body(static_cast<float16*>(nullptr));
    case Type::bf16: return body(static_cast<bfloat16*>(nullptr));
  }
  throw std::invalid_argument("an element type that no kernel takes");
}

}  // namespace m2ml
