// token = the first whose running sum of 2^-below exceeds bits / 2^32 of the whole; below: octaves under the likeliest.
//
// A threadgroup a row. After one difference and one product all is in whole numbers, so that every backend draws the
// same. What stays is found by halving, of octaves and then of indices. Must move: the logits once. No weight is known
// before the largest logit is, so a row is kept on the chip, KEPT tokens a thread in registers and PLACES in threadgroup
// memory. Moves the logits once up to 49,152 tokens; those beyond it reads again to draw, and some 100 times more where
// tokens are cut off, mostly in cache.
// numbers: units in a natural logarithm over the temperature, the penalty of a positive logit and of another in units,
// top_p. limits: top_k, and the units below which min_p keeps a token, or -1.
threadgroup float partial[32];
threadgroup uint sums[32];
threadgroup ulong parts[32];
threadgroup int shared[PLACES];
const uint size = logits_shape[1], place = thread_position_in_threadgroup.x, threads = threads_per_threadgroup.x;
const uint row = threadgroup_position_in_grid.x, steps = (size + threads - 1) / threads;
const uint group = place / 32, lane = place % 32, groups = threads / 32, stretch = 32 * steps;
const size_t start = size_t(row) * size;

Row<T, PENALISED, KEPT> tokens;
tokens.likely = {logits + start, PENALISED ? seen + start : seen, numbers[0], numbers[1], numbers[2], 0.0f};
tokens.tables = {coarse, fine};
tokens.shared = shared + place;
tokens.partial = sums;
tokens.places = metal::min(steps, KEPT + PLACES / threads);
tokens.first = group * stretch + lane;
tokens.end = metal::min((group + 1) * stretch, size);
tokens.steps = steps, tokens.size = size, tokens.place = place, tokens.threads = threads;
if (!tokens.read(partial)) {
  if (place == 0) token[row] = -1;
  return;
}
tokens.rank();

Place upto = {FAR, int(size)};
if (FILTERED) {
  uint count = metal::min(uint(limits[0]), size);
  if (count < size) upto = tokens.nth(count);
  if (numbers[3] < 1.0f) count = metal::min(count, tokens.needed(numbers[3] * as_float(tokens.weight(upto))));
  if (limits[1] >= 0) count = metal::min(count, tokens.count({limits[1], int(size)}));
  upto = tokens.nth(metal::max(count, 1u));
}

// Each simdgroup adds its stretch of the row; the one in which the sum passes the share walks through it once more.
Weigh weighed = {upto, tokens.tables, 0};
tokens.walk(weighed);
const ulong mine = simd_sum_of(weighed.sum);
if (lane == 0) parts[group] = mine;
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
ulong before = 0, all = 0;
for (uint g = 0; g < groups; ++g) {
  if (g < group) before += parts[g];
  all += parts[g];
}
const ulong share = (all >> 32) * bits[row] + (((all & 0xffffffffu) * bits[row]) >> 32);
if (before <= share && share < before + mine) {
  Draw drawn = {upto, tokens.tables, before, share, false, 0, 0};
  tokens.walk(drawn);
  const uint sum = metal::simd_prefix_inclusive_sum(drawn.weight);
  const uint found = metal::simd_min(drawn.before + sum > share ? drawn.index : 0xffffffffu);
  if (lane == 0) token[row] = int(found);
}
