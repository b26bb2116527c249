// total = x + residual; y = total / sqrt(mean(total * total) + eps) * weight, row by row.
//
// A threadgroup a row. Must move: two arrays in, two out; moves that, and each thread reads its own totals again.
threadgroup float partial[32];
const uint n = x_shape[1], place = thread_position_in_threadgroup.x, threads = threads_per_threadgroup.x;
const size_t start = size_t(threadgroup_position_in_grid.x) * n;
float squares = 0.0f;
for (uint i = place; i < n; i += threads) {
  const T sum = T(float(x[start + i]) + float(residual[start + i]));
  total[start + i] = sum;
  squares += float(sum) * float(sum);
}
const float scale = metal::precise::rsqrt(group_sum(squares, partial, place, threads) / float(n) + eps);
for (uint i = place; i < n; i += threads) {
  const float normal = float(total[start + i]) * scale;
  y[start + i] = T(WEIGHTED ? normal * float(weight[i]) : normal);
}
