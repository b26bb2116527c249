// y = x wᵀ with w = scale * code + bias in groups, codes of 2 to 8 bits, a stream of bits in 32-bit words, lowest first.
//
// Few rows: y = sum over groups of scale (codes · x) + bias (sum of x). Where codes do not cross words (2, 4 and 8 bits) x
// is held as whole numbers of 24 bits, one exponent to the codes of a word: products of bytes are added exactly, four at
// a time, in 32 bits, and what is rounded is the sum of a word. Otherwise (3, 5 and 6 bits) a vector holds neighbouring
// codes, cut out of the 32 that end with a word, times x in floats. Must move: packed words, scales and biases once;
// moves just that. Many rows: a panel of the weight is decoded once per 32 outputs and multiplied in register tiles.
#include <memory>
#include <utility>
#include <vector>

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include "matrix.h"

namespace m2ml {

constexpr int64_t kFew = 8;       // rows of x that are multiplied word by word
constexpr int64_t kDepth = 256;   // rows of a decoded panel

struct Format { int64_t outputs, inputs, group, groups, words, span; };  // span: words of a group

// A row of the weight; `last` is the first word that lies less than a vector before the end of all rows.
template <class S> struct Row { const uint32_t* words; const S *scales, *biases; const uint32_t* last; };

typedef int8_t Bytes __attribute__((vector_size(4 * kLanes)));

// sums + a · b, each lane over its four bytes: codes of at most 4 bits, and numbers with a sign.
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

// Rows of x as the words of a row of the weight see them: lane by lane the codes of a word times unit * whole number,
// three bytes with a sign each. The last block ends with the last word; what it shares with the one before is zero.
template <int kBits, int kRows> class WordByWord {
 public:
  WordByWord(const Format& f, const float* x, int64_t rows)
      : words_(f.words), groups_(f.groups), span_bits_(__builtin_ctzll(f.span)), blocks_((f.words + kLanes - 1) / kLanes),
        parts_((f.groups + kLanes - 1) / kLanes), bytes_(blocks_ * kRows * kVectors), units_(blocks_ * kRows), sums_(kRows * parts_) {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t word = block * kLanes; word < std::min(words_, (block + 1) * kLanes); ++word)
          put(x + r * f.inputs + word * kCodes, block * kRows + r, word - first(block), r, word >> span_bits_);
  }

  // Whether whole numbers hold x: it is finite, and no word's numbers are so small that their unit would be no float.
  bool holds() const { return holds_; }

  template <int kSpan, class S> void multiply(const Row<S>& row, Floats* total) const {
    for (int64_t part = 0; part < parts_; ++part) {
      const Floats biases = load_up_to(row.biases + part * kLanes, groups_ - part * kLanes);
      for (int r = 0; r < kRows; ++r) total[r] += biases * sums_[r * parts_ + part];
    }
    constexpr int kGroups = kLanes / kSpan;  // groups of a block
    Ints place;
    for (int i = 0; i < kLanes; ++i) place[i] = i / kSpan;
    const int64_t whole = words_ / kLanes;
    int64_t block = 0;
    if constexpr (kSpan == kLanes) {
      for (; block < whole; ++block) add(whole_words(row, block * kLanes), splat(to_float(row.scales[block * kLanes >> span_bits_])), block, total);
    } else {
      for (; block + kSpan <= whole; block += kSpan) {
        const Floats scales = load(row.scales + block * kGroups);
#pragma GCC unroll 16
        for (int k = 0; k < kSpan; ++k) add(whole_words(row, (block + k) * kLanes), picked(scales, place + k * kGroups), block + k, total);
      }
      const Floats scales = load_up_to(row.scales + block * kGroups, groups_ - block * kGroups);
      for (; block < whole; ++block, place += kGroups) add(whole_words(row, block * kLanes), picked(scales, place), block, total);
    }
    if (words_ % kLanes == 0) return;
    for (int i = 0; i < kLanes; ++i) place[i] = i / kSpan;
    const int64_t word = first(block), group = word >> span_bits_;
    Words words{};
    if (words_ < kLanes) std::memcpy(&words, row.words, words_ * sizeof *row.words);
    else words = whole_words(row, word);
    add(words, picked(load_up_to(row.scales + group, std::min<int64_t>(kGroups, groups_ - group)), place), block, total);
  }

 private:
  static constexpr int kCodes = 32 / kBits, kSlices = 8 / kBits, kPlanes = 3, kVectors = kPlanes * kSlices;
  static constexpr int kNibbles = kBits == 8 ? 2 : 1;  // parts of a code that are multiplied by themselves

  int64_t first(int64_t block) const { return std::max<int64_t>(std::min(block * kLanes, words_ - kLanes), 0); }

  template <class S> static Floats load_up_to(const S* p, int64_t n) { return n < kLanes ? load_part(p, n) : load(p); }
  template <class S> static Words whole_words(const Row<S>& row, int64_t word) {
    Words words;
    std::memcpy(&words, row.words + word, sizeof words);
    return words;
  }

  // The numbers of one word, all units of the same power of two: at most 0x7f7f7f, which three bytes hold.
  void put(const float* x, int64_t at, int64_t lane, int64_t row, int64_t group) {
    uint32_t bits[kCodes], most = 0;
    std::memcpy(bits, x, sizeof bits);
    for (uint32_t b : bits) most = std::max(most, b & 0x7fffffffu);
    if (!most) return;
    const uint32_t exponent = (most >> 23) + ((most & 0x7fffffu) > 0x7efefeu);
    if (most >> 23 == 255 || exponent < 32) {
      holds_ = false;
      return;
    }
    const uint32_t powers[2] = {(exponent - 22) << 23, (276 - exponent) << 23};
    float power[2];
    std::memcpy(power, powers, sizeof power);
    auto* bytes = reinterpret_cast<int8_t*>(&bytes_[at * kVectors]) + 4 * lane;
    int32_t total = 0;
    for (int j = 0; j < kCodes; ++j) {
      const auto number = static_cast<int32_t>(std::lrint(x[j] * power[1]));
      const uint32_t digits = (static_cast<uint32_t>(number) + 0x808080u) ^ 0x808080u;
      total += number;
      for (int plane = 0; plane < kPlanes; ++plane)
        bytes[(plane * kSlices + j % kSlices) * 4 * kLanes + j / kSlices] = static_cast<int8_t>(digits >> (16 - 8 * plane));
    }
    units_[at][lane] = power[0];
    sums_[row * parts_ + group / kLanes][group % kLanes] += power[0] * static_cast<float>(total);
  }

  __attribute__((always_inline)) void add(Words words, Floats scale, int64_t block, Floats* total) const {
    Bytes codes[kSlices * kNibbles];
    for (int i = 0; i < kSlices * kNibbles; ++i) codes[i] = (Bytes)((words >> (kBits / kNibbles * i)) & (0x01010101u * ((1u << kBits / kNibbles) - 1)));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Bytes* x = &bytes_[(block * kRows + r) * kVectors];
      const Floats low = sum_of_products(codes, x);
      const Floats all = kNibbles == 1 ? low : low + 16.0f * sum_of_products(codes + kSlices, x);
      total[r] += all * (scale * units_[block * kRows + r]);
    }
  }

  // Whole up to here: 16 codes of 2 bits or 8 of 4 times 24 bits stay below 2^31.
  __attribute__((always_inline)) Floats sum_of_products(const Bytes* codes, const Bytes* x) const {
    Ints sums{};
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      if (i && i % kSlices == 0) sums <<= 8;
      sums = add_products(sums, codes[i % kSlices], x[i]);
    }
    return __builtin_convertvector(sums, Floats);
  }

  int64_t words_, groups_, span_bits_, blocks_, parts_;  // a group is a power of two of words
  std::vector<Bytes> bytes_;                             // [block][row][plane][slice]
  std::vector<Floats> units_, sums_;                     // [block][row]; of groups: [row][part]
  bool holds_ = true;
};

// 32 codes are kBits words, which always belong to one group: x stays in order, beside its sums by lane.
template <int kBits, int kRows> class UnitByUnit {
 public:
  UnitByUnit(const Format& f, const float* x, int64_t rows)
      : inputs_(f.inputs), group_(f.group), x_(kRows * f.inputs), sums_(kRows * f.groups * kLanes) {
    std::copy_n(x, rows * inputs_, x_.data());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < inputs_; ++i) sums_[(i / group_ * kRows + r) * kLanes + i % kLanes] += x[r * inputs_ + i];
  }

  bool holds() const { return true; }

  template <int, class S> void multiply(const Row<S>& row, Floats* total) const {
    for (int64_t group = 0; group * group_ < inputs_; ++group) {
      Floats sums[kRows] = {};
      for (int64_t i = group * group_; i < (group + 1) * group_; i += 32) add(row.words + i / 32 * kBits, row.last, i, sums);
      const float scale = to_float(row.scales[group]), bias = to_float(row.biases[group]);
      for (int r = 0; r < kRows; ++r) total[r] += sums[r] * scale + bias * load(sums_.data() + (group * kRows + r) * kLanes);
    }
  }

 private:
  __attribute__((always_inline)) void add(const uint32_t* from, const uint32_t* last, int64_t i, Floats* sums) const {
    Words unit{};
    if (from < last) std::memcpy(&unit, from, sizeof unit);
    else std::memcpy(&unit, from, kBits * sizeof *from);
    steps(unit, i, sums, std::make_index_sequence<32 / kLanes>());
  }
  template <size_t... kStep> __attribute__((always_inline)) void steps(Words unit, int64_t i, Floats* sums, std::index_sequence<kStep...>) const {
    (step<kStep * kLanes>(unit, x_.data() + i + kStep * kLanes, sums, std::make_index_sequence<kLanes>()), ...);
  }
  // Codes kFirst, kFirst + 1, ... of the unit times x.
  template <size_t kFirst, size_t... kLane> __attribute__((always_inline)) void step(Words unit, const float* x, Floats* sums, std::index_sequence<kLane...>) const {
    const Words low = __builtin_shufflevector(unit, unit, ((kFirst + kLane) * kBits / 32)...);
    const Words high = __builtin_shufflevector(unit, unit, (((kFirst + kLane) * kBits + kBits - 1) / 32)...);
    const Words shift = {((kFirst + kLane) * kBits % 32)...};
    const Words codes = (low >> shift) | (high << 1 << (31u - shift));
    const Floats values = __builtin_convertvector((Ints)(codes & ((1u << kBits) - 1)), Floats);
    for (int r = 0; r < kRows; ++r) sums[r] += values * load(x + r * inputs_);
  }

  int64_t inputs_, group_;
  std::vector<float> x_, sums_;
};

// Not inlined, so that its register tiles are compiled once for all formats.
__attribute__((noinline)) void product_of_panel(int64_t rows, int64_t depth, const float* x, int64_t row, const float* panel, float* total) {
  product<true>(rows, kTileColumns, depth, x, row, 1, panel, 0, kTileColumns, total, kTileColumns);
}

// Elements [begin, begin + depth) of a row of the weight, kTileColumns apart.
template <int kBits, class S>
void decode(const Format& f, const uint32_t* words, const S* scales, const S* biases, int64_t begin, int64_t depth, float* to) {
  for (int64_t i = begin; i < begin + depth; i += 32) {
    const float scale = to_float(scales[i / f.group]), bias = to_float(biases[i / f.group]);
    const uint32_t* unit = words + i / 32 * kBits;
    uint64_t left = 0;  // bits read and not yet used
    for (int j = 0, bits = 0; j < 32; ++j, bits -= kBits, left >>= kBits, to += kTileColumns) {
      if (bits < kBits) left |= uint64_t{*unit++} << bits, bits += 32;
      *to = scale * static_cast<float>(static_cast<uint32_t>(left) & ((1u << kBits) - 1)) + bias;
    }
  }
}

template <int kBits, class S>
void many_rows(const Call& call, const Format& f, int64_t rows, const float* x, const uint32_t* words, const S* scales, const S* biases, float* y) {
  call.parallel((f.outputs + kTileColumns - 1) / kTileColumns, 1, [&](int64_t first, int64_t last) {
    thread_local std::vector<float> scratch;
    scratch.resize(kDepth * kTileColumns + rows * kTileColumns);
    float *panel = scratch.data(), *total = panel + kDepth * kTileColumns;
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t start = tile * kTileColumns, columns = std::min(kTileColumns, f.outputs - start);
      std::fill_n(total, rows * kTileColumns, 0.0f);
      std::fill_n(panel, kDepth * kTileColumns, 0.0f);
      for (int64_t k = 0; k < f.inputs; k += kDepth) {
        const int64_t depth = std::min(kDepth, f.inputs - k);
        for (int64_t o = start; o < start + columns; ++o)
          decode<kBits, S>(f, words + o * f.words, scales + o * f.groups, biases + o * f.groups, k, depth, panel + o - start);
        product_of_panel(rows, depth, x + k, f.inputs, panel, total);
      }
      for (int64_t r = 0; r < rows; ++r) std::memcpy(y + r * f.outputs + start, total + r * kTileColumns, columns * sizeof(float));
    }
  });
}

template <class Seen, int kSpan, int kRows, class S>
bool few_rows(const Call& call, const Format& f, int64_t rows, const float* x, Row<S> weight, float* y) {
  const Seen seen(f, x, rows);
  if (!seen.holds()) return false;
  call.parallel(f.outputs, 1 + (int64_t{1} << 14) / (f.words + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      Floats total[kRows] = {};
      seen.template multiply<kSpan>(Row<S>{weight.words + o * f.words, weight.scales + o * f.groups, weight.biases + o * f.groups, weight.last}, total);
      for (int64_t r = 0; r < rows; ++r) y[r * f.outputs + o] = sum(total[r]);
    }
  });
  return true;
}

template <int kBits, int kSpan, class S>
void few_rows(const Call& call, const Format& f, int64_t rows, const float* x, Row<S> weight, float* y) {
  const auto run = [&](auto most, int64_t first) {
    constexpr int kRows = decltype(most)::value;
    using Seen = std::conditional_t<32 % kBits == 0, WordByWord<kBits, kRows>, UnitByUnit<kBits, kRows>>;
    const int64_t count = std::min<int64_t>(kRows, rows - first);
    const float* from = x + first * f.inputs;
    float* to = y + first * f.outputs;
    if (!few_rows<Seen, kSpan, kRows, S>(call, f, count, from, weight, to))
      many_rows<kBits, S>(call, f, count, from, weight.words, weight.scales, weight.biases, to);
  };
  if (rows == 1) return run(std::integral_constant<int, 1>{}, 0);
  for (int64_t first = 0; first < rows; first += 4) run(std::integral_constant<int, 4>{}, first);
}

template <int kBits, class S>
void multiply(const Call& call, const Format& f, int64_t rows, const float* x, const uint32_t* words, const S* scales, const S* biases, float* y) {
  if (rows > kFew) return many_rows<kBits, S>(call, f, rows, x, words, scales, biases, y);
  const Row<S> weight{words, scales, biases, words + f.outputs * f.words - (kLanes - 1)};
  if constexpr (32 % kBits) return few_rows<kBits, kLanes, S>(call, f, rows, x, weight, y);
  constexpr int kSmallest = kBits;  // words of a group of 32
  switch (f.span / kSmallest) {
    case 1: return few_rows<kBits, std::min(kSmallest, kLanes), S>(call, f, rows, x, weight, y);
    case 2: return few_rows<kBits, std::min(2 * kSmallest, kLanes), S>(call, f, rows, x, weight, y);
    case 4: return few_rows<kBits, std::min(4 * kSmallest, kLanes), S>(call, f, rows, x, weight, y);
  }
  throw std::invalid_argument("quantized_matmul: a group size that the kernel does not take");
}

// from[n] in another type, in parallel.
template <class A, class B> void convert(const Call& call, const A* from, B* to, int64_t n) {
  call.parallel((n + kLanes - 1) / kLanes, 1 << 12, [&](int64_t begin, int64_t end) {
    each_vector(std::min(end * kLanes, n) - begin * kLanes, [&](int64_t i, auto whole, int64_t count) {
      store_at(to + begin * kLanes + i, load_at(from + begin * kLanes + i, whole, count), whole, count);
    });
  });
}

}  // namespace m2ml

// in: x[*b n], packed[m words], scales[m groups], biases[m groups]; out: y[*b m]; static: bits, group_size.
M2ML_KERNEL(quantized_matmul) {
  using namespace m2ml;
  const Array x = call.in(0), packed = call.in(1), scales = call.in(2), biases = call.in(3), y = call.out(0);
  const int64_t inputs = x.size(-1), group = call.integer("group_size"), bits = call.integer("bits");
  const Format f{packed.size(0), inputs, group, inputs / group, packed.size(1), group * bits / 32};
  const int64_t rows = x.rows(-1);
  if (!y.count()) return;
  std::unique_ptr<float[]> wide_x, wide_y;
  const bool half = x.type() != Type::f32;
  if (half) {
    wide_x.reset(new float[rows * inputs]), wide_y.reset(new float[rows * f.outputs]);
    with_type(x.type(), [&](auto* t) { convert(call, x.data<std::remove_pointer_t<decltype(t)>>(), wide_x.get(), rows * inputs); });
  }
  with_type(scales.type(), [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    const auto run = bits == 2 ? multiply<2, S> : bits == 3 ? multiply<3, S> : bits == 4 ? multiply<4, S> : bits == 5 ? multiply<5, S> : bits == 6 ? multiply<6, S> : multiply<8, S>;
    run(call, f, rows, half ? wide_x.get() : x.data<float>(), packed.data<uint32_t>(), scales.data<S>(), biases.data<S>(), half ? wide_y.get() : y.data<float>());
  });
  if (half) with_type(y.type(), [&](auto* t) { convert(call, wide_y.get(), y.data<std::remove_pointer_t<decltype(t)>>(), rows * f.outputs); });
}
