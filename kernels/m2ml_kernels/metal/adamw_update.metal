// mu = b1 mu + (1 - b1) g; nu = b2 nu + (1 - b2) g g; update = -rate (mu / c1 / (sqrt(nu / c2 + root) + eps) + decay p)
//
// Four elements of one leaf a thread, a simdgroup's side by side. Must move: four arrays in, three out; moves just that.
// scalars: c1 = 1 - b1^t, c2 = 1 - b2^t, rate. numbers: b1, 1 - b1, b2, 1 - b2, eps, root, decay.
const uint threads = threads_per_threadgroup.x;
uint i = 4 * threadgroup_position_in_grid.x * dispatch_threads_per_threadgroup.x + thread_position_in_threadgroup.x;
for (uint k = 0; k < 4 && i < uint(count); ++k, i += threads) {
  const float g = float(gradient[i]), p = float(param[i]);
  const float m = numbers[1] * g + numbers[0] * float(mu[i]);
  const float v = numbers[3] * (g * g) + numbers[2] * float(nu[i]);
  float step = (m / scalars[0]) / (metal::precise::sqrt(v / scalars[1] + numbers[5]) + numbers[4]);
  step += numbers[6] * p;
  const float update = -scalars[2] * step;
  result[i] = P(APPLY ? p + update : update);
  new_mu[i] = M(m);
  new_nu[i] = V(v);
}
