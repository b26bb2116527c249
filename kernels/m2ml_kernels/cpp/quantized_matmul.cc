// y = x wᵀ with w = scale * code + bias in groups, codes of 2, 4 or 8 bits packed lowest first in 32-bit words.
//
// Few rows: y = sum over groups of scale (codes · x) + bias (sum of x); a vector holds one word per lane, x is permuted
// once to match. Must move: packed words, scales and biases once; moves just that. Many rows: a panel of the weight is
// decoded once per 32 outputs and multiplied in register tiles.
#include <memory>
#include <vector>

#include "matrix.h"

namespace m2ml {

constexpr int64_t kFew = 8;       // rows of x that are multiplied word by word
constexpr int64_t kDepth = 256;   // rows of a decoded panel

struct Format { int64_t outputs, inputs, group, groups, words, span; };  // span: words of a group

// Lane l holds the scale of the group of word l; kSpan words share one.
template <int kSpan, class S> Floats spread(const S* scales) {
  Floats x;
  for (int l = 0; l < kLanes; ++l) x[l] = to_float(scales[l / kSpan]);
  return x;
}

inline Floats code_floats(Words words, int shift, uint32_t mask) {
  return __builtin_convertvector((Ints)((words >> shift) & mask), Floats);
}

template <class S> float dot(const S* a, const float* b, int64_t n) {
  Floats total = splat(0);
  each_vector(n, [&](int64_t i, auto whole, int64_t count) { total += load_at(a + i, whole, count) * load_at(b + i, whole, count); });
  return sum(total);
}

// x as the words of a row see it: permuted[block][code][lane], zero beyond the end; and the sum of x per group.
template <int kBits> struct Seen {
  static constexpr int kCodes = 32 / kBits;
  int64_t blocks;
  std::vector<float> permuted, sums;
  Seen(const float* x, const Format& f) : blocks((f.words + kLanes - 1) / kLanes), permuted(blocks * kLanes * kCodes), sums(f.groups) {
    for (int64_t i = 0; i < f.inputs; ++i) {
      const int64_t word = i / kCodes, block = word / kLanes;
      permuted[(block * kCodes + i % kCodes) * kLanes + word % kLanes] = x[i];
      sums[i / f.group] += x[i];
    }
  }
};

// One output of up to kFew rows.
template <int kBits, int kSpan, class S>
void output(const Format& f, const uint32_t* words, const S* scales, const S* biases, const std::vector<Seen<kBits>>& seen, float* y) {
  constexpr int kCodes = 32 / kBits;
  constexpr uint32_t kMask = (uint32_t{1} << kBits) - 1;
  Floats total[kFew];
  const int rows = static_cast<int>(seen.size());
  for (int r = 0; r < rows; ++r) total[r] = splat(0);
  for (int64_t block = 0; block < seen[0].blocks; ++block) {
    const int64_t left = f.words - block * kLanes;
    Words codes{};
    std::memcpy(&codes, words + block * kLanes, std::min<int64_t>(left, kLanes) * 4);
    Floats scale;
    if (left >= kLanes) {
      scale = spread<kSpan>(scales + block * kLanes / f.span);
    } else {
      S padded[kLanes] = {};
      std::memcpy(padded, scales + block * kLanes / f.span, ((left + kSpan - 1) / kSpan) * sizeof(S));
      scale = spread<kSpan>(padded);
    }
    for (int r = 0; r < rows; ++r) {
      const float* x = seen[r].permuted.data() + block * kCodes * kLanes;
      Floats a = splat(0), b = splat(0);
#pragma GCC unroll 16
      for (int j = 0; j < kCodes; j += 2) {
        a += code_floats(codes, kBits * j, kMask) * load(x + j * kLanes);
        b += code_floats(codes, kBits * (j + 1), kMask) * load(x + (j + 1) * kLanes);
      }
      total[r] += (a + b) * scale;
    }
  }
  for (int r = 0; r < rows; ++r) y[r] = sum(total[r]) + dot(biases, seen[r].sums.data(), f.groups);
}

template <int kBits, int kSpan, class S>
void few_rows(const Call& call, const Format& f, int64_t rows, const float* x, const uint32_t* words, const S* scales, const S* biases, float* y) {
  std::vector<Seen<kBits>> seen;
  for (int64_t r = 0; r < rows; ++r) seen.emplace_back(x + r * f.inputs, f);
  call.parallel(f.outputs, 1 + (int64_t{1} << 16) / (f.words + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      float results[kFew];
      output<kBits, kSpan, S>(f, words + o * f.words, scales + o * f.groups, biases + o * f.groups, seen, results);
      for (int64_t r = 0; r < rows; ++r) y[r * f.outputs + o] = results[r];
    }
  });
}

// Not inlined, so that its register tiles are compiled once for all formats.
__attribute__((noinline)) void product_of_panel(int64_t rows, int64_t depth, const float* x, int64_t row, const float* panel, float* total) {
  product<true>(rows, kTileColumns, depth, x, row, 1, panel, 0, kTileColumns, total, kTileColumns);
}

// Elements [begin, begin + depth) of a row of the weight, kTileColumns apart.
template <int kBits, class S>
void decode(const Format& f, const uint32_t* words, const S* scales, const S* biases, int64_t begin, int64_t depth, float* to) {
  constexpr int kCodes = 32 / kBits;
  for (int64_t i = 0; i < depth; i += kCodes) {
    const int64_t at = begin + i;
    const float scale = to_float(scales[at / f.group]), bias = to_float(biases[at / f.group]);
    uint32_t word = words[at / kCodes];
    for (int j = 0; j < kCodes; ++j, word = kBits < 32 ? word >> (kBits & 31) : 0)
      to[(i + j) * kTileColumns] = scale * static_cast<float>(word & ((uint32_t{1} << kBits) - 1)) + bias;
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
  switch (std::min<int64_t>(f.span, kLanes)) {
#define M2ML_SPAN(n) case n: return few_rows<kBits, n, S>(call, f, rows, x, words, scales, biases, y);
    M2ML_SPAN(2) M2ML_SPAN(4) M2ML_SPAN(8)
#if defined(__AVX512F__)
    M2ML_SPAN(16)
#endif
#undef M2ML_SPAN
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
    const auto run = bits == 2 ? multiply<2, S> : bits == 4 ? multiply<4, S> : multiply<8, S>;
    run(call, f, rows, half ? wide_x.get() : x.data<float>(), packed.data<uint32_t>(), scales.data<S>(), biases.data<S>(), half ? wide_y.get() : y.data<float>());
  });
  if (half) with_type(y.type(), [&](auto* t) { convert(call, wide_y.get(), y.data<std::remove_pointer_t<decltype(t)>>(), rows * f.outputs); });
}
