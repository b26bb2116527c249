// Rows of a matrix as packed columns, transposed in registers a square of kLanes x kLanes at a time.
#pragma once

#include "matrix.h"

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

// kLanes columns of a panel of kTileColumns from as many rows, `apart` elements apart, of which `count` are there: the
// others are zero.
template <class T> void pack_vector(const T* rows, int64_t apart, int64_t count, int64_t depth, float* to) {
  each_vector(depth, [=](int64_t k, auto whole, int64_t n) {
    Floats square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = i < count ? load_at(rows + i * apart + k, whole, n) : splat(0);
    transpose(square);
    for (int64_t i = 0; i < n; ++i) store(to + (k + i) * kTileColumns, square[i]);
  });
}

}  // namespace m2ml
