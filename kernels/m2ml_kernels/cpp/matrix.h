// Small matrix products in float32 registers: the inner loops of attention and of dense layers.
//
// C[rows, kTileColumns] (+)= A[rows, depth] B[depth, kTileColumns]: a tile of C stays in registers while the depth is walked.
#pragma once

#include "vector.h"

namespace m2ml {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVectors = 2;
#else
constexpr int kTileRows = 6, kTileVectors = 2;
#endif
constexpr int64_t kTileColumns = kTileVectors * kLanes;

// One tile. a: element (i, k) at a[i * kRow + k * kStep], but that after every `across` of k the next is `jump` further
// on; b: rows one after the other; c: element (i, j) at c[i * ldc + j].
template <int kRows, bool kAdd, int64_t kRow, int64_t kStep>
inline void tile(int64_t depth, const float* a, int64_t across, int64_t jump, const float* b, float* c, int64_t ldc) {
  Floats total[kRows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) total[i][j] = splat(0);
  for (; depth > 0; depth -= across, a += jump) {
    const float *from = a, *const end = b + std::min(depth, across) * kTileColumns;
    for (; b != end; b += kTileColumns, from += kStep) {
      Floats right[kTileVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) right[j] = load(b + j * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Floats left = splat(from[i * kRow]);
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j) total[i][j] += left * right[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) {
      float* to = c + i * ldc + j * kLanes;
      store(to, kAdd ? load(to) + total[i][j] : total[i][j]);
    }
}

// Any number of rows up to kTileRows.
template <bool kAdd, int64_t kRow, int64_t kStep>
inline void tile_rows(int64_t rows, int64_t depth, const float* a, int64_t across, int64_t jump, const float* b, float* c, int64_t ldc) {
  switch (rows) {
#define M2ML_ROWS(n) case n: return tile<n, kAdd, kRow, kStep>(depth, a, across, jump, b, c, ldc);
    M2ML_ROWS(1) M2ML_ROWS(2) M2ML_ROWS(3) M2ML_ROWS(4) M2ML_ROWS(5) M2ML_ROWS(6)
#if defined(__AVX512F__)
    M2ML_ROWS(7) M2ML_ROWS(8) M2ML_ROWS(9) M2ML_ROWS(10) M2ML_ROWS(11) M2ML_ROWS(12)
#endif
#undef M2ML_ROWS
  }
}

}  // namespace m2ml
