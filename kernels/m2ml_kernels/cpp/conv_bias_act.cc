// y[i, j, o] = activation(bias[o] + sum over taps (k, l) and channels c of x[i s + k d - top, j s + l d - left, c] weight[k, l, c, o]).
//
// A channel at a time (as many groups as channels): vectors run over channels, a few columns of the result stay in
// registers while the taps are walked. Otherwise a product of matrices (dense.h), whose rows are read where the image
// lies: the taps of a place follow one another there, row by row of the kernel.
// Must move: x, weight and y once; moves x once for each group of panels of a product (from cache where it fits), the
// weight once for each thread, y once. Of rows that taps reach beyond, a padded copy is made.
#include "dense.h"

namespace m2ml {

struct Convolution {
  int64_t batch, height, width, channels, rows, columns, outputs, kernel_height, kernel_width;
  int64_t stride_y, stride_x, top, left, spread_y, spread_x, activation;
  const float *x, *weight, *bias;
  float* y;

  // The taps of a result at `place` that lie inside: the first and one past the last.
  static std::pair<int64_t, int64_t> inside(int64_t place, int64_t stride, int64_t before, int64_t spread, int64_t taps, int64_t size) {
    const int64_t start = place * stride - before;
    const int64_t first = start >= 0 ? 0 : (-start + spread - 1) / spread;
    const int64_t end = start >= size ? 0 : std::min(taps, (size - start + spread - 1) / spread);
    return {first, std::max(first, end)};
  }
  auto taps_y(int64_t i) const { return inside(i, stride_y, top, spread_y, kernel_height, height); }
  auto taps_x(int64_t j) const { return inside(j, stride_x, left, spread_x, kernel_width, width); }
  bool is_product() const {
    return kernel_height == 1 && kernel_width == 1 && stride_y == 1 && stride_x == 1 && rows == height && columns == width;
  }
};

// A channel at a time -------------------------------------------------------------------------------------------------

// A tile of the result: many columns of one vector of channels or, at the edges, one column of many vectors. Either way
// there are enough sums for none to wait for the one before.
constexpr int kColumns = 8, kVectors = 4;

// Rows of taps [top, bottom) of row i of the result, and the image above them.
struct Row {
  const float* image;
  float* to;
  int64_t i, top, bottom;
};

// kAcross columns of the result from j on, whose taps all lie in [first, last); kDeep vectors of channels from c on.
template <int kAcross, int kDeep, class Whole, class Activate>
inline void tile_of(const Convolution& v, const Row& row, int64_t j, int64_t first, int64_t last, int64_t c, Whole whole, int64_t n,
                    const Activate& activate) {
  Floats total[kDeep][kAcross];
  for (int d = 0; d < kDeep; ++d)
    for (int t = 0; t < kAcross; ++t) total[d][t] = load_at(v.bias + c + d * kLanes, whole, n);
  const int64_t channels = v.channels, step = v.stride_x * channels, apart = v.spread_x * channels;
  for (int64_t k = row.top; k < row.bottom; ++k) {
    const float* from = row.image + ((row.i * v.stride_y + k * v.spread_y - v.top) * v.width + j * v.stride_x - v.left) * channels + c + first * apart;
    const float* weight = v.weight + (k * v.kernel_width + first) * channels + c;
    for (int64_t l = first; l < last; ++l, from += apart, weight += channels) {
#pragma GCC unroll 4
      for (int d = 0; d < kDeep; ++d) {
        const Floats factor = load_at(weight + d * kLanes, whole, n);
#pragma GCC unroll 8
        for (int t = 0; t < kAcross; ++t) total[d][t] += load_at(from + t * step + d * kLanes, whole, n) * factor;
      }
    }
  }
  for (int d = 0; d < kDeep; ++d)
    for (int t = 0; t < kAcross; ++t) store_at(row.to + (j + t) * channels + c + d * kLanes, activate(total[d][t]), whole, n);
}

inline void depthwise(const Call& call, const Convolution& v) {
  const int64_t taps = v.kernel_height * v.kernel_width * v.columns * v.channels;
  // Columns [begin, end) of the result have all their taps inside; those up to `last` go in whole tiles.
  const int64_t begin = std::min(v.columns, (v.left + v.stride_x - 1) / v.stride_x);
  const int64_t room = v.width - 1 + v.left - (v.kernel_width - 1) * v.spread_x;
  const int64_t end = std::max(begin, room < 0 ? 0 : std::min(v.columns, room / v.stride_x + 1));
  const int64_t last = begin + (end - begin) / kColumns * kColumns;
  const auto each_left = [=, columns = v.columns](const auto& body) {
    for (int64_t j = 0; j < begin; ++j) body(j);
    for (int64_t j = last; j < columns; ++j) body(j);
  };
  Team::parallel(call, v.batch * v.rows, 1 + (int64_t{1} << 14) / std::max<int64_t>(taps, 1), [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      const auto [top, bottom] = v.taps_y(r % v.rows);
      const Row row{v.x + r / v.rows * v.height * v.width * v.channels, v.y + r * v.columns * v.channels, r % v.rows, top, bottom};
      with_activation(v.activation, [&](auto activate) {
        // A few channels at a time, so that what the taps share stays in the first-level cache.
        const auto whole = std::integral_constant<bool, true>{};
        int64_t c = 0;
        for (; c + kVectors * kLanes <= v.channels; c += kVectors * kLanes) {
          for (int64_t d = c; d < c + kVectors * kLanes; d += kLanes)
            for (int64_t j = begin; j < last; j += kColumns) tile_of<kColumns, 1>(v, row, j, 0, v.kernel_width, d, whole, kLanes, activate);
          each_left([&](int64_t j) {
            const auto [left, right] = v.taps_x(j);
            tile_of<1, kVectors>(v, row, j, left, right, c, whole, kLanes, activate);
          });
        }
        each_vector(v.channels - c, [&](int64_t d, auto whole, int64_t n) {
          for (int64_t j = begin; j < last; j += kColumns) tile_of<kColumns, 1>(v, row, j, 0, v.kernel_width, c + d, whole, n, activate);
          each_left([&](int64_t j) {
            const auto [left, right] = v.taps_x(j);
            tile_of<1, 1>(v, row, j, left, right, c + d, whole, n, activate);
          });
        });
      });
    }
  });
}

// A product of matrices -----------------------------------------------------------------------------------------------

// The rows of the result. Where taps lie outside, the rows of the image that one of them needs are copied between zeros.
struct Lines {
  const Convolution& v;

  int64_t count() const { return v.batch * v.rows; }
  int64_t reach() const { return (v.columns - 1) * v.stride_x + (v.kernel_width - 1) * v.spread_x + 1; }
  bool fits() const { return v.left == 0 && reach() <= v.width; }
  int64_t scratch() const { return fits() ? 0 : v.kernel_height * reach() * v.channels; }

  Line line(int64_t r, float* scratch) const {
    const auto [top, bottom] = v.taps_y(r % v.rows);
    const int64_t across = v.width * v.channels, first = r % v.rows * v.stride_y - v.top;
    const float* from = v.x + r / v.rows * v.height * across + (first + top * v.spread_y) * across;
    Left left{from, v.stride_x * v.channels, v.channels, bottom - top, v.spread_y * across, v.kernel_width, v.spread_x * v.channels};
    if (!fits()) {
      left.from = scratch, left.outer_step = reach() * v.channels;
      for (int64_t k = 0; k < left.outer; ++k) between_zeros(from + k * v.spread_y * across, scratch + k * left.outer_step);
    }
    if (v.spread_x == 1) left.length *= left.inner, left.inner = 1;
    return {r * v.columns, v.columns, left, top * v.kernel_width * v.channels};
  }

  void between_zeros(const float* from, float* to) const {
    const int64_t before = std::min(v.left, reach()), n = std::min(v.width, reach() - before);
    std::fill_n(to, before * v.channels, 0.0f);
    std::copy_n(from, n * v.channels, to + before * v.channels);
    std::fill_n(to + (before + n) * v.channels, (reach() - before - n) * v.channels, 0.0f);
  }
};

// A weight [depth, outputs].
struct ByColumns {
  const float* weight;
  int64_t depth, outputs;

  void pack(int64_t start, float* to) const {
    const int64_t n = std::min(kDenseColumns, outputs - start);
    for (int64_t k = 0; k < depth; ++k, to += kDenseColumns) {
      const float* from = weight + k * outputs + start;
      if (n == kDenseColumns) std::memcpy(to, from, kDenseColumns * sizeof(float));
      else std::fill(std::copy_n(from, n, to), to + kDenseColumns, 0.0f);
    }
  }
};

inline void as_product(const Call& call, const Convolution& v) {
  const int64_t depth = v.kernel_height * v.kernel_width * v.channels;
  const Dense layer{v.batch * v.rows * v.columns, depth, v.outputs, v.activation, v.bias, v.y};
  const ByColumns weight{v.weight, depth, v.outputs};
  if (v.is_product()) dense(call, layer, Rows{v.x, layer.rows, depth}, weight);
  else dense(call, layer, Lines{v}, weight);
}

}  // namespace m2ml

// in: x[*b h w c], weight[kh kw c o] or [kh kw 1 c], bias[o]; out: y[*b _ _ o]; static: stride_y, stride_x, top, left,
// spread_y, spread_x, groups, activation.
M2ML_KERNEL(conv_bias_act) {
  using namespace m2ml;
  const Array x = call.in(0), weight = call.in(1), y = call.out(0);
  if (y.count() == 0) return;
  const Convolution v{x.rows(-3), x.size(-3), x.size(-2), x.size(-1), y.size(-3), y.size(-2), y.size(-1), weight.size(0), weight.size(1),
                      call.integer("stride_y"), call.integer("stride_x"), call.integer("top"), call.integer("left"),
                      call.integer("spread_y"), call.integer("spread_x"), call.integer("activation"),
                      x.data<float>(), weight.data<float>(), call.in(2).data<float>(), y.data<float>()};
  if (call.integer("groups") > 1) depthwise(call, v);
  else as_product(call, v);
}
