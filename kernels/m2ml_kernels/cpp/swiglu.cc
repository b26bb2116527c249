// y = gate * sigmoid(gate) * up, element by element: see gated.h for the memory it moves.
#include "gated.h"

M2ML_KERNEL(swiglu) {
  using namespace m2ml;
  gate_forward(call, [](Floats x) { return x * sigmoid(x); });
}

M2ML_KERNEL(swiglu_backward) {
  using namespace m2ml;
  gate_backward(call, [](Floats x) {
    const Floats s = sigmoid(x);
    return Activated{x * s, s * (1.0f + x * (1.0f - s))};
  });
}
