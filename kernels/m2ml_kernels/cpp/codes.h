// What the codes of packed weights stand for, and the scales of mxfp4.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "vector.h"

namespace m2ml {

typedef int8_t Bytes __attribute__((vector_size(4 * kLanes)));

// In the affine form themselves.
template <int kCodeBits> struct Affine {
  static constexpr int kBits = kCodeBits, kZero = 0;
  static Bytes numbers(Bytes codes) { return codes; }
  static Floats values(Words codes) { return __builtin_convertvector((Ints)codes, Floats); }
};
// In mxfp4 the numbers of E2M1; twice as large and kZero higher they are whole and have no sign.
struct E2M1 {
  static constexpr int kBits = 4, kZero = 12;
  static Bytes numbers(Bytes codes) {
    alignas(16) static constexpr int8_t kNumbers[] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
#if defined(__AVX512BW__)
    return (Bytes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kNumbers))), (__m512i)codes);
#elif defined(M2ML_AVX2)
    return (Bytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kNumbers))), (__m256i)codes);
#elif defined(__aarch64__)
    uint8x16_t half[2];
    std::memcpy(half, &codes, sizeof half);
    for (auto& part : half) part = vqtbl1q_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(kNumbers)), part);
    std::memcpy(&codes, half, sizeof half);
    return codes;
#else
    for (int i = 0; i < 4 * kLanes; ++i) codes[i] = kNumbers[codes[i]];
    return codes;
#endif
  }
  static Floats values(Words codes) { return 0.5f * __builtin_convertvector((Ints)numbers((Bytes)codes) & 0xff, Floats) - 0.5f * kZero; }
};

// Scales of mxfp4, powers of two: 2^(bits - 127), of which the first is subnormal and the last infinite.
struct E8M0 { uint8_t bits; };
template <class S> constexpr bool kBiased = true;  // whether groups have biases beside their scales
template <> constexpr bool kBiased<E8M0> = false;
inline Floats powers(Ints bits) {
  return (Floats)(bits << 23 | ((bits - 1) >> 31 & 1 << 22));
}
inline Floats load_part(const E8M0* p, int64_t n) {
  typedef uint8_t Bits __attribute__((vector_size(kLanes)));
  Bits bits{};
  std::memcpy(&bits, p, n);
#if defined(__AVX512F__)
  return powers((Ints)_mm512_cvtepu8_epi32((__m128i)bits));
#else
  return powers(__builtin_convertvector(bits, Ints));
#endif
}
inline Floats load(const E8M0* p) { return load_part(p, kLanes); }
inline float to_float(E8M0 x) { return powers(Ints{} + x.bits)[0]; }

}  // namespace m2ml
