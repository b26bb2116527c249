// y[rows, outputs] = activation(left[rows, depth] weight[depth, outputs] + bias), whatever left and weight are stored as.
//
// A panel of the weight's columns is packed once for a block of rows; tiles of the product stay in registers, and bias
// and activation are applied while a tile is in the first-level cache.
#pragma once

#include <vector>

#include "activation.h"
#include "matrix.h"
#include "team.h"

namespace m2ml {

struct Dense {
  int64_t rows, depth, outputs, activation;
  const float* bias;
  float* y;
};

// A tile of which only the first vector of columns is wanted: half the work of `tile`.
template <int kRows> inline void narrow_tile(int64_t depth, const float* a, const float* b, float* c) {
  Floats total[kRows];
  for (int i = 0; i < kRows; ++i) total[i] = splat(0);
  for (int64_t k = 0; k < depth; ++k) {
    const Floats right = load(b + k * kTileColumns);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) total[i] += splat(a[i * depth + k]) * right;
  }
  for (int i = 0; i < kRows; ++i) store(c + i * kTileColumns, total[i]);
}
inline void narrow_rows(int64_t rows, int64_t depth, const float* a, const float* b, float* c) {
  for (; rows >= kTileRows; rows -= kTileRows, a += kTileRows * depth, c += kTileRows * kTileColumns) narrow_tile<kTileRows>(depth, a, b, c);
  for (; rows >= 3; rows -= 3, a += 3 * depth, c += 3 * kTileColumns) narrow_tile<3>(depth, a, b, c);
  for (; rows > 0; --rows, a += depth, c += kTileColumns) narrow_tile<1>(depth, a, b, c);
}

// A tile of the product with its bias and activation, to where it belongs.
inline void finish(const Dense& v, int64_t row, int64_t count, int64_t start, const float* tile) {
  const int64_t columns = std::min(kTileColumns, v.outputs - start);
  with_activation(v.activation, [&](auto activate) {
    for (int64_t i = 0; i < count; ++i) {
      float* to = v.y + (row + i) * v.outputs + start;
      const float *from = tile + i * kTileColumns, *bias = v.bias + start;
      each_vector(columns, [=](int64_t j, auto whole, int64_t n) {
        store_at(to + j, activate(load(from + j) + load_at(bias + j, whole, n)), whole, n);
      });
    }
  });
}

// left(first, last, scratch) gives rows [first, last), depth floats each, where they lie or, if `gathered`, in scratch.
// pack(start, to) writes columns [start, start + kTileColumns) of the weight, row after row, with zeros beyond the last.
template <class Left, class Pack> void dense(const Call& call, const Dense& v, bool gathered, const Left& left, const Pack& pack) {
  const int64_t panels = (v.outputs + kTileColumns - 1) / kTileColumns;
  // Rows of a block: what is gathered stays in the second-level cache.
  const int64_t most = std::clamp<int64_t>((int64_t{1} << 16) / std::max<int64_t>(v.depth, 1) / kTileRows, 1, 8) * kTileRows;
  const int64_t blocks = (v.rows + most - 1) / most;
  const int64_t work = std::min(most, v.rows) * v.depth * kTileColumns;
  Team::parallel(call, blocks * panels, 1 + (int64_t{1} << 16) / std::max<int64_t>(work, 1), [&](int64_t begin, int64_t end) {
    std::vector<float> packed(v.depth * kTileColumns), scratch(gathered ? most * v.depth : 0);
    float tile[kTileRows * kTileColumns];
    const float* rows = nullptr;
    int64_t held = -1, ready = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      // What costs more changes less often: a gathered block serves all panels, else a packed panel all blocks.
      const int64_t block = gathered ? unit / panels : unit % blocks, panel = gathered ? unit % panels : unit / blocks;
      const int64_t first = block * most, last = std::min(v.rows, first + most), start = panel * kTileColumns;
      if (held != block) rows = left(first, last, scratch.data()), held = block;
      if (ready != panel) pack(start, packed.data()), ready = panel;
      const int64_t tiles = (last - first + kTileRows - 1) / kTileRows;
      for (int64_t t = 0; t < tiles; ++t) {  // of nearly equal size: a tile of one row takes as long as one of several
        const int64_t from = (last - first) * t / tiles, count = (last - first) * (t + 1) / tiles - from;
        if (v.outputs - start > kLanes) tile_rows<false>(count, v.depth, rows + from * v.depth, v.depth, 1, packed.data(), kTileColumns, tile, kTileColumns);
        else narrow_rows(count, v.depth, rows + from * v.depth, packed.data(), tile);
        finish(v, first + from, count, start, tile);
      }
    }
  });
}

}  // namespace m2ml
