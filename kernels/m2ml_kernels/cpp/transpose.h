// Rows of a matrix as packed columns, transposed in registers a square of kLanes x kLanes at a time.
#pragma once

#include "matrix.h"

namespace m2ml {

// The first halves of a and of b in turn, or the second.
template <int kHalf, int... kLane> Floats in_turn(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kHalf * kLanes / 2 + kLane / 2 + kLane % 2 * kLanes)...);
}

// The transpose of a square of kLanes rows: each round moves one bit of an element's row into its column.
inline void transpose(Floats (&rows)[kLanes]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Floats next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = in_turn<0>(rows[i], rows[i + kLanes / 2], lanes);
      next[2 * i + 1] = in_turn<1>(rows[i], rows[i + kLanes / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// kLanes columns of a panel of kColumns from as many rows, `apart` elements apart, of which `count` are there: the others
// are zero.
template <int64_t kColumns = kTileColumns, class T> void pack_vector(const T* rows, int64_t apart, int64_t count, int64_t depth, float* to) {
  each_vector(depth, [=](int64_t k, auto whole, int64_t n) {
    Floats square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = i < count ? load_at(rows + i * apart + k, whole, n) : splat(0);
    transpose(square);
    for (int64_t i = 0; i < n; ++i) store(to + (k + i) * kColumns, square[i]);
  });
}

}  // namespace m2ml
