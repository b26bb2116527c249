// y = activation(x weightᵀ + bias), weight [outputs, inputs].
//
// See dense.h; panels of the weight are transposed in registers while they are packed. Must move: x, weight and y once;
// moves x once for each panel (from cache where it fits), the rest once.
#include "dense.h"

namespace m2ml {

// The first half of a and of b, or the second, in turn.
inline Floats first_in_turn(Floats a, Floats b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#endif
}
inline Floats second_in_turn(Floats a, Floats b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
}

// The transpose of a square of kLanes rows: each round moves one bit of an element's row into its column.
inline void transpose(Floats (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Floats next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = first_in_turn(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = second_in_turn(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// kLanes columns of the panel from rows of the weight, of which `outputs` are there.
inline void pack_vector(const float* weight, int64_t outputs, int64_t depth, float* to) {
  each_vector(depth, [=](int64_t k, auto whole, int64_t n) {
    Floats square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = i < outputs ? load_at(weight + i * depth + k, whole, n) : splat(0);
    transpose(square);
    for (int64_t i = 0; i < n; ++i) store(to + (k + i) * kTileColumns, square[i]);
  });
}

}  // namespace m2ml

// in: x[*b n], weight[m n], bias[m]; out: y[*b m]; static: activation.
M2ML_KERNEL(linear_bias_act) {
  using namespace m2ml;
  const Array x = call.in(0), weight = call.in(1);
  const int64_t depth = weight.size(1), outputs = weight.size(0);
  const Dense v{x.rows(-1), depth, outputs, call.integer("activation"), call.in(2).data<float>(), call.out(0).data<float>()};
  if (v.rows == 0 || outputs == 0) return;
  const float *rows = x.data<float>(), *from = weight.data<float>();
  dense(call, v, false, [=](int64_t first, int64_t, float*) { return rows + first * depth; },
        [=](int64_t start, float* to) {
          for (int64_t j = 0; j < kTileColumns; j += kLanes) pack_vector(from + (start + j) * depth, outputs - start - j, depth, to + j);
        });
}
