// The AVX-512 instructions that the kernels name, made of AVX2 or lane by lane, so that their AVX-512 code runs where there
// is none. Included before a file of kernels (`-include`); M2ML_VNNI and M2ML_BF16 give the processor these, too.
//
// Each function does what Intel's Intrinsics Guide says of its instruction. One that is not here does not compile: the
// target has no AVX-512.
#pragma once

#include <immintrin.h>  // before the macros at the end, which would tell it that the target has AVX-512

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || !defined(__AVX2__) || !defined(__F16C__)
#error "this is for a target with AVX2 and without AVX-512"
#endif

namespace avx512 {

template <class To, class From> To as(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
template <class T, int kCount> struct Lanes { T at[kCount]; };
template <class T, class V> auto lanes(const V& x) { return as<Lanes<T, sizeof(V) / sizeof(T)>>(x); }

// A vector of kCount lanes, of which `make` gives each.
template <class V, class T, int kCount = sizeof(V) / sizeof(T), class Make> V each(const Make& make) {
  Lanes<T, kCount> made;
  for (int i = 0; i < kCount; ++i) made.at[i] = make(i);
  return as<V>(made);
}

// What an instruction of 256 bits makes of each half.
#define M2ML_HALVES(V, Half, name)                         \
  inline V name(V a, V b) {                                \
    struct Two { Half low, high; };                        \
    const Two x = as<Two>(a), y = as<Two>(b);              \
    return as<V>(Two{_mm256_##name(x.low, y.low), _mm256_##name(x.high, y.high)}); \
  }
M2ML_HALVES(__m512i, __m256i, add_epi32)
M2ML_HALVES(__m512i, __m256i, madd_epi16)
M2ML_HALVES(__m512i, __m256i, maddubs_epi16)
M2ML_HALVES(__m512i, __m256i, shuffle_epi8)
M2ML_HALVES(__m512, __m256, max_ps)
M2ML_HALVES(__m512, __m256, min_ps)
#undef M2ML_HALVES

inline __m512 sqrt_ps(__m512 x) { return each<__m512, float>([a = lanes<float>(x)](int i) { return std::sqrt(a.at[i]); }); }
inline __m512i and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i set1_epi32(int x) { return each<__m512i, int32_t>([=](int) { return x; }); }
inline __m512i srli_epi32(__m512i x, int by) { return each<__m512i, uint32_t>([=, a = lanes<uint32_t>(x)](int i) { return by < 32 ? a.at[i] >> by : 0; }); }

inline __m512i broadcast_i32x4(__m128i x) { return each<__m512i, int64_t>([a = lanes<int64_t>(x)](int i) { return a.at[i % 2]; }); }
inline __m512i broadcast_i64x4(__m256i x) { return each<__m512i, int64_t>([a = lanes<int64_t>(x)](int i) { return a.at[i % 4]; }); }
inline __m256i castsi512_si256(__m512i x) { return each<__m256i, int64_t>([a = lanes<int64_t>(x)](int i) { return a.at[i]; }); }
inline __m512i castsi256_si512(__m256i x) {  // the upper half is what it may be
  return each<__m512i, int64_t>([a = lanes<int64_t>(x)](int i) { return i < 4 ? a.at[i] : int64_t{0x5a5a5a5a5a5a5a5a}; });
}
inline __m512 permutexvar_ps(__m512i places, __m512 x) {
  return each<__m512, float>([p = lanes<uint32_t>(places), a = lanes<float>(x)](int i) { return a.at[p.at[i] % 16]; });
}
inline __m512i maskz_permutexvar_epi16(__mmask32 some, __m512i places, __m512i x) {
  return each<__m512i, uint16_t>([=, p = lanes<uint16_t>(places), a = lanes<uint16_t>(x)](int i) { return some >> i & 1 ? a.at[p.at[i] % 32] : 0; });
}
inline __m512i permutexvar_epi16(__m512i places, __m512i x) { return maskz_permutexvar_epi16(~0u, places, x); }

inline __m512i cvtps_epi32(__m512 x) {
  return each<__m512i, int32_t>([a = lanes<float>(x)](int i) { return _mm_cvtss_si32(_mm_set_ss(a.at[i])); });
}
inline __m512i cvtepu8_epi32(__m128i x) { return each<__m512i, uint32_t>([a = lanes<uint8_t>(x)](int i) { return a.at[i]; }); }
inline __m128i cvtepi32_epi8(__m512i x) { return each<__m128i, uint8_t>([a = lanes<uint32_t>(x)](int i) { return a.at[i]; }); }
inline __m512 cvtph_ps(__m256i x) { return each<__m512, float>([a = lanes<uint16_t>(x)](int i) { return _cvtsh_ss(a.at[i]); }); }
template <int kRounding> __m256i cvtps_ph(__m512 x) {
  return each<__m256i, uint16_t>([a = lanes<float>(x)](int i) { return _cvtss_sh(a.at[i], kRounding & ~_MM_FROUND_NO_EXC); });
}
inline __m256i cvtneps_pbh(__m512 x) {
  return each<__m256i, uint16_t>([a = lanes<float>(x)](int i) -> uint16_t {
    const uint32_t bits = as<uint32_t>(a.at[i]);
    if (a.at[i] != a.at[i]) return bits >> 16 | 0x40;
    if (!(bits & 0x7f800000)) return bits >> 16 & 0x8000;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  });
}
inline __m512 scalef_ps(__m512 x, __m512 power) {
  return each<__m512, float>([a = lanes<float>(x), b = lanes<float>(power)](int i) -> float {
    if (std::isnan(b.at[i])) return b.at[i];
    if (std::isinf(b.at[i])) return a.at[i] * (b.at[i] > 0 ? b.at[i] : 0.0f);
    return std::ldexp(double{a.at[i]}, std::floor(std::fmin(std::fmax(b.at[i], -800.0f), 800.0f)));
  });
}
inline __m512i dpbusd_epi32(__m512i sums, __m512i codes, __m512i numbers) {
  return each<__m512i, int32_t>([s = lanes<int32_t>(sums), a = lanes<uint8_t>(codes), b = lanes<int8_t>(numbers)](int i) {
    int sum = s.at[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum += a.at[j] * b.at[j];
    return sum;
  });
}

template <int kHow> __mmask16 cmp_ps_mask(__m512 x, __m512 y) {
  static_assert(kHow == _CMP_ORD_Q, "no other comparison is made here");
  const auto a = lanes<float>(x), b = lanes<float>(y);
  __mmask16 found = 0;
  for (int i = 0; i < 16; ++i) found |= (a.at[i] == a.at[i] && b.at[i] == b.at[i]) << i;
  return found;
}
inline __m512 mask_mov_ps(__m512 other, __mmask16 some, __m512 x) {
  return each<__m512, float>([=, a = lanes<float>(x), b = lanes<float>(other)](int i) { return some >> i & 1 ? a.at[i] : b.at[i]; });
}
inline __m512i mask_add_epi32(__m512i other, __mmask16 some, __m512i a, __m512i b) {
  return (__m512i)mask_mov_ps((__m512)other, some, (__m512)add_epi32(a, b));
}

// Lanes that are not chosen are neither read nor written.
template <class T, class V> V load(V other, __mmask16 some, const void* from) {
  return each<V, T>([=, b = lanes<T>(other), p = static_cast<const T*>(from)](int i) { return some >> i & 1 ? p[i] : b.at[i]; });
}
template <class T, class V> void store(void* to, __mmask16 some, V x) {
  const auto a = lanes<T>(x);
  for (size_t i = 0; i < sizeof a / sizeof(T); ++i)
    if (some >> i & 1) static_cast<T*>(to)[i] = a.at[i];
}

}  // namespace avx512

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define _mm512_add_epi32 avx512::add_epi32
#define _mm512_and_si512 avx512::and_si512
#define _mm512_broadcast_i32x4 avx512::broadcast_i32x4
#define _mm512_broadcast_i64x4 avx512::broadcast_i64x4
#define _mm512_castsi256_si512 avx512::castsi256_si512
#define _mm512_castsi512_si256 avx512::castsi512_si256
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, how) avx512::cmp_ps_mask<how>(a, b)
#define _mm512_cvtepi32_epi8 avx512::cvtepi32_epi8
#define _mm512_cvtepu8_epi32 avx512::cvtepu8_epi32
#define _mm512_cvtph_ps avx512::cvtph_ps
#define _mm512_cvtps_epi32 avx512::cvtps_epi32
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) avx512::cvtps_ph<rounding>(x)
#define _mm512_madd_epi16 avx512::madd_epi16
#define _mm512_maddubs_epi16 avx512::maddubs_epi16
#define _mm512_mask_add_epi32 avx512::mask_add_epi32
#define _mm512_mask_loadu_ps avx512::load<float>
#define _mm512_mask_mov_ps avx512::mask_mov_ps
#define _mm512_mask_storeu_ps avx512::store<float>
#define _mm256_maskz_loadu_epi16(some, from) avx512::load<uint16_t>(__m256i{}, some, from)
#define _mm256_mask_storeu_epi16 avx512::store<uint16_t>
#define _mm512_maskz_permutexvar_epi16 avx512::maskz_permutexvar_epi16
#define _mm512_max_ps avx512::max_ps
#define _mm512_min_ps avx512::min_ps
#define _mm512_permutexvar_epi16 avx512::permutexvar_epi16
#define _mm512_permutexvar_ps avx512::permutexvar_ps
#define _mm512_scalef_ps avx512::scalef_ps
#define _mm512_set1_epi32 avx512::set1_epi32
#define _mm512_shuffle_epi8 avx512::shuffle_epi8
#define _mm512_sqrt_ps avx512::sqrt_ps
#define _mm512_srli_epi32 avx512::srli_epi32
#define _mm512_stream_si512(to, x) (void)(*(to) = (x))
#define asm(...) static_assert(true)  // the kernels' says that a value is in a register, which 64 bytes have none of
#if defined(M2ML_VNNI)
#define __AVX512VNNI__ 1
#define _mm512_dpbusd_epi32 avx512::dpbusd_epi32
#endif
#if defined(M2ML_BF16)
#define __AVX512BF16__ 1
#define _mm512_cvtneps_pbh avx512::cvtneps_pbh
#endif
