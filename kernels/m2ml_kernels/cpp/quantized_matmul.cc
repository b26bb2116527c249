// y = x wᵀ with w = scale * code + bias in groups, or scale * number of mxfp4; codes of 2 to 8 bits, a stream of bits in
// 32-bit words, lowest first.
//
// Few rows: y = sum over groups of scale (codes · x) + bias (sum of x). Where codes do not cross words (2, 4 and 8 bits) x
// is held as whole numbers (word_by_word.h), and several rows of the weight meet each. Otherwise (3, 5 and 6 bits) a
// vector holds neighbouring codes, cut out of the 32 that end with a word, times x in floats. Must move: packed words,
// scales and biases once; moves just that. Many rows: a panel of the weight, kPanel outputs wide, is decoded once and
// multiplied in register tiles.
#include <memory>

#include "team.h"
#include "transpose.h"
#include "word_by_word.h"

namespace m2ml {

constexpr int64_t kFew = 8;       // rows of x that are multiplied word by word
constexpr int64_t kDepth = 2048;  // rows of a decoded panel, at most
#if defined(__AVX512F__)
constexpr int kPanelRows = 8, kPanelVectors = 3;  // of a tile: its sums, a row of the panel and an element of x are registers
constexpr int kOneRow = 4;                        // rows of the weight that one row of x meets at once: so are their codes
#else
constexpr int kPanelRows = 4, kPanelVectors = 3;
constexpr int kOneRow = 2;
#endif
constexpr int64_t kPanel = kPanelVectors * kLanes;
constexpr int64_t kAhead = 1 << 11;  // words from what is read to what is asked for, about
constexpr int64_t kGrain = 4096;  // words for which a second thread is worth its while

// The team's work of one type: it is compiled once for all formats.
inline void in_parallel(const Call& call, int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& work) {
  Team::parallel(call, count, grain, work);
}

// 32 codes are kBits words, which always belong to one group: x stays in order, beside its sums by lane.
template <int kBits, int kRows> class UnitByUnit {
 public:
  __attribute__((noinline)) UnitByUnit(const Format& f, const float* x, int64_t rows)
      : inputs_(f.inputs), group_(f.group), x_(kRows * f.inputs), sums_(kRows * f.groups * kLanes) {
    std::copy_n(x, rows * inputs_, x_.data());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < inputs_; ++i) sums_[(i / group_ * kRows + r) * kLanes + i % kLanes] += x[r * inputs_ + i];
  }

  bool holds() const { return true; }

  template <int, int kOutputs, class S> void multiply(const Format& f, const Row<S>& weight, Floats (&total)[kOutputs][kRows]) const {
    std::memset(total, 0, sizeof total);
    for (int o = 0; o < kOutputs; ++o) {
      const uint32_t* words = weight.words + o * f.words;
      for (int64_t group = 0; group < f.groups; ++group) {
        Floats sums[kRows] = {};
        for (int64_t i = group * group_; i < (group + 1) * group_; i += 32) add(words + i / 32 * kBits, weight.last, i, sums);
        const float scale = to_float(weight.scales[o * f.groups + group]), bias = to_float(weight.biases[o * f.groups + group]);
        for (int r = 0; r < kRows; ++r) total[o][r] += sums[r] * scale + bias * load(sums_.data() + (group * kRows + r) * kLanes);
      }
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
  template <size_t kFirst, size_t... kLane>
  __attribute__((always_inline)) void step(Words unit, const float* x, Floats* sums, std::index_sequence<kLane...>) const {
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

// kRows rows of x times kPanel columns of the weight, in registers; y is what is there or zero, and they are added.
template <int kRows, bool kAdd>
void panel_tile(int64_t depth, const float* x, int64_t row, const float* panel, float* y, int64_t y_row) {
  Floats total[kRows][kPanelVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kPanelVectors; ++j) total[i][j] = kAdd ? load(y + i * y_row + j * kLanes) : splat(0);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
    Floats right[kPanelVectors];
    for (int j = 0; j < kPanelVectors; ++j) right[j] = load(panel + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats left = splat(x[i * row + k]);
#pragma GCC unroll 3
      for (int j = 0; j < kPanelVectors; ++j) total[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kPanelVectors; ++j) store(y + i * y_row + j * kLanes, total[i][j]);
}

template <bool kAdd> void panel_rows(int64_t rows, int64_t depth, const float* x, int64_t row, const float* panel, float* y, int64_t y_row) {
  switch (rows) {
#define M2ML_ROWS(n) case n: return panel_tile<n, kAdd>(depth, x, row, panel, y, y_row);
    M2ML_ROWS(1) M2ML_ROWS(2) M2ML_ROWS(3) M2ML_ROWS(4)
#if defined(__AVX512F__)
    M2ML_ROWS(5) M2ML_ROWS(6) M2ML_ROWS(7) M2ML_ROWS(8)
#endif
#undef M2ML_ROWS
  }
}

// All rows of x times a panel, of whose columns the first `columns` are outputs. Not inlined, so that its register tiles
// are compiled once for all formats.
__attribute__((noinline)) void product_of_panel(int64_t rows, int64_t depth, const float* x, int64_t row, const float* panel,
                                                int64_t columns, bool add, float* y, int64_t y_row) {
  for (int64_t i = 0; i < rows; i += kPanelRows) {
    const int64_t count = std::min<int64_t>(kPanelRows, rows - i);
    const auto run = add ? panel_rows<true> : panel_rows<false>;
    if (columns == kPanel) {
      run(count, depth, x + i * row, row, panel, y + i * y_row, y_row);
      continue;
    }
    float part[kPanelRows * kPanel] = {};
    for (int64_t r = 0; add && r < count; ++r) std::copy_n(y + (i + r) * y_row, columns, part + r * kPanel);
    run(count, depth, x + i * row, row, panel, part, kPanel);
    for (int64_t r = 0; r < count; ++r) std::copy_n(part + r * kPanel, columns, y + (i + r) * y_row);
  }
}

// kLanes rows of the weight, or as many as there are, from row o on: elements [begin, begin + depth), each row a lane of a
// vector; the lanes of others are between.
template <class Codes> void decode(const Format& f, const Weight& weight, int64_t o, int64_t begin, int64_t depth, float* to) {
  constexpr int kBits = Codes::kBits;
  const int64_t count = std::clamp<int64_t>(f.outputs - o, 0, kLanes), first = begin / f.group, groups = (begin + depth - 1) / f.group - first + 1;
  thread_local std::vector<Floats> memory;
  memory.resize(depth * kBits / 32 + 3 * groups);
  float *unit = reinterpret_cast<float*>(memory.data()), *scale = unit + depth * kBits / 32 * kLanes;
  float *bias = scale + groups * kLanes, *rows = bias + groups * kLanes;
  pack_vector<kLanes>(reinterpret_cast<const float*>(weight.words) + o * f.words + begin * kBits / 32, f.words, count, depth * kBits / 32, unit);
  const auto pack = [&](const Numbers& numbers, float* to) {
    for (int64_t i = 0; i < count; ++i) numbers.get((o + i) * f.groups + first, groups, rows + i * groups);
    pack_vector<kLanes>(rows, groups, count, groups, to);
  };
  const bool biased = weight.biases.from;
  pack(weight.scales, scale);
  if (biased) pack(weight.biases, bias);
  for (int64_t k = 0; k < depth; k += 32, unit += kBits * kLanes) {
    const int64_t group = ((begin + k) / f.group - first) * kLanes;
    const Floats by = load(scale + group), from = biased ? load(bias + group) : Floats{};
#pragma GCC unroll 32
    for (int j = 0; j < 32; ++j, to += kPanel) {
      const int word = j * kBits / 32, shift = j * kBits % 32;
      Words code, next;
      std::memcpy(&code, unit + word * kLanes, sizeof code);
      code >>= shift;
      if (shift + kBits > 32) std::memcpy(&next, unit + (word + 1) * kLanes, sizeof next), code |= next << (32 - shift);
      store(to, by * Codes::values(code & ((1u << kBits) - 1)) + from);
    }
  }
}

template <class Codes> void many_rows(const Call& call, const Format& f, int64_t rows, const float* x, const Weight& weight, float* y) {
  in_parallel(call, (f.outputs + kPanel - 1) / kPanel, 1, [&](int64_t first, int64_t last) {
    thread_local std::vector<Floats> memory;
    const int64_t most = std::min(kDepth, f.inputs);
    memory.resize(kPanelVectors * most);
    float* panel = reinterpret_cast<float*>(memory.data());
    for (int64_t start = first * kPanel; start < std::min(last * kPanel, f.outputs); start += kPanel)
      for (int64_t k = 0; k < f.inputs; k += most) {
        const int64_t depth = std::min(most, f.inputs - k), columns = std::min(kPanel, f.outputs - start);
        for (int64_t o = start; o < start + kPanel; o += kLanes) decode<Codes>(f, weight, o, k, depth, panel + o - start);
        product_of_panel(rows, depth, x + k, f.inputs, panel, columns, k > 0, y + start, f.outputs);
      }
  });
}

// y of kOutputs rows of the weight from row o on, for all rows of x; `y_row` apart.
template <class Seen, int kSpan, int kRows, int kOutputs, class S>
void outputs(const Seen& seen, const Format& f, int64_t rows, const Row<S>& weight, int64_t o, float* y, int64_t y_row) {
  Floats total[kOutputs][kRows];
  const Row<S> row{weight.words + o * f.words, weight.scales + o * f.groups, weight.biases + o * f.groups, weight.last, weight.ahead};
  for (int64_t i = row.ahead * f.groups, end = i + kOutputs * f.groups; i < end; i += 64 / sizeof(S)) {
    fetch(row.scales + i);
    if constexpr (kBiased<S>) fetch(row.biases + i);
  }
  seen.template multiply<kSpan, kOutputs>(f, row, total);
  if constexpr (kRows == 1 && kOutputs == 4) {
    const Floats each[] = {total[0][0], total[1][0], total[2][0], total[3][0]};
    sums_of_four(each, y);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      for (int i = 0; i < kOutputs; ++i) y[r * y_row + i] = sum(total[i][r]);
  }
}

// False where it does not take them.
template <class Seen, int kSpan, int kRows, class S>
bool few_rows(const Call& call, const Format& f, int64_t rows, const float* x, const Row<S>& weight, float* y) {
  constexpr int kTogether = kRows == 1 ? kOneRow : 1;
  if (f.outputs < kTogether) return false;
  const Seen seen(f, x, rows);
  if (!seen.holds()) return false;
  in_parallel(call, (f.outputs + kTogether - 1) / kTogether, 1 + kGrain / (kTogether * f.words + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kTogether; o < std::min(end * kTogether, f.outputs); o += kTogether) {
      const int64_t left = f.outputs - o;
      if (left >= kTogether) {
        outputs<Seen, kSpan, kRows, kTogether>(seen, f, rows, weight, o, y + o, f.outputs);
      } else {  // some were made before
        float last[kTogether];
        outputs<Seen, kSpan, kRows, kTogether>(seen, f, rows, weight, f.outputs - kTogether, last, kTogether);
        std::copy_n(last + kTogether - left, left, y + o);
      }
    }
  });
  return true;
}

template <class Codes, int kSpan, class S>
void few_rows(const Call& call, const Format& f, int64_t rows, const float* x, Row<S> weight, float* y) {
  const auto run = [&](auto most, int64_t first) {
    constexpr int kRows = decltype(most)::value;
    using Seen = std::conditional_t<32 % Codes::kBits == 0, WordByWord<Codes, kRows>, UnitByUnit<Codes::kBits, kRows>>;
    const int64_t count = std::min<int64_t>(kRows, rows - first);
    const float* from = x + first * f.inputs;
    float* to = y + first * f.outputs;
    if (!few_rows<Seen, kSpan, kRows, S>(call, f, count, from, weight, to))
      many_rows<Codes>(call, f, count, from, {weight.words, Numbers::of(weight.scales), Numbers::of(weight.biases)}, to);
  };
  if (rows == 1) return run(std::integral_constant<int, 1>{}, 0);
  for (int64_t first = 0; first < rows; first += 4) run(std::integral_constant<int, 4>{}, first);
}

template <class Codes, class S>
void multiply(const Call& call, const Format& f, int64_t rows, const float* x, const uint32_t* words, const S* scales, const S* biases, float* y) {
  if (rows > kFew) return many_rows<Codes>(call, f, rows, x, {words, Numbers::of(scales), Numbers::of(biases)}, y);
  const Row<S> weight{words, scales, biases, words + f.outputs * f.words - (kLanes - 1), kOneRow * std::max<int64_t>(kAhead / (kOneRow * f.words), 1)};
  constexpr int kSmallest = Codes::kBits;  // words of a group of 32
  if constexpr (32 % Codes::kBits) return few_rows<Codes, kLanes, S>(call, f, rows, x, weight, y);
  else if (f.span == kSmallest) return few_rows<Codes, std::min(kSmallest, kLanes), S>(call, f, rows, x, weight, y);
  else if constexpr (kBiased<S>) {
    if (f.span == 2 * kSmallest) return few_rows<Codes, std::min(2 * kSmallest, kLanes), S>(call, f, rows, x, weight, y);
    if (f.span == 4 * kSmallest) return few_rows<Codes, std::min(4 * kSmallest, kLanes), S>(call, f, rows, x, weight, y);
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

// in: x[*b n], packed[m words], scales[m groups], biases[m groups] unless scales are of mxfp4; out: y[*b m]; static: bits,
// group_size.
M2ML_KERNEL(quantized_matmul) {
  using namespace m2ml;
  const Array x = call.in(0), packed = call.in(1), scales = call.in(2), y = call.out(0);
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
  const float* from = half ? wide_x.get() : x.data<float>();
  float* to = half ? wide_y.get() : y.data<float>();
  const auto* words = packed.data<uint32_t>();
  if (call.arguments() == 3) multiply<E2M1, E8M0>(call, f, rows, from, words, scales.data<E8M0>(), nullptr, to);
  else with_type(scales.type(), [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    const auto run = bits == 2 ? multiply<Affine<2>, S> : bits == 3 ? multiply<Affine<3>, S> : bits == 4 ? multiply<Affine<4>, S>
                   : bits == 5 ? multiply<Affine<5>, S> : bits == 6 ? multiply<Affine<6>, S> : multiply<Affine<8>, S>;
    run(call, f, rows, from, words, scales.data<S>(), call.in(3).data<S>(), to);
  });
  if (half) with_type(y.type(), [&](auto* t) { convert(call, wide_y.get(), y.data<std::remove_pointer_t<decltype(t)>>(), rows * f.outputs); });
}
