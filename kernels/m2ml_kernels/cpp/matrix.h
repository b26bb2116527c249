// Small matrix products in float32 registers: the inner loops of attention and of dense layers.
//
// C[rows, kTileColumns] (+)= A[rows, depth] B[depth, kTileColumns]: a tile of C stays in registers while the depth is walked.
#pragma once

#include "vector.h"

namespace m2ml {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 6, kTileVectors = 2;
#endif
constexpr int64_t kTileColumns = kTileVectors * kLanes;

// One tile. a: element (i, k) at a[i * row + k * step]; b: row k at b + k * ldb; c: element (i, j) at c[i * ldc + j].
template <int kRows, bool kAdd>
inline void tile(int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc) {
  Floats total[kRows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) total[i][j] = kAdd ? load(c + i * ldc + j * kLanes) : splat(0);
  for (int64_t k = 0; k < depth; ++k) {
    Floats right[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) right[j] = load(b + k * ldb + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Floats left = splat(a[i * row + k * step]);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) total[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) store(c + i * ldc + j * kLanes, total[i][j]);
}

// Any number of rows up to kTileRows.
template <bool kAdd>
inline void tile_rows(int64_t rows, int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb,
                      float* c, int64_t ldc) {
  switch (rows) {
#define M2ML_ROWS(n) case n: return tile<n, kAdd>(depth, a, row, step, b, ldb, c, ldc);
    M2ML_ROWS(1) M2ML_ROWS(2) M2ML_ROWS(3) M2ML_ROWS(4) M2ML_ROWS(5) M2ML_ROWS(6)
#if defined(__AVX512F__)
    M2ML_ROWS(7) M2ML_ROWS(8) M2ML_ROWS(9) M2ML_ROWS(10) M2ML_ROWS(11) M2ML_ROWS(12)
#endif
#undef M2ML_ROWS
  }
}

}  // namespace m2ml
