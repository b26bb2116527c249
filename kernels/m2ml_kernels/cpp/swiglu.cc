// y = gate * sigmoid(gate) * up, element by element: see gated.h for the memory it moves.
#include "gated.h"

M2ML_KERNEL(swiglu) {
  using namespace m2ml;
  gate_forward(call, [](auto x) { return x / (1.0f + exp_signed<-1>(x)); });
}

M2ML_KERNEL(swiglu_backward) {
  using namespace m2ml;
  gate_backward(call, [](auto x) {
    const auto s = sigmoid(x);
    return Activated{x * s, s * (1.0f + x * (1.0f - s))};
  });
}
