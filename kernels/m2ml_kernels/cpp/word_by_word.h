// Rows of x as whole numbers of 24 bits, and their products with words of packed codes of 2, 4 or 8 bits.
//
// The codes of a word share one exponent of x: unit * whole number, three bytes with a sign each. Products of bytes are
// added exactly, four at a time, in 32 bits; what is rounded is the sum of a word.
#pragma once

#include <utility>
#include <vector>

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include "vector.h"

namespace m2ml {

struct Format { int64_t outputs, inputs, group, groups, words, span; };  // span: words of a group

// A row of the weight; `last` is the first word that lies less than a vector before the end of all rows.
template <class S> struct Row { const uint32_t* words; const S *scales, *biases; const uint32_t* last; };

typedef int8_t Bytes __attribute__((vector_size(4 * kLanes)));

// 16 numbers of x, on every machine.
typedef float Chunk __attribute__((vector_size(64)));
typedef int32_t ChunkInts __attribute__((vector_size(64)));
typedef uint32_t ChunkWords __attribute__((vector_size(64)));
typedef uint8_t ChunkBytes __attribute__((vector_size(16)));

// Whether codes of 8 bits are multiplied as they are; otherwise by halves, as the sum of two products must fit 16 bits.
#if defined(__AVX512VNNI__)
constexpr bool kWholeBytes = true;
#else
constexpr bool kWholeBytes = false;
#endif

// sums + a · b, each lane over its four bytes: codes, and numbers with a sign.
inline Ints add_products(Ints sums, Bytes codes, Bytes numbers) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)numbers);
#elif defined(__AVX512BW__)
  return sums + (Ints)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)codes, (__m512i)numbers), _mm512_set1_epi16(1));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sums + (Ints)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)codes, (__m256i)numbers), _mm256_set1_epi16(1));
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

// Lane i of the result is lane places[i] of x.
inline Floats picked(Floats x, Ints places) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_permutevar8x32_ps((__m256)x, (__m256i)places);
#else
  Floats y;
  for (int i = 0; i < kLanes; ++i) y[i] = x[places[i]];
  return y;
#endif
}

// What is used several times, in a register: GCC would rather load it each time, and loads are what there is least of.
template <class V> V held(V x) {
#if defined(__AVX512F__) && defined(__GNUC__)
  asm("" : "+v"(x));
#endif
  return x;
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

// Rows of x as the words of a row of the weight see them. The last block of kLanes words ends with the last word; what
// it shares with the one before is zero.
template <int kBits, int kRows> class WordByWord {
 public:
  WordByWord(const Format& f, const float* x, int64_t rows)
      : words_(f.words), groups_(f.groups), span_bits_(__builtin_ctzll(f.span)), blocks_((f.words + kLanes - 1) / kLanes),
        parts_((f.groups + kLanes - 1) / kLanes), bytes_(blocks_ * kRows * kVectors), units_(blocks_ * kRows), sums_(kRows * parts_) {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t word = block * kLanes; word < std::min(words_, (block + 1) * kLanes); word += kTogether)
          put(x + r * f.inputs + word * kCodes, block * kRows + r, word - first(block), r, word >> span_bits_);
    for (int i = 0; i < 16; ++i) holds_ &= !unfit_[i];
  }

  // Whether whole numbers hold x: it is finite, and no word's numbers are so small that their unit would be no float.
  bool holds() const { return holds_; }

  // The products of kOutputs rows of the weight and each row of x, spread over lanes.
  template <int kSpan, int kOutputs, class S> void multiply(const Format&, const Row<S>& weight, Floats (&given)[kOutputs][kRows]) const {
    Floats total[kOutputs][kRows] = {};
    for (int64_t part = 0; part < parts_; ++part)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        const Floats biases = load_up_to(weight.biases + o * groups_ + part * kLanes, groups_ - part * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) total[o][r] += biases * sums_[r * parts_ + part];
      }
    const int64_t whole = words_ / kLanes;
    int64_t block = 0;
    if constexpr (kSpan < kLanes) {
      for (; block + kSpan <= whole; block += kSpan) {
        Floats scales[kOutputs];
#pragma GCC unroll 4
        for (int o = 0; o < kOutputs; ++o) scales[o] = load(weight.scales + o * groups_ + block * (kLanes / kSpan));
        for (int k = 0; k < kSpan; ++k) {
          Words words[kOutputs];
          Floats own[kOutputs];
#pragma GCC unroll 4
          for (int o = 0; o < kOutputs; ++o) {
            words[o] = whole_words(weight, o, (block + k) * kLanes);
            own[o] = spread<kSpan>(scales[o], k);
          }
          add(words, own, block + k, total);
        }
      }
    }
    for (; block < blocks_; ++block) {
      const int64_t word = first(block), group = word >> span_bits_, groups = std::min<int64_t>(kLanes / kSpan, groups_ - group);
      Words words[kOutputs] = {};
      Floats scales[kOutputs];
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        if (words_ < kLanes) std::memcpy(&words[o], weight.words + o * words_, words_ * sizeof *weight.words);
        else words[o] = whole_words(weight, o, word);
        if constexpr (kSpan == kLanes) scales[o] = splat(to_float(weight.scales[o * groups_ + group]));
        else scales[o] = spread<kSpan>(load_part(weight.scales + o * groups_ + group, groups), 0);
      }
      add(words, scales, block, total);
    }
    std::memcpy(given, total, sizeof total);
  }

 private:
  static constexpr int kCodes = 32 / kBits, kSlices = 8 / kBits, kPlanes = 3, kVectors = kPlanes * kSlices;
  static constexpr int kNibbles = kBits == 8 && !kWholeBytes ? 2 : 1;  // parts of a code that are multiplied by themselves
  static constexpr int kTogether = 16 / kCodes;                        // words that are put at once

  int64_t first(int64_t block) const { return std::max<int64_t>(std::min(block * kLanes, words_ - kLanes), 0); }

  template <class S> static Floats load_up_to(const S* p, int64_t n) { return n < kLanes ? load_part(p, n) : load(p); }
  // Of the scales of kSpan blocks those of block k, each for the kSpan lanes of a group.
  template <int kSpan> static Floats spread(Floats scales, int k) {
    static constexpr Places<kSpan> places{};
    Ints of_block;
    std::memcpy(&of_block, places.lanes[k], sizeof of_block);
    return picked(scales, of_block);
  }
  template <int kSpan> struct Places {
    alignas(64) int32_t lanes[kSpan][kLanes] = {};
    constexpr Places() {
      for (int k = 0; k < kSpan; ++k)
        for (int i = 0; i < kLanes; ++i) lanes[k][i] = (k * kLanes + i) / kSpan;
    }
  };
  template <class S> Words whole_words(const Row<S>& weight, int output, int64_t word) const {
    Words words;
    std::memcpy(&words, weight.words + output * words_ + word, sizeof words);
    return held(words);
  }

  template <int kStep, class V, size_t... kLane> static V exchanged(V x, std::index_sequence<kLane...>) {
    return __builtin_shufflevector(x, x, (kLane ^ kStep)...);
  }
  // Each lane's is of all the lanes of its word.
  template <class V, class Join> static V of_word(V x, const Join& join) {
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
    const auto most = of_word((ChunkInts)x & 0x7fffffff, [](ChunkInts a, ChunkInts b) { return a > b ? a : b; });
    const ChunkInts exponent = (most >> 23) - ((most & 0x7fffff) > 0x7efefe);
    unfit_ |= (most != 0) & ((most >= 255 << 23) | (exponent < 32));
    const Chunk power = (Chunk)((276 - exponent) << 23), unit = most != 0 ? (Chunk)((exponent - 22) << 23) : Chunk{};
    const ChunkInts number = nearest(x * power);
    const ChunkWords digits = ((ChunkWords)number + 0x808080u) ^ 0x808080u;
    auto* bytes = reinterpret_cast<uint8_t*>(&bytes_[at * kVectors]) + 4 * lane;
    for (int plane = 0; plane < kPlanes; ++plane) {
      const ChunkBytes ordered = by_slice(lowest_bytes(digits >> (16 - 8 * plane)), std::make_index_sequence<16>());
      for (int slice = 0; slice < kSlices; ++slice)
        std::memcpy(bytes + (plane * kSlices + slice) * 4 * kLanes, reinterpret_cast<const char*>(&ordered) + slice * 4 * kTogether, 4 * kTogether);
    }
    const Chunk total = unit * __builtin_convertvector(of_word(number, [](ChunkInts a, ChunkInts b) { return a + b; }), Chunk);
    for (int word = 0; word < kTogether; ++word) {
      units_[at][lane + word] = unit[word * kCodes];
      sums_[row * parts_ + group / kLanes][group % kLanes] += total[word * kCodes];
    }
  }

  static ChunkBytes lowest_bytes(ChunkWords x) {  // GCC converts them one by one
#if defined(__AVX512F__)
    return (ChunkBytes)_mm512_cvtepi32_epi8((__m512i)x);
#else
    return __builtin_convertvector(x & 0xffu, ChunkBytes);
#endif
  }
  static ChunkInts nearest(Chunk x) {
#if defined(__AVX512F__)
    return (ChunkInts)_mm512_cvtps_epi32((__m512)x);
#else
    return __builtin_convertvector(x < 0 ? x - 0.5f : x + 0.5f, ChunkInts);
#endif
  }

  template <int kOutputs>
  __attribute__((always_inline)) void add(const Words (&words)[kOutputs], const Floats (&scale)[kOutputs], int64_t block, Floats (&total)[kOutputs][kRows]) const {
    Bytes codes[kNibbles * kSlices][kOutputs];
#pragma GCC unroll 4
    for (int i = 0; i < kSlices * kNibbles; ++i)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) codes[i][o] = (Bytes)((words[o] >> (kBits / kNibbles * i)) & (0x01010101u * ((1u << kBits / kNibbles) - 1)));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Bytes* x = &bytes_[(block * kRows + r) * kVectors];
      Floats all[kOutputs];
      if constexpr (kBits == 8 && kWholeBytes) {  // three bytes of x times one of a code take two numbers
        Floats low[kOutputs];
        sums_of_products<2>(codes, x, all);
        sums_of_products<1>(codes, x + 2, low);
        for (int o = 0; o < kOutputs; ++o) all[o] = 256.0f * all[o] + low[o];
      } else {
        sums_of_products<kPlanes>(codes, x, all);
      }
      if constexpr (kNibbles == 2) {
        Floats high[kOutputs];
        sums_of_products<kPlanes>(codes + kSlices, x, high);
        for (int o = 0; o < kOutputs; ++o) all[o] += 16.0f * high[o];
      }
      const Floats unit = held(units_[block * kRows + r]);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) total[o][r] += all[o] * (scale[o] * unit);
    }
  }

  // Of the first planes at x. Whole up to here: 16 codes of 2 bits or 8 of 4 times 24 bits, and 4 of 8 bits times 16, stay
  // below 2^31.
  template <int kCount, int kOutputs>
  __attribute__((always_inline)) static void sums_of_products(const Bytes (*codes)[kOutputs], const Bytes* x, Floats (&given)[kOutputs]) {
    Ints sums[kOutputs] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kCount * kSlices; ++i) {
      const Bytes numbers = held(x[i]);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        if (i && i % kSlices == 0) sums[o] <<= 8;
        sums[o] = add_products(sums[o], codes[i % kSlices][o], numbers);
      }
    }
    for (int o = 0; o < kOutputs; ++o) given[o] = __builtin_convertvector(sums[o], Floats);
  }

  int64_t words_, groups_, span_bits_, blocks_, parts_;  // a group is a power of two of words
  std::vector<Bytes> bytes_;                             // [block][row][plane][slice]
  std::vector<Floats> units_, sums_;                     // [block][row]; of groups: [row][part]
  ChunkInts unfit_ = {};
  bool holds_ = true;
};

}  // namespace m2ml
