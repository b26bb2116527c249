// y = activation(x weightᵀ + bias), weight [outputs, inputs].
//
// See dense.h; panels of the weight are transposed in registers while they are packed. Must move: x, weight and y once;
// moves x once for each panel (from cache where it fits), the rest once.
#include "dense.h"
#include "transpose.h"

namespace m2ml {

// A weight [outputs, depth].
struct ByRows {
  const float* weight;
  int64_t depth, outputs;

  void pack(int64_t start, float* to) const {
    for (int64_t j = 0; j < kDenseColumns; j += kLanes) pack_vector<kDenseColumns>(weight + (start + j) * depth, depth, outputs - start - j, depth, to + j);
  }
};

}  // namespace m2ml

// in: x[*b n], weight[m n], bias[m]; out: y[*b m]; static: activation.
M2ML_KERNEL(linear_bias_act) {
  using namespace m2ml;
  const Array x = call.in(0), weight = call.in(1);
  const int64_t depth = weight.size(1), outputs = weight.size(0);
  const Dense v{x.rows(-1), depth, outputs, call.integer("activation"), call.in(2).data<float>(), call.out(0).data<float>()};
  if (v.rows == 0 || outputs == 0) return;
  dense(call, v, Rows{x.data<float>(), v.rows, depth}, ByRows{weight.data<float>(), depth, outputs});
}
