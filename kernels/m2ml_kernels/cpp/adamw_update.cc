// mu = b1 mu + (1 - b1) g, nu = b2 nu + (1 - b2) g^2, step = mu / c1 / (sqrt(nu / c2 + eps_root) + eps),
// update = -rate (step + decay p), for every element of every leaf.
//
// Must move: four arrays in, three out; moves just that, all leaves in one go.
#include <vector>

#include "vector.h"

namespace m2ml {

struct Part { int64_t leaf, begin, end; };

}  // namespace m2ml

// in: gradients, mu, nu, params (all leaves of each, in this order), {c1, c2, rate}, decays (int32 per leaf);
// out: updates or params, mu, nu; static: b1, b2, eps, eps_root, weight_decay, apply.
M2ML_KERNEL(adamw_update) {
  using namespace m2ml;
  const int64_t leaves = (call.arguments() - 2) / 4;
  const float* scalars = call.in(4 * leaves).data<float>();
  const int32_t* decays = call.in(4 * leaves + 1).data<int32_t>();
  const float c1 = scalars[0], c2 = scalars[1], rate = scalars[2], b1 = call.number("b1"), b2 = call.number("b2");
  const float rest1 = call.number("rest1"), rest2 = call.number("rest2");
  const float eps = call.number("eps"), eps_root = call.number("eps_root"), decay = call.number("weight_decay");
  const float unbiased = 1.0f / c2;
  const bool apply = call.integer("apply");
  constexpr int64_t kPart = 1 << 14;  // worth a thread
  std::vector<Part> parts;
  int64_t elements = 0;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    const int64_t n = call.in(leaf).count();
    for (int64_t i = 0; i < n; i += kPart) parts.push_back({leaf, i, std::min(n, i + kPart)});
    elements += n;
  }
  const int64_t count = static_cast<int64_t>(parts.size());
  call.parallel(count, count * kPart / std::max<int64_t>(elements, 1), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const Part& part = parts[k];
      const int64_t leaf = part.leaf;
      const auto in = [&](int j) { return call.in(j * leaves + leaf).data<float>() + part.begin; };
      const auto out = [&](int j) { return call.out(j * leaves + leaf).data<float>() + part.begin; };
      const float *gradients = in(0), *mus = in(1), *nus = in(2), *params = in(3);
      float *to = out(0), *to_mu = out(1), *to_nu = out(2);
      const float fades = decays[leaf] ? decay : 0.0f;
      each_vector(part.end - part.begin, [=](int64_t i, auto whole, int64_t n) {
        const Floats g = load_at(gradients + i, whole, n), p = load_at(params + i, whole, n);
        const Floats mu = rest1 * g + b1 * load_at(mus + i, whole, n);
        const Floats nu = rest2 * (g * g) + b2 * load_at(nus + i, whole, n);
        const Floats step = mu / (c1 * (square_root(nu * unbiased + eps_root) + eps)) + fades * p;
        const Floats update = -rate * step;
        store_at(to + i, apply ? p + update : update, whole, n);
        store_at(to_mu + i, mu, whole, n);
        store_at(to_nu + i, nu, whole, n);
      });
    }
  });
}
