// Vectors of floats: one source for AVX2, AVX-512 and NEON through the compilers' vector extension.
//
// Storage is float32, float16 or bfloat16; arithmetic is float32, rounded to nearest even where it is stored.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
#define M2ML_AVX2  // and no more
#endif

#include "call.h"

namespace m2ml {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr bool kStreams = true;
#else
constexpr int kLanes = 8;
constexpr bool kStreams = false;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef _Float16 Halves __attribute__((vector_size(2 * kLanes)));

struct bfloat16 { uint16_t bits; };
using float16 = _Float16;

inline Floats splat(float x) { return x - Floats{}; }  // of 0 + x, which is not x where x is -0, an addition would stay

// A vector as it is stored, and back.
inline Floats narrow(float, Floats x) { return x; }
inline Halves narrow(float16, Floats x) {  // GCC converts halves one by one unless it is told
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return __builtin_convertvector(x, Halves);
#endif
}
#if defined(M2ML_AVX2)
// Rounded to bfloat16, in the upper halves of words; the lower halves are what is left.
inline __m256i rounded_above(__m256 x) {
  const __m256i bits = (__m256i)x, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), nan = _mm256_set1_epi32(0x7fc00000);
  return (__m256i)_mm256_blendv_ps((__m256)up, (__m256)nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
#endif
inline Shorts narrow(bfloat16, Floats x) {
#if defined(__AVX512BF16__)
  return (Shorts)_mm512_cvtneps_pbh((__m512)x);  // subnormal numbers become zeros
#elif defined(__AVX512BW__)
  const __m512i bits = (__m512i)x, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_ORD_Q);
  const __m512i nan = _mm512_set1_epi32(0x7fc00000), up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const Shorts upper = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i rounded = _mm512_mask_add_epi32(nan, number, up, odd);
  return (Shorts)_mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_castsi256_si512((__m256i)upper), rounded));
#elif defined(M2ML_AVX2)
  const __m256i above = _mm256_srli_epi32(rounded_above((__m256)x), 16);
  return (Shorts)_mm_packus_epi32(_mm256_castsi256_si128(above), _mm256_extracti128_si256(above, 1));
#else
  Words bits; std::memcpy(&bits, &x, sizeof bits);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(x != x ? quiet : rounded, Shorts);
#endif
}

inline Floats widen(Floats x) { return x; }
inline Floats widen(Halves x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps((__m128i)x);
#else
  return __builtin_convertvector(x, Floats);
#endif
}
inline Floats widen(Shorts x) {  // nor does it lengthen integers in one step
#if defined(__AVX512BW__)  // each above a half of zeros
  typedef uint16_t Twice __attribute__((vector_size(4 * kLanes)));
  const Twice halves = {0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i twice = _mm512_broadcast_i64x4((__m256i)x), wide = _mm512_maskz_permutexvar_epi16(0xaaaaaaaau, (__m512i)halves, twice);
#elif defined(__AVX2__)
  const Words wide = (Words)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)x), 16);
#else
  const Words wide = __builtin_convertvector(x, Words) << 16;
#endif
  Floats y;
  std::memcpy(&y, &wide, sizeof y);
  return y;
}

template <class T> Floats load(const T* p) {
  decltype(narrow(T{}, Floats{})) x;
  std::memcpy(&x, p, sizeof x);
  return widen(x);
}
template <class T> void store(T* p, Floats x) {
  const auto y = narrow(T{}, x);
  std::memcpy(p, &y, sizeof y);
}

// A store past the cache: it does not first read the line that it overwrites. `p` is aligned to the vector. AVX-512 alone
// has it: with AVX2 a line takes two or four such stores, which on Zen 3 gained nothing where one array was written, and
// took twice to nine times as long where two were.
template <class T> void stream(T* p, Floats x) {
  const auto y = narrow(T{}, x);
#if defined(__AVX512F__)
  if constexpr (sizeof y == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)y);
  if constexpr (sizeof y == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)y);
#endif
  std::memcpy(p, &y, sizeof y);
}

// Asks for memory that is read soon: while a row is worked on in cache, the next one comes.
template <class T> void fetch(const T* p) { __builtin_prefetch(p); }

inline int64_t cache_size() {
#if defined(M2ML_CACHE_SIZE)  // tests have none
  return M2ML_CACHE_SIZE;
#elif defined(_SC_LEVEL3_CACHE_SIZE)
  static const int64_t found = std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 1 << 22);
  return found;
#else
  return 1 << 25;
#endif
}

// Whether rows of n elements are to be stored past the cache: where a kernel moves more bytes than it holds, what it
// writes first is gone before anybody reads it.
template <class T> bool streams(const T* to, int64_t n, int64_t bytes) {
  const auto vector = sizeof(T) * kLanes;
  return kStreams && bytes > cache_size() && reinterpret_cast<uintptr_t>(to) % vector == 0 && n % kLanes == 0;
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
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto lanes = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) return (Floats)_mm512_mask_loadu_ps((__m512)splat(rest), lanes, p);
  else return (Floats)_mm512_mask_mov_ps((__m512)splat(rest), lanes, (__m512)widen((decltype(narrow(T{}, Floats{})))_mm256_maskz_loadu_epi16(lanes, p)));
#else
  T part[kLanes] = {};
  std::memcpy(part, p, n * sizeof(T));
  Floats x = load(part);
  for (int64_t i = n; i < kLanes; ++i) x[i] = rest;
  return x;
#endif
}
template <class T> void store_part(T* p, Floats x, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto lanes = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, lanes, (__m512)x);
  else _mm256_mask_storeu_epi16(p, lanes, (__m256i)narrow(T{}, x));
#else
  T part[kLanes];
  store(part, x);
  std::memcpy(p, part, n * sizeof(T));
#endif
}

inline float sum(Floats x) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter part[kLanes / 4], total{};
  std::memcpy(part, &x, sizeof x);
  for (int i = 0; i < kLanes / 4; i += 2) total += part[i] + part[i + 1];
  return (total[0] + total[2]) + (total[1] + total[3]);
}

// The sums of four vectors.
template <int... kLane> void sums_of_four(const Floats (&x)[4], float* to, std::integer_sequence<int, kLane...>) {
  const auto pair = [](Floats a, Floats b) {
    return __builtin_shufflevector(a, b, (kLane / 4 * 4 + kLane % 4 / 2 + kLane % 2 * kLanes)...) +
           __builtin_shufflevector(a, b, (kLane / 4 * 4 + kLane % 4 / 2 + 2 + kLane % 2 * kLanes)...);
  };
  const Floats a = pair(x[0], x[1]), b = pair(x[2], x[3]);
  const Floats quarters = __builtin_shufflevector(a, b, (kLane / 4 * 4 + kLane % 2 + kLane % 4 / 2 * kLanes)...) +
                          __builtin_shufflevector(a, b, (kLane / 4 * 4 + kLane % 2 + 2 + kLane % 4 / 2 * kLanes)...);
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter part[kLanes / 4], total{};
  std::memcpy(part, &quarters, sizeof part);
  for (int i = 0; i < kLanes / 4; ++i) total += part[i];
  std::memcpy(to, &total, sizeof total);
}
inline void sums_of_four(const Floats (&x)[4], float* to) { sums_of_four(x, to, std::make_integer_sequence<int, kLanes>()); }

// Calls body(i, whole, n) for whole vectors and then for the rest: n is kLanes ... and then n % kLanes. A body captures
// by value, and is inlined: what it reached by reference would be loaded anew after every store.
template <class Body> [[gnu::always_inline]] inline void each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, std::integral_constant<bool, true>{}, int64_t{kLanes});
  if (i < n) body(i, std::integral_constant<bool, false>{}, n - i);
}
template <class T, bool kWhole> Floats load_at(const T* p, std::integral_constant<bool, kWhole>, int64_t n) {
  if constexpr (kWhole) return load(p);
  else return load_part(p, n);
}
template <class T, bool kWhole> void store_at(T* p, Floats x, std::integral_constant<bool, kWhole>, int64_t n, bool past = false) {
  if constexpr (!kWhole) store_part(p, x, n);
  else if (past) stream(p, x);
  else store(p, x);
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
