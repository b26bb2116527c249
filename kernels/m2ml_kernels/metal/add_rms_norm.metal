// total = x + residual; y = total / sqrt(mean(total * total) + eps) * weight, row by row.
//
// A threadgroup a row. Must move: two arrays in, two out; moves just that, since a thread keeps its first four totals; of
// rows of more than 4096 it reads the others again.
threadgroup float partial[32];
const uint n = x_shape[1], place = thread_position_in_threadgroup.x, threads = threads_per_threadgroup.x;
const size_t start = size_t(threadgroup_position_in_grid.x) * n;
float squares = 0.0f, kept[4];
for (uint k = 0; k < 4; ++k) {
  const uint i = place + k * threads;
  kept[k] = 0.0f;
  if (i < n) {
    const T sum = T(float(x[start + i]) + float(residual[start + i]));
    total[start + i] = sum;
    kept[k] = float(sum);
    squares += kept[k] * kept[k];
  }
}
for (uint i = place + 4 * threads; i < n; i += threads) {
  const T sum = T(float(x[start + i]) + float(residual[start + i]));
  total[start + i] = sum;
  squares += float(sum) * float(sum);
}
const float scale = metal::precise::rsqrt(group_sum(squares, partial, place, threads) / float(n) + eps);
for (uint k = 0; k < 4; ++k) {
  const uint i = place + k * threads;
  if (i < n) y[start + i] = T(WEIGHTED ? kept[k] * scale * float(weight[i]) : kept[k] * scale);
}
for (uint i = place + 4 * threads; i < n; i += threads) {
  const float normal = float(total[start + i]) * scale;
  y[start + i] = T(WEIGHTED ? normal * float(weight[i]) : normal);
}
