// Rows of x as whole numbers of 24 bits, and their products with words of packed codes of 2, 4 or 8 bits.
//
// The codes of a word share one exponent of x: unit * whole number, three bytes with a sign each. Products of bytes are
// added exactly, four at a time, in 32 bits; what is rounded is the sum of a word.
#pragma once

#include "packed.h"

namespace m2ml {

// 16 numbers of x, on every machine. Where they take several vectors GCC compares them one by one: nothing here compares.
typedef float Chunk __attribute__((vector_size(64)));
typedef int32_t ChunkInts __attribute__((vector_size(64)));
typedef uint32_t ChunkWords __attribute__((vector_size(64)));
typedef uint8_t ChunkBytes __attribute__((vector_size(16)));

// Whether codes of 8 bits are multiplied as they are; otherwise as numbers of 16 bits, which the sum of two products must fit.
#if defined(__AVX512VNNI__)
constexpr bool kWholeBytes = true;
#else
constexpr bool kWholeBytes = false;
#endif

// The sum of two products in each lane, of the halves of the lanes of a and b, numbers of 16 bits with a sign.
inline Ints products_of_halves(Ints a, Ints b) {
#if defined(__AVX512BW__)
  return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(M2ML_AVX2)
  return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// sums + a · b, each lane over its four bytes: codes, and numbers with a sign. Where two products at a time are added in 16
// bits, sums of a few are of that kind.
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && (defined(__AVX512BW__) || !defined(__AVX512F__))
typedef int16_t Products __attribute__((vector_size(4 * kLanes)));
inline Products add_products(Products sums, Bytes codes, Bytes numbers) {
#if defined(__AVX512BW__)
  return sums + (Products)_mm512_maddubs_epi16((__m512i)codes, (__m512i)numbers);
#else
  return sums + (Products)_mm256_maddubs_epi16((__m256i)codes, (__m256i)numbers);
#endif
}
inline Products begun(Ints) { return Products{}; }
inline Ints ended(Ints before, Products sums) {
  return before + products_of_halves((Ints)sums, Ints{} + 0x10001);
}
#else
using Products = Ints;
inline Products add_products(Products sums, Bytes codes, Bytes numbers) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)numbers);
#elif defined(__ARM_FEATURE_DOTPROD)
  int32x4_t half[2];
  int8x16_t a[2], b[2];
  std::memcpy(half, &sums, sizeof half), std::memcpy(a, &codes, sizeof a), std::memcpy(b, &numbers, sizeof b);
  for (int i = 0; i < 2; ++i) half[i] = vdotq_s32(half[i], a[i], b[i]);
  std::memcpy(&sums, half, sizeof half);
  return sums;
#else
  for (int i = 0; i < 4 * kLanes; ++i) sums[i / 4] += codes[i] * numbers[i];
  return sums;
#endif
}
inline Products begun(Ints before) { return before; }
inline Ints ended(Ints, Products sums) { return sums; }
#endif

// Rows of x as the words of a row of the weight see them. The last block of kLanes words ends with the last word; what
// it shares with the one before is zero.
template <class Codes, int kRows> class WordByWord {
 public:
  __attribute__((noinline)) WordByWord(const Format& f, const float* x, int64_t rows)
      : words_(f.words), groups_(f.groups), span_bits_(__builtin_ctzll(f.span)), blocks_((f.words + kLanes - 1) / kLanes),
        parts_((f.groups + kLanes - 1) / kLanes), bytes_(blocks_ * kRows * kVectors), units_(blocks_ * kRows), sums_(kRows * parts_),
        zeros_(Codes::kZero ? blocks_ * kRows : 0) {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t word = block * kLanes; word < std::min(words_, (block + 1) * kLanes); word += kTogether)
          put(x + r * f.inputs + word * kCodes, block * kRows + r, word - first(block, words_), r, word >> span_bits_);
    for (int i = 0; i < 16; ++i) holds_ &= !unfit_[i];
  }

  // Whether whole numbers hold x: it is finite, and no word's numbers are so small that their unit would be no float.
  bool holds() const { return holds_; }

  // The products of kOutputs rows of the weight and each row of x, spread over lanes.
  template <int kSpan, int kOutputs, class S> void multiply(const Format&, const Row<S>& weight, Floats (&given)[kOutputs][kRows]) const {
    Floats total[kOutputs][kRows] = {};
    for (int64_t part = 0; kBiased<S> && part < parts_; ++part)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        const Floats biases = load_up_to(weight.biases + o * groups_ + first(part, groups_), groups_);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) total[o][r] += biases * sums_[r * parts_ + part];
      }
    constexpr int kBlocks = kSpan < kLanes ? kSpan : 1;  // whose scales are one vector
    const int64_t whole = words_ / kLanes;
    int64_t block = 0;
    // As many words ahead are asked for as are read, line after line, and not yet into the first-level cache: it can wait
    // for too few at a time.
    const uint32_t *at = weight.words, *ahead = weight.words + weight.ahead * words_;
    const Bytes* x = bytes_.data();
    const Floats* units = units_.data();
    for (; block + kBlocks <= whole; block += kBlocks) {
      Floats scales[kOutputs];
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        if constexpr (kSpan < kLanes) scales[o] = load(weight.scales + o * groups_ + block * (kLanes / kSpan));
        else scales[o] = splat(to_float(weight.scales[o * groups_ + (block * kLanes >> span_bits_)]));
      }
      for (int k = 0; k < kBlocks; ++k, at += kLanes, ahead += kOutputs * kLanes, x += kRows * kVectors, units += kRows) {
        Words words[kOutputs];
        Floats own[kOutputs];
#pragma GCC unroll 4
        for (int o = 0; o < kOutputs; ++o) {
          std::memcpy(&words[o], at + o * words_, sizeof words[o]);
          words[o] = held(words[o]);
          if constexpr (kSpan < kLanes) own[o] = spread<kSpan>(scales[o], k);
          else own[o] = scales[o];
        }
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs * kLanes; i += 16) __builtin_prefetch(ahead + i, 0, 2);
        add(words, own, x, units, total);
      }
    }
    for (; block < blocks_; ++block) {
      const int64_t word = first(block, words_), group = word >> span_bits_, from = std::min(group, first(parts_, groups_));
      Words words[kOutputs] = {};
      Floats scales[kOutputs];
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        if (words_ < kLanes) std::memcpy(&words[o], weight.words + o * words_, words_ * sizeof *weight.words);
        else std::memcpy(&words[o], weight.words + o * words_ + word, sizeof words[o]);
        if constexpr (kSpan == kLanes) scales[o] = splat(to_float(weight.scales[o * groups_ + group]));
        else scales[o] = spread<kSpan>(load_up_to(weight.scales + o * groups_ + from, groups_), 0, group - from);
      }
      add(words, scales, &bytes_[block * kRows * kVectors], &units_[block * kRows], total);
    }
    std::memcpy(given, total, sizeof total);
  }

 private:
  static constexpr int kBits = Codes::kBits;
  static constexpr bool kHalves = kBits == 8 && !kWholeBytes;  // x is two numbers of 12 bits, each in 16
  static constexpr int kCodes = 32 / kBits, kSlices = 8 / kBits, kPlanes = 3, kVectors = kHalves ? 4 : kPlanes * kSlices;
  static constexpr int kTogether = 16 / kCodes;  // words that are put at once
  static constexpr uint32_t kMask = kHalves ? 0x00ff00ffu : 0x01010101u * ((1u << kBits) - 1);  // of a vector's codes

  // Where vector i of n numbers begins.
  static int64_t first(int64_t i, int64_t n) { return std::max<int64_t>(std::min(i * kLanes, n - kLanes), 0); }

  template <class S> static Floats load_up_to(const S* p, int64_t n) { return n < kLanes ? load_part(p, n) : load(p); }
  // Of the scales of kSpan blocks, from scale `start` on, those of block k, each for the kSpan lanes of a group.
  template <int kSpan> static Floats spread(Floats scales, int k, int32_t start = 0) {
    static constexpr Places<kSpan> places{};
    Ints of_block;
    std::memcpy(&of_block, places.lanes[k], sizeof of_block);
    return picked(scales, of_block + start);
  }
  template <int kSpan> struct Places {
    alignas(64) int32_t lanes[kSpan][kLanes] = {};
    constexpr Places() {
      for (int k = 0; k < kSpan; ++k)
        for (int i = 0; i < kLanes; ++i) lanes[k][i] = (k * kLanes + i) / kSpan;
    }
  };

  template <int kStep, class V, size_t... kLane> static V exchanged(V x, std::index_sequence<kLane...>) {
    return __builtin_shufflevector(x, x, (kLane ^ kStep)...);
  }
  // Each lane's is of all the lanes of its word.
  template <class V, class Join> __attribute__((always_inline)) static V of_word(V x, const Join& join) {
    constexpr auto lanes = std::make_index_sequence<16>();
    x = join(x, exchanged<1>(x, lanes)), x = join(x, exchanged<2>(x, lanes));
    if constexpr (kCodes > 4) x = join(x, exchanged<4>(x, lanes));
    if constexpr (kCodes > 8) x = join(x, exchanged<8>(x, lanes));
    return x;
  }
  // Bytes of the numbers of kTogether words: those that the first codes of bytes meet, then the second ...
  template <size_t... kByte> static ChunkBytes by_slice(ChunkBytes x, std::index_sequence<kByte...>) {
    constexpr int kSize = 4 * kTogether;
    return __builtin_shufflevector(x, x, (kByte % kSize / 4 * kCodes + kByte % 4 * kSlices + kByte / kSize)...);
  }

  // The numbers of neighbouring words of one group, those of a word units of the same power of two: at most 0x7f7f7f,
  // which three bytes hold.
  void put(const float* from, int64_t at, int64_t lane, int64_t row, int64_t group) {
    Chunk x;
    std::memcpy(&x, from, sizeof x);
    const auto most = of_word((ChunkInts)x & 0x7fffffff, [](ChunkInts a, ChunkInts b) { return a - ((a - b) & ((a - b) >> 31)); });
    // Of the unit, and one more where a number would be rounded to more than 0x7f7f7f.
    const ChunkInts exponent = (ChunkInts)(((ChunkWords)most + 0x10101u) >> 23), some = -most >> 31;
    unfit_ |= some & ((((255 << 23) - 1 - most) | (exponent - 32)) >> 31);
    const Chunk power = (Chunk)((276 - exponent) << 23), unit = (Chunk)(some & ((exponent - (Codes::kZero ? 23 : 22)) << 23));
    const ChunkInts number = nearest(x * power);
    if constexpr (kHalves) put_halves(number, at, lane);
    else put_bytes(number, at, lane);
    const ChunkInts sum = of_word(number, [](ChunkInts a, ChunkInts b) { return a + b; });
    const Chunk total = unit * __builtin_convertvector(sum, Chunk);
    for (int word = 0; word < kTogether; ++word) {
      units_[at][lane + word] = unit[word * kCodes];
      if constexpr (Codes::kZero) zeros_[at][lane + word] = Codes::kZero * sum[word * kCodes];
      sums_[row * parts_ + group / kLanes][group - first(group / kLanes, groups_)] += total[word * kCodes];
    }
  }

  void put_bytes(ChunkInts number, int64_t at, int64_t lane) {
    const ChunkWords digits = ((ChunkWords)number + 0x808080u) ^ 0x808080u;
    auto* bytes = reinterpret_cast<uint8_t*>(&bytes_[at * kVectors]) + 4 * lane;
    for (int plane = 0; plane < kPlanes; ++plane) {
      const ChunkBytes ordered = by_slice(lowest_bytes(digits >> (16 - 8 * plane)), std::make_index_sequence<16>());
      for (int slice = 0; slice < kSlices; ++slice)
        std::memcpy(bytes + (plane * kSlices + slice) * 4 * kLanes, reinterpret_cast<const char*>(&ordered) + slice * 4 * kTogether, 4 * kTogether);
    }
  }
  // Of a word's four numbers the first and the third, and the others: their upper halves, then what is left of them.
  void put_halves(ChunkInts number, int64_t at, int64_t lane) {
    const ChunkInts upper = (number + 2048) >> 12;
    auto* to = reinterpret_cast<Ints*>(&bytes_[at * kVectors]);
    for (const ChunkInts& half : {upper, number - (upper << 12)}) {
      const ChunkInts pairs = (half & 0xffff) | (exchanged<2>(half, std::make_index_sequence<16>()) << 16);
      for (int odd = 0; odd < 2; ++odd, ++to)
        for (int word = 0; word < kTogether; ++word) (*to)[lane + word] = pairs[4 * word + odd];
    }
  }

  __attribute__((always_inline)) static ChunkBytes lowest_bytes(ChunkWords x) {  // GCC converts them one by one
#if defined(__AVX512F__)
    return (ChunkBytes)_mm512_cvtepi32_epi8((__m512i)x);
#elif defined(__AVX2__)
    __m256i half[2];
    x &= 0xffu;
    std::memcpy(half, &x, sizeof half);
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(half[0], half[1]), 0xd8);
    return (ChunkBytes)_mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
#else
    return __builtin_convertvector(x & 0xffu, ChunkBytes);
#endif
  }
  __attribute__((always_inline)) static ChunkInts nearest(Chunk x) {
#if defined(__AVX512F__)
    return (ChunkInts)_mm512_cvtps_epi32((__m512)x);
#else
    return __builtin_convertvector(x + (Chunk)(((ChunkInts)x & INT32_MIN) | 0x3f000000), ChunkInts);
#endif
  }

  template <int kOutputs>
  __attribute__((always_inline)) void add(const Words (&words)[kOutputs], const Floats (&scale)[kOutputs], const Bytes* bytes,
                                          const Floats* units, Floats (&total)[kOutputs][kRows]) const {
    constexpr int kEvery = kHalves ? 2 : kSlices;  // codes of a word are spread over so many vectors
    Bytes codes[kEvery][kOutputs];
#pragma GCC unroll 4
    for (int i = 0; i < kEvery; ++i)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) codes[i][o] = Codes::numbers((Bytes)((words[o] >> (kBits * i)) & kMask));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Bytes* x = bytes + r * kVectors;
      Floats all[kOutputs], low[kOutputs];
      if constexpr (kHalves) {
        sums_of_halves(codes, x, all);
        sums_of_halves(codes, x + 2, low);
        for (int o = 0; o < kOutputs; ++o) all[o] = 4096.0f * all[o] + low[o];
      } else if constexpr (kBits == 8) {  // three bytes of x times one of a code take two numbers
        sums_of_products<2>(codes, x, Ints{}, all);
        sums_of_products<1>(codes, x + 2, Ints{}, low);
        for (int o = 0; o < kOutputs; ++o) all[o] = 256.0f * all[o] + low[o];
      } else {
        Ints zero{};
        if constexpr (Codes::kZero) zero = zeros_[units - units_.data() + r];
        sums_of_products<kPlanes>(codes, x, zero, all);
      }
      const Floats unit = held(units[r]);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) total[o][r] += all[o] * (scale[o] * unit);
    }
  }

  // Of the first planes at x, less what codes of zero give. Whole up to here: 16 codes of 2 bits or 8 of 4 (numbers up to 24
  // with mxfp4) times 24 bits, and 4 of 8 bits times 16, stay below 2^31.
  template <int kCount, int kOutputs>
  __attribute__((always_inline)) static void sums_of_products(const Bytes (*codes)[kOutputs], const Bytes* x, Ints zero, Floats (&given)[kOutputs]) {
    Ints sums[kOutputs] = {};
#pragma GCC unroll 3
    for (int plane = 0; plane < kCount; ++plane) {
      Products products[kOutputs];
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) products[o] = begun(sums[o] <<= 8);
#pragma GCC unroll 4
      for (int slice = 0; slice < kSlices; ++slice) {
        const Bytes numbers = held(x[plane * kSlices + slice]);
#pragma GCC unroll 4
        for (int o = 0; o < kOutputs; ++o) products[o] = add_products(products[o], codes[slice][o], numbers);
      }
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) sums[o] = ended(sums[o], products[o]);
    }
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) given[o] = __builtin_convertvector(sums[o] - zero, Floats);
  }

  template <int kOutputs>
  __attribute__((always_inline)) static void sums_of_halves(const Bytes (&codes)[2][kOutputs], const Bytes* x, Floats (&given)[kOutputs]) {
    const Ints first = (Ints)held(x[0]), second = (Ints)held(x[1]);
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o)
      given[o] = __builtin_convertvector(products_of_halves((Ints)codes[0][o], first) + products_of_halves((Ints)codes[1][o], second), Floats);
  }

  int64_t words_, groups_, span_bits_, blocks_, parts_;  // a group is a power of two of words
  std::vector<Bytes> bytes_;                             // [block][row][plane][slice]
  std::vector<Floats> units_, sums_;                     // [block][row]; of groups: [row][part]
  std::vector<Ints> zeros_;                              // [block][row], products of x and kZero
  ChunkInts unfit_ = {};
  bool holds_ = true;
};

}  // namespace m2ml
