// y[rows, outputs] = activation(left[rows, depth] weight[depth, outputs] + bias), wherever the rows of left lie and
// whatever weight is stored as.
//
// Panels of the weight's columns are packed, as many at a time as the second-level cache holds, and every row of left
// passes by once for all of them. A tile of the product starts from the bias and stays in registers until it is done.
#pragma once

#include <limits>
#include <memory>

#include "activation.h"
#include "team.h"
#include "vector.h"

namespace m2ml {

// Of a tile: its sums, a row of a panel and an element of left are registers. Where one vector of 512 bits is loaded at a
// time, loads bind, and 8 x 3 needs fewest of them.
#if defined(__AVX512F__)
constexpr int kDenseRows = 8, kDenseVectors = 3;
#else
constexpr int kDenseRows = 6, kDenseVectors = 2;
#endif
constexpr int64_t kDenseColumns = kDenseVectors * kLanes;

struct Dense {
  int64_t rows, depth, outputs, activation;
  const float* bias;
  float* y;
};

// Where rows of left lie: row i is made of runs of `length` elements that begin at
// from[i * row + k * outer_step + l * inner_step], k < outer and l < inner.
struct Left {
  const float* from;
  int64_t row, length, outer = 1, outer_step = 0, inner = 1, inner_step = 0;
};

// Rows [first, first + count) of the result, of elements of left that meet rows of the weight from `skip` on.
struct Line {
  int64_t first, count;
  Left left;
  int64_t skip = 0;
};

// A tile of kRows rows and kVectors vectors of columns of the product: finish(i, j, total) takes vector j of row i.
template <int kRows, int kVectors, class Finish>
inline void dense_tile(const Left& left, const float* bias, const float* b, const Finish& finish) {
  Floats total[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) total[i][j] = load(bias + j * kLanes);
  for (int64_t outer = 0; outer < left.outer; ++outer)
    for (int64_t inner = 0; inner < left.inner; ++inner) {
      // A pointer for every four rows: more would not stay in registers.
      const float* a[(kRows + 3) / 4];
      for (int i = 0; i < kRows; i += 4) a[i / 4] = left.from + i * left.row + outer * left.outer_step + inner * left.inner_step;
      for (const float* end = b + left.length * kDenseColumns; b != end; b += kDenseColumns) {
        Floats right[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) right[j] = load(b + j * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const Floats x = splat(a[i / 4][i % 4 * left.row]);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) total[i][j] += x * right[j];
        }
#pragma GCC unroll 4
        for (auto& p : a) ++p;
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) finish(i, j, total[i][j]);
}

// The same of up to kRows rows.
template <int kVectors, int kRows = kDenseRows, class Finish>
inline void dense_rows(int64_t rows, const Left& left, const float* bias, const float* b, const Finish& finish) {
  if constexpr (kRows > 0) {
    if (rows == kRows) dense_tile<kRows, kVectors>(left, bias, b, finish);
    else dense_rows<kVectors, kRows - 1>(rows, left, bias, b, finish);
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

// A tile of the result: `count` rows from `row` on, kVectors vectors of columns from `start` on.
struct Place {
  int64_t row, count, start;
};

// From the registers to where they belong.
template <int kVectors>
inline void tile_to_result(const Dense& v, const Cut& cut, const Place& at, const Left& left, const float* bias, const float* b) {
  float* to = v.y + at.row * v.outputs + at.start;
  dense_rows<kVectors>(at.count, left, bias, b, [=, outputs = v.outputs, low = splat(cut.low), high = splat(cut.high)](int i, int j, Floats total) {
    store(to + i * outputs + j * kLanes, minimum(high, maximum(low, total)));
  });
}

// The same by way of memory: of an activation that computes, which is not repeated for every vector of a tile, or of
// columns that are no whole vectors.
template <int kVectors>
inline void tile_by_memory(const Dense& v, const Place& at, const Left& left, const float* bias, const float* b) {
  alignas(Floats) float tile[kDenseRows * kDenseColumns];
  dense_rows<kVectors>(at.count, left, bias, b, [&](int i, int j, Floats total) { store(tile + i * kDenseColumns + j * kLanes, total); });
  with_activation(v.activation, [&](auto activate) {
    for (int64_t i = 0; i < at.count; ++i) {
      float* to = v.y + (at.row + i) * v.outputs + at.start;
      const float* from = tile + i * kDenseColumns;
      each_vector(std::min(kDenseColumns, v.outputs - at.start), [=](int64_t j, auto whole, int64_t n) {
        store_at(to + j, activate(load(from + j)), whole, n);
      });
    }
  });
}

// A tile of so many vectors of columns as there are.
template <int kVectors = kDenseVectors>
inline void multiply_tile(const Dense& v, const Cut& cut, const Place& at, const Left& left, const float* bias, const float* b) {
  const int64_t columns = std::min(kDenseColumns, v.outputs - at.start);
  if constexpr (kVectors > 1)
    if (columns <= (kVectors - 1) * kLanes) return multiply_tile<kVectors - 1>(v, cut, at, left, bias, b);
  if (cut.all && columns == kVectors * kLanes) tile_to_result<kVectors>(v, cut, at, left, bias, b);
  else tile_by_memory<kVectors>(v, at, left, bias, b);
}

// The lines of a product whose left rows lie one after the other: blocks of nearly equal size.
struct Rows {
  const float* from;
  int64_t rows, depth;

  int64_t count() const { return (rows + 8 * kDenseRows - 1) / (8 * kDenseRows); }
  int64_t scratch() const { return 0; }
  Line line(int64_t i, float*) const {
    const int64_t first = rows * i / count(), last = rows * (i + 1) / count();
    return {first, last - first, {from + first * depth, depth, depth}};
  }
};

// Panels [first, last) of the weight's columns.
struct Group { int64_t first, last; };

// The panels that one thread works with, each a row of biases and then rows of the weight.
class Panels {
 public:
  Panels(const Dense& v, int64_t most) : v_(v), size_((v.depth + 1) * kDenseColumns), memory_(new Floats[most * size_ / kLanes]) {}

  // weight.pack(start, to) writes columns [start, start + kDenseColumns) of the weight, row after row, with zeros beyond the last.
  template <class Weight> void pack(const Group& group, const Weight& weight) {
    for (int64_t p = group.first; p < group.last; ++p) {
      float* to = panel(p - group.first);
      const int64_t start = p * kDenseColumns, n = std::min(kDenseColumns, v_.outputs - start);
      std::fill(std::copy_n(v_.bias + start, n, to), to + kDenseColumns, 0.0f);
      weight.pack(start, to + kDenseColumns);
    }
  }

  // A line times a group that is packed: tiles of rows, of nearly equal size, pass by all panels.
  __attribute__((noinline)) void multiply(const Line& line, const Group& group) const {
    const Dense v = v_;  // copies, which no result can overwrite
    const Cut cut = Cut::of(v.activation);
    const int64_t tiles = (line.count + kDenseRows - 1) / kDenseRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t from = line.count * t / tiles, count = line.count * (t + 1) / tiles - from;
      Left left = line.left;
      left.from += from * left.row;
      for (int64_t p = group.first; p < group.last; ++p) {
        const float* bias = panel(p - group.first);
        multiply_tile(v, cut, {line.first + from, count, p * kDenseColumns}, left, bias, bias + kDenseColumns * (1 + line.skip));
      }
    }
  }

 private:
  float* panel(int64_t i) const { return reinterpret_cast<float*>(memory_.get()) + i * size_; }

  const Dense& v_;
  const int64_t size_;
  const std::unique_ptr<Floats[]> memory_;
};

// lines.line(i, scratch) says where the rows of a line lie, perhaps in `scratch`.
template <class Lines, class Weight> void dense(const Call& call, const Dense& v, const Lines& lines, const Weight& weight) {
  const int64_t panels = (v.outputs + kDenseColumns - 1) / kDenseColumns, size = (v.depth + 1) * kDenseColumns;
  const int64_t count = lines.count(), threads = call.threads();
  // Panels are packed in groups, which are nearly equal: as many as fit at a time if there are rows enough for every
  // thread, else as many as give every thread enough to do.
  const int64_t fit = std::max<int64_t>((int64_t{1} << 16) / size, 1), least = (panels + fit - 1) / fit;
  const int64_t groups = count < 16 * threads ? std::max(least, std::min(panels, 8 * threads - 1)) : least, most = (panels + groups - 1) / groups;
  // Where groups are enough, each is packed by one thread.
  const int64_t together = groups >= 4 * threads ? count : 1;
  const int64_t work = (v.rows / count + 1) * v.depth * kDenseColumns * most * together;
  Team::each_thread(call, groups * count / together, 1 + (int64_t{1} << 16) / std::max<int64_t>(work, 1), [&](Portion& portion) {
    Panels packed(v, most);
    const std::unique_ptr<float[]> scratch(new float[lines.scratch()]);
    int64_t ready = -1;
    do {
      for (int64_t unit = portion.begin * together; unit < portion.end * together; ++unit) {
        const int64_t i = unit / count;
        const Group group{panels * i / groups, panels * (i + 1) / groups};
        if (ready != i) packed.pack(group, weight), ready = i;
        packed.multiply(lines.line(unit % count, scratch.get()), group);
      }
    } while (portion.next());
  });
}

}  // namespace m2ml
