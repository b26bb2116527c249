// y = activation((x - mean) / sqrt(variance + eps) * weight + bias), per channel, channels last.
//
// Four elements a thread, a simdgroup's side by side. Must move: one array in, one out; moves that; the channels'
// numbers stay in the cache. In training mean and variance are those of x, found before.
// ACTIVATION numbers none, relu, relu6, silu, gelu_tanh.
const uint channels = mean_shape[0], step = threads_per_threadgroup.x;
uint i = 4 * threadgroup_position_in_grid.x * dispatch_threads_per_threadgroup.x + thread_position_in_threadgroup.x;
for (uint k = 0; k < 4 && i < uint(count); ++k, i += step) {
  const uint c = i % channels;
  float v = (float(x[i]) - float(mean[c])) * metal::precise::rsqrt(float(variance[c]) + eps);
  if (WEIGHTED) v *= float(weight[c]);
  if (BIASED) v += float(bias[c]);
  if (ACTIVATION == 1 || ACTIVATION == 2) v = v <= 0.0f ? 0.0f : v;
  if (ACTIVATION == 2) v = v >= 6.0f ? 6.0f : v;
  if (ACTIVATION == 3) v = silu(v);
  if (ACTIVATION == 4) v = v * sigmoid(1.5957691216057308f * (v + 0.044715f * v * v * v));
  y[i] = T(v);
}
