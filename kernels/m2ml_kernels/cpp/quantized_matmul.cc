// y = x wᵀ with w = scale * code + bias in groups, codes of 2 to 8 bits, a stream of bits in 32-bit words, lowest first.
//
// Few rows: y = sum over groups of scale (codes · x) + bias (sum of x). A vector holds one word per lane and x is permuted
// once to match; where codes cross words (3, 5 and 6 bits) it holds neighbouring codes, cut out of the 32 that end with
// a word. Must move: packed words, scales and biases once; moves just that. Many rows: a panel of the weight is decoded
// once per 32 outputs and multiplied in register tiles.
#include <memory>
#include <utility>
#include <vector>

#include "matrix.h"

namespace m2ml {

constexpr int64_t kFew = 8;       // rows of x that are multiplied word by word
constexpr int64_t kDepth = 256;   // rows of a decoded panel

struct Format { int64_t outputs, inputs, group, groups, words, span; };  // span: words of a group

// A row of the weight; `last` is the first word that lies less than a vector before the end of all rows.
template <class S> struct Row { const uint32_t* words; const S *scales, *biases; const uint32_t* last; };

// The first kCount lanes from memory. A way through a variable would stall: it is stored in part and loaded whole.
template <int kCount, class S> auto load_few(const S* p) {
  using Stored = decltype(narrow(S{}, Floats{}));
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(S) == 4) return (Stored)_mm512_maskz_loadu_ps((1 << kCount) - 1, p);
  else return (Stored)_mm256_maskz_loadu_epi16((1 << kCount) - 1, p);
#else
  Stored few{};
  std::memcpy(&few, p, kCount * sizeof(S));
  return few;
#endif
}
template <int kSpan, class Stored, size_t... kLane> Stored repeat(Stored x, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(x, x, (kLane / kSpan)...);
}

// The numbers of kLanes words of which kSpan share one.
template <int kSpan, class S> Floats spread(const S* numbers) {
  if constexpr (kSpan >= kLanes) return splat(to_float(*numbers));
  else return widen(repeat<kSpan>(load_few<kLanes / kSpan>(numbers), std::make_index_sequence<kLanes>()));
}

// The codes in the lowest bits of each word.
template <int kBits> Floats lowest(Words words) {
#if defined(__AVX512F__)
  if constexpr (kBits <= 4) {  // a table of 16, looked up by four bits alone
    Floats table;
    for (int i = 0; i < kLanes; ++i) table[i] = i % (1 << kBits);
    return (Floats)_mm512_permutexvar_ps((__m512i)words, (__m512)table);
  }
#endif
  return __builtin_convertvector((Ints)(words & ((1u << kBits) - 1)), Floats);
}

// Rows of x as the words of a row of the weight see them: codes[block][row][code][lane] and, for the biases, the sums
// of each word's. The last block ends with the last word, and what it shares with the one before is zero.
template <int kBits, int kRows> class WordByWord {
 public:
  static constexpr int kCodes = 32 / kBits;

  WordByWord(const Format& f, const float* x, int64_t rows)
      : words_(f.words), span_bits_(__builtin_ctzll(f.span)), blocks_((f.words + kLanes - 1) / kLanes), x_(blocks_ * kRows * kBlock) {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t word = block * kLanes; word < std::min(words_, (block + 1) * kLanes); ++word) {
          const float* from = x + r * f.inputs + word * kCodes;
          float *to = x_.data() + (block * kRows + r) * kBlock + word - first(block), total = 0;
          for (int j = 0; j < kCodes; ++j) to[j * kLanes] = from[j], total += from[j];
          to[kCodes * kLanes] = total;
        }
  }

  template <int kSpan, class S> void multiply(const Row<S>& row, Floats* total) const {
    if (words_ < kLanes) return multiply_short<kSpan>(row, total);
    for (int64_t block = 0, blocks = blocks_; block < blocks; ++block) {
      const int64_t word = first(block), group = word >> span_bits_;
      Words words;
      std::memcpy(&words, row.words + word, sizeof words);
      add(words, spread<kSpan>(row.scales + group), spread<kSpan>(row.biases + group), block, total);
    }
  }

 private:
  static constexpr int64_t kBlock = (kCodes + 1) * kLanes;  // floats of a row of a block

  int64_t first(int64_t block) const { return std::max<int64_t>(std::min(block * kLanes, words_ - kLanes), 0); }

  __attribute__((always_inline)) void add(Words words, Floats scale, Floats bias, int64_t block, Floats* total) const {
    Floats sums[kRows][2] = {};
    const float* x = x_.data() + block * kRows * kBlock;
#pragma GCC unroll 16
    for (int j = 0; j < kCodes; ++j) {
      const Floats codes = lowest<kBits>(words >> (kBits * j));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][j % 2] += codes * load(x + r * kBlock + j * kLanes);
    }
    for (int r = 0; r < kRows; ++r) total[r] += (sums[r][0] + sums[r][1]) * scale + bias * load(x + r * kBlock + kCodes * kLanes);
  }

  // A row shorter than a vector.
  template <int kSpan, class S> void multiply_short(const Row<S>& row, Floats* total) const {
    Words words{};
    S scales[kLanes] = {}, biases[kLanes] = {};
    const int64_t groups = ((words_ - 1) >> span_bits_) + 1;
    std::memcpy(&words, row.words, words_ * sizeof *row.words);
    std::memcpy(scales, row.scales, groups * sizeof(S)), std::memcpy(biases, row.biases, groups * sizeof(S));
    add(words, spread<kSpan>(scales), spread<kSpan>(biases), 0, total);
  }

  int64_t words_, span_bits_, blocks_;  // a group is a power of two of words
  std::vector<float> x_;
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

template <class Seen, int kSpan, int kRows, class S>
void few_rows(const Call& call, const Format& f, int64_t rows, const float* x, Row<S> weight, float* y) {
  const Seen seen(f, x, rows);
  call.parallel(f.outputs, 1 + (int64_t{1} << 14) / (f.words + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      Floats total[kRows] = {};
      seen.template multiply<kSpan>(Row<S>{weight.words + o * f.words, weight.scales + o * f.groups, weight.biases + o * f.groups, weight.last}, total);
      for (int64_t r = 0; r < rows; ++r) y[r * f.outputs + o] = sum(total[r]);
    }
  });
}

template <int kBits, int kSpan, class S>
void few_rows(const Call& call, const Format& f, int64_t rows, const float* x, Row<S> weight, float* y) {
  const auto run = [&](auto count, int64_t first) {
    constexpr int kRows = decltype(count)::value;
    using Seen = std::conditional_t<32 % kBits == 0, WordByWord<kBits, kRows>, UnitByUnit<kBits, kRows>>;
    few_rows<Seen, kSpan, kRows, S>(call, f, std::min<int64_t>(kRows, rows - first), x + first * f.inputs, weight, y + first * f.outputs);
  };
  if (rows == 1) return run(std::integral_constant<int, 1>{}, 0);
  for (int64_t first = 0; first < rows; first += 4) run(std::integral_constant<int, 4>{}, first);
}

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
