// total = x + residual; y = total / sqrt(mean(total * total) + eps) * weight, row by row.
//
// A block a row. Must move: two arrays in, two out; moves that, and each thread reads its own totals again.
__shared__ float partial[32];
const unsigned n = x_shape[1];
const size_t start = size_t(blockIdx.x) * n;
float squares = 0.0f;
for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
  const T sum = T(float(x[start + i]) + float(residual[start + i]));
  total[start + i] = sum;
  squares += float(sum) * float(sum);
}
const float scale = 1.0f / sqrtf(block_sum(squares, partial) / float(n) + eps[0]);
for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
  const float normal = float(total[start + i]) * scale;
  y[start + i] = T(WEIGHTED ? normal * float(weight[i]) : normal);
}
