// token = the first whose running sum of 2^-below exceeds bits / 2^32 of the whole; below: octaves under the likeliest.
//
// A threadgroup a row. After one difference and one product all is in whole numbers, so that every backend draws the
// same. What stays is found by halving, of octaves and then of indices. Must move: the logits once; moves them twice,
// writes and reads 4 bytes a token of octaves, and where tokens are cut off reads those some 100 times, mostly in cache.
// numbers: units in a natural logarithm over the temperature, the penalty of a positive logit and of another in units,
// top_p. limits: top_k, and the units below which min_p keeps a token, or -1.
threadgroup float partial[32];
threadgroup uint sums[32], parts[3][32];
const uint size = logits_shape[1], place = thread_position_in_threadgroup.x, threads = threads_per_threadgroup.x;
const uint row = threadgroup_position_in_grid.x;
const size_t start = size_t(row) * size;
const int far = 1 << 30, never = -2 * far;

float top = -INFINITY;
uint nans = 0;
for (uint i = place; i < size; i += threads) {
  const float x = float(logits[start + i]);
  nans += x != x;
  top = metal::max(top, x);
}
top = group_max(top, partial, place, threads);
if (group_sum(nans, sums, place, threads) > 0 || metal::isinf(top)) {
  if (place == 0) token[row] = -1;
  return;
}

int likeliest = never;
for (uint i = place; i < size; i += threads) {
  const float x = float(logits[start + i]);
  int likely = whole((x - top) * numbers[0]);
  if (PENALISED && seen[start + i]) likely += whole(x * (x > 0.0f ? numbers[1] : numbers[2]));
  if (x == -INFINITY) likely = never;
  below[start + i] = likely;
  likeliest = metal::max(likeliest, likely);
}
// As numbers without a sign, which are ordered alike.
likeliest = int(group_max(uint(likeliest) ^ 0x80000000u, sums, place, threads) ^ 0x80000000u);
for (uint i = place; i < size; i += threads) {
  const int likely = below[start + i];
  below[start + i] = likely == never ? far : metal::min(likeliest - likely, far);
}
threadgroup_barrier(metal::mem_flags::mem_device);

const Row tokens = {below + start, coarse, fine, size, sums, place, threads};
Place upto = {far, int(size)};
if (FILTERED) {
  uint count = metal::min(uint(limits[0]), size);
  if (count < size) upto = tokens.nth(count);
  if (numbers[3] < 1.0f) count = metal::min(count, tokens.needed(numbers[3] * as_float(tokens.weight(upto))));
  if (limits[1] >= 0) count = metal::min(count, tokens.count({limits[1], int(size)}));
  upto = tokens.nth(metal::max(count, 1u));
}

// Each simdgroup adds a stretch of the row; the one in which the sum passes the share walks through it once more.
const uint group = place / 32, lane = place % 32, groups = threads / 32;
const uint stretch = (size + threads - 1) / threads * 32, first = group * stretch;
const uint end = metal::min(first + stretch, size);
ulong mine = 0;
for (uint i = first + lane; i < end; i += 32) {
  if (upto.holds(tokens.below[i], i)) mine += weight_of(tokens.below[i], coarse, fine);
}
for (uint k = 0; k < 3; ++k) {
  const uint part = metal::simd_sum(uint(mine >> (21 * k)) & 0x1fffffu);
  if (lane == 0) parts[k][group] = part;
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
ulong before = 0, all = 0;
for (uint g = 0; g < groups; ++g) {
  const ulong part = ulong(parts[0][g]) + (ulong(parts[1][g]) << 21) + (ulong(parts[2][g]) << 42);
  if (g < group) before += part;
  if (g == group) mine = part;
  all += part;
}
const ulong share = (all >> 32) * bits[row] + (((all & 0xffffffffu) * bits[row]) >> 32);
if (before <= share && share < before + mine) {
  for (uint base = first; base < end; base += 32) {
    const uint i = base + lane;
    const uint w = i < end && upto.holds(tokens.below[i], i) ? weight_of(tokens.below[i], coarse, fine) : 0u;
    const uint sum = metal::simd_prefix_inclusive_sum(w);
    const uint found = metal::simd_min(before + sum > share ? i : 0xffffffffu);
    if (found != 0xffffffffu) {
      if (lane == 0) token[row] = int(found);
      break;
    }
    before += metal::simd_sum(w);
  }
}
