// lse = log(sum(exp(logits))); loss = lse - (1 - smoothing) logits[label] - smoothing mean(logits) + z lse^2, per row.
//
// A threadgroup a row, the sum kept relative to the largest logit so far. Must move: the logits once; moves that.
// numbers: smoothing, z, soft cap. Labels outside the vocabulary give NaN, ignored ones 0.
threadgroup float partial[32];
const uint size = logits_shape[1], place = thread_position_in_threadgroup.x, threads = threads_per_threadgroup.x;
const uint row = threadgroup_position_in_grid.x;
const size_t start = size_t(row) * size;
float top = -INFINITY, sum = 0.0f, total = 0.0f;
for (uint i = place; i < size; i += threads) {
  float logit = float(logits[start + i]);
  if (CAPPED) logit = numbers[2] * metal::precise::tanh(logit / numbers[2]);
  total += logit;
  if (logit > top) {
    sum = sum * metal::precise::exp(top - logit) + 1.0f;
    top = logit;
  } else if (logit != -INFINITY) {
    sum += logit == top ? 1.0f : metal::precise::exp(logit - top);
  }
}
const float highest = group_max(top, partial, place, threads);
sum = group_sum(top == highest ? sum : sum * metal::precise::exp(top - highest), partial, place, threads);
if (SMOOTHED) total = group_sum(total, partial, place, threads);
if (place == 0) {
  const float found = metal::precise::log(sum) + highest;
  const int label = labels[row];
  const bool known = label >= 0 && uint(label) < size;
  float expected = known ? float(logits[start + label]) : NAN;
  if (CAPPED) expected = numbers[2] * metal::precise::tanh(expected / numbers[2]);
  if (SMOOTHED) expected = (1.0f - numbers[0]) * expected + numbers[0] * (total / float(size));
  const float loss = found - expected + numbers[1] * found * found;
  losses[row] = label == ignore_index ? 0.0f : loss;
  lse[row] = found;
}
