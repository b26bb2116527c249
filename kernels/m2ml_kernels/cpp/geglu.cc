// y = gelu(gate) * up, element by element: see gated.h for the memory it moves.
//
// gelu(x) = x P(x) with the normal distribution function P, or, where `approximate` is 1, x sigmoid(2 u) with
// u = sqrt(2 / pi) (x + 0.044715 x^3).
#include "gated.h"

namespace m2ml {

// sigmoid(2 u) and the derivative of 2 u.
template <class V> M2ML_INLINE Activated<V> bent(V x) {
  const V square = x * x;
  return {sigmoid(x * (1.5957691f + 0.071354814f * square)), 1.5957691f + 0.21406444f * square};
}

}  // namespace m2ml

M2ML_KERNEL(geglu) {
  using namespace m2ml;
  if (call.integer("approximate")) return gate_forward(call, [](auto x) { return x * bent(x).value; });
  gate_forward(call, [](auto x) { return x * normal(x).below; });
}

M2ML_KERNEL(geglu_backward) {
  using namespace m2ml;
  if (call.integer("approximate"))
    return gate_backward(call, [](auto x) {
      const auto s = bent(x);
      return Activated{x * s.value, s.value * (1.0f + x * (1.0f - s.value) * s.slope)};
    });
  gate_backward(call, [](auto x) {
    const auto p = normal(x);
    return Activated{x * p.below, p.below + x * p.density};
  });
}
