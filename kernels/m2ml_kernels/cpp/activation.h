// The activations that kernels fuse, by their number in m2ml.ops.activations.
#pragma once

#include "functions.h"

namespace m2ml {

// Calls body(activate) with the activation that is number `which` of m2ml.ops.activations.
template <class Body> void with_activation(int64_t which, const Body& body) {
  const auto relu = [](Floats x) { return where(x <= splat(0), splat(0), x); };
  switch (which) {
    case 0: return body([](Floats x) { return x; });
    case 1: return body(relu);
    case 2: return body([=](Floats x) { return where(x >= splat(6), splat(6), relu(x)); });
    case 3: return body([](Floats x) { return x * sigmoid(x); });
    case 4: return body([](Floats x) { return x * normal(x).below; });
    case 5: return body([](Floats x) { return x * sigmoid(x * (1.5957691f + 0.071354814f * (x * x))); });
    case 6: return body([](Floats x) { return x * sigmoid(x * 1.702f); });
  }
  throw std::invalid_argument("an activation that no kernel takes");
}

}  // namespace m2ml
