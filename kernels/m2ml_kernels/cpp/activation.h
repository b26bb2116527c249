// The activations that kernels fuse, by their number in m2ml.ops.activations.
#pragma once

#include "functions.h"

namespace m2ml {

// Calls body(activate) with the activation that is number `which` of m2ml.ops.activations: of Floats or Two.
template <class Body> void with_activation(int64_t which, const Body& body) {
  const auto relu = [](auto x) { return where(x <= decltype(x)(splat(0)), decltype(x)(splat(0)), x); };
  switch (which) {
    case 0: return body([](auto x) { return x; });
    case 1: return body(relu);
    case 2: return body([=](auto x) { return where(x >= decltype(x)(splat(6)), decltype(x)(splat(6)), relu(x)); });
    case 3: return body([](auto x) { return x * sigmoid(x); });
    case 4: return body([](auto x) { return x * normal(x).below; });
    case 5: return body([](auto x) { return x * sigmoid(x * (1.5957691f + 0.071354814f * (x * x))); });
    case 6: return body([](auto x) { return x * sigmoid(x * 1.702f); });
  }
  throw std::invalid_argument("an activation that no kernel takes");
}

}  // namespace m2ml
