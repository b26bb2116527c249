// y[rows, outputs] = activation(left[rows, depth] weight[depth, outputs] + bias), whatever left and weight are stored as.
//
// A panel of the weight's columns is packed once for a block of rows; tiles of the product stay in registers, and bias
// and activation are applied while a tile is in the first-level cache.
#pragma once

#include <limits>
#include <memory>

#include "activation.h"
#include "matrix.h"
#include "team.h"

namespace m2ml {

struct Dense {
  int64_t rows, depth, outputs, activation;
  const float* bias;
  float* y;
};

// A tile of kRows rows and kVectors vectors of columns of the product: finish(i, j, total) takes vector j of row i.
template <int kRows, int kVectors, class Finish>
inline void dense_tile(int64_t depth, const float* a, const float* b, const Finish& finish) {
  Floats total[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) total[i][j] = splat(0);
  for (int64_t k = 0; k < depth; ++k) {
    Floats right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + k * kTileColumns + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Floats left = splat(a[i * depth + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) total[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) finish(i, j, total[i][j]);
}

// The same of up to kRows rows.
template <int kVectors, int kRows = kTileRows, class Finish>
inline void dense_rows(int64_t rows, int64_t depth, const float* a, const float* b, const Finish& finish) {
  if constexpr (kRows > 0) {
    if (rows == kRows) dense_tile<kRows, kVectors>(depth, a, b, finish);
    else dense_rows<kVectors, kRows - 1>(rows, depth, a, b, finish);
  }
}

// What an activation cuts off where that is all it does: everything below `low` and above `high`.
struct Cut {
  bool all;
  float low, high;
  static Cut of(int64_t activation) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    return {activation <= 2, activation ? 0.0f : -kInfinity, activation == 2 ? 6.0f : kInfinity};
  }
};

// Rows [row, row + count) of kVectors vectors of columns from `start` on, from the registers to where they belong.
template <int kVectors>
inline void tile_to_result(const Dense& v, const Cut& cut, int64_t row, int64_t count, int64_t start, const float* a, const float* b) {
  float* to = v.y + row * v.outputs + start;
  const float* bias = v.bias + start;
  dense_rows<kVectors>(count, v.depth, a, b, [=, outputs = v.outputs, low = splat(cut.low), high = splat(cut.high)](int i, int j, Floats total) {
    total += load(bias + j * kLanes);
    total = where(total <= low, low, total);
    store(to + i * outputs + j * kLanes, where(total >= high, high, total));
  });
}

// The same by way of memory: of an activation that computes, which is not repeated for every vector of a tile, or of
// columns that are no whole vectors.
template <int kVectors>
inline void tile_by_memory(const Dense& v, int64_t row, int64_t count, int64_t start, const float* a, const float* b) {
  float tile[kTileRows * kTileColumns];
  dense_rows<kVectors>(count, v.depth, a, b, [&](int i, int j, Floats total) { store(tile + i * kTileColumns + j * kLanes, total); });
  with_activation(v.activation, [&](auto activate) {
    for (int64_t i = 0; i < count; ++i) {
      float* to = v.y + (row + i) * v.outputs + start;
      const float *from = tile + i * kTileColumns, *bias = v.bias + start;
      each_vector(std::min(kTileColumns, v.outputs - start), [=](int64_t j, auto whole, int64_t n) {
        store_at(to + j, activate(load(from + j) + load_at(bias + j, whole, n)), whole, n);
      });
    }
  });
}

// left(first, last, scratch) gives rows [first, last), depth floats each, where they lie or, if `gathered`, in scratch.
// pack(start, to) writes columns [start, start + kTileColumns) of the weight, row after row, with zeros beyond the last.
template <class Left, class Pack> void dense(const Call& call, const Dense& v, bool gathered, const Left& left, const Pack& pack) {
  const int64_t panels = (v.outputs + kTileColumns - 1) / kTileColumns;
  // Rows of a block: what is gathered stays in the second-level cache. Blocks, and tiles of a block, are nearly equal: one
  // of a single row takes as long as one of several.
  const int64_t most = std::clamp<int64_t>((int64_t{1} << 16) / std::max<int64_t>(v.depth, 1) / kTileRows, 1, 8) * kTileRows;
  const int64_t blocks = (v.rows + most - 1) / most;
  const int64_t work = std::min(most, v.rows) * v.depth * kTileColumns;
  const Cut cut = Cut::of(v.activation);
  Team::parallel(call, blocks * panels, 1 + (int64_t{1} << 16) / std::max<int64_t>(work, 1), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> packed(new float[v.depth * kTileColumns]), scratch(new float[gathered ? most * v.depth : 0]);
    const float* rows = nullptr;
    int64_t held = -1, ready = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      // What costs more changes less often: a gathered block serves all panels, else a packed panel all blocks.
      const int64_t block = gathered ? unit / panels : unit % blocks, panel = gathered ? unit % panels : unit / blocks;
      const int64_t first = v.rows * block / blocks, last = v.rows * (block + 1) / blocks, start = panel * kTileColumns;
      if (held != block) rows = left(first, last, scratch.get()), held = block;
      if (ready != panel) pack(start, packed.get()), ready = panel;
      const int64_t tiles = (last - first + kTileRows - 1) / kTileRows, columns = v.outputs - start;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t from = (last - first) * t / tiles, count = (last - first) * (t + 1) / tiles - from;
        const float* a = rows + from * v.depth;
        if (cut.all && columns >= kTileColumns) tile_to_result<kTileVectors>(v, cut, first + from, count, start, a, packed.get());
        else if (cut.all && columns == kLanes) tile_to_result<1>(v, cut, first + from, count, start, a, packed.get());
        else if (columns > kLanes) tile_by_memory<kTileVectors>(v, first + from, count, start, a, packed.get());
        else tile_by_memory<1>(v, first + from, count, start, a, packed.get());
      }
    }
  });
}

}  // namespace m2ml
