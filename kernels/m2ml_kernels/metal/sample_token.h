// What sample_token.metal does with a row of tokens and how far, in units of 2^-20 octaves, each is below the likeliest.
// Tokens are ordered by that and by index; a place in the order is a pair of both.

constant constexpr int FAR = 1 << 30, NEVER = -2 * FAR, BEYOND = FAR + 1;  // BEYOND: past the end, in no place

struct Place {
  int below, index;
  bool holds(int b, uint i) const { return b < below || (b == below && int(i) <= index); }
};

// The part of x before the point, within 2^29 on either side.
inline int whole(float x) { return int(metal::clamp(x, -536870912.0f, 536870912.0f)); }

// 2^-below in units of 2^-26, by tables of 2^-f for the two halves of a fraction.
inline uint weight_of(int below, const device uint* coarse, const device uint* fine) {
  const uint power = metal::mulhi(coarse[(below >> 10) & 1023], fine[below & 1023]);
  return ((power >> 3 >> metal::min(uint(below) >> 20, 31u)) + 1) >> 1;
}

// A sum of weights as the sum of two limbs, of which each is rounded.
inline float as_float(ulong sum) { return float(uint(sum >> 13)) * 8192.0f + float(uint(sum) & 8191u); }

struct Tables {
  const device uint* coarse;
  const device uint* fine;
};

// What is done with each token of a row that a place holds: it is counted, weighed, or drawn.
struct Count {
  Place upto;
  uint found;
  void operator()(int below, uint i) { found += upto.holds(below, i); }
};

struct Weigh {
  Place upto;
  Tables tables;
  ulong sum;
  void operator()(int below, uint i) {
    if (upto.holds(below, i)) sum += weight_of(below, tables.coarse, tables.fine);
  }
};

// A simdgroup's 32 tokens at a time, until their sum passes the share; those are remembered.
struct Draw {
  Place upto;
  Tables tables;
  ulong before, share;
  bool found;
  uint weight, index;
  void operator()(int below, uint i) {
    const uint mine = upto.holds(below, i) ? weight_of(below, tables.coarse, tables.fine) : 0u;
    const uint sum = metal::simd_sum(mine);
    if (found) return;
    found = before + sum > share;
    if (found) weight = mine, index = i; else before += sum;
  }
};

// How likely tokens are, in units of 2^-20 octaves over one of the largest logit; NEVER where it is -inf.
template <typename T, bool PENALISED>
struct Likely {
  const device T* logits;
  const device bool* seen;
  float unit, positive, other, top;
  int operator()(float x, uint i) const {
    if (x == -INFINITY) return NEVER;
    const int likely = whole((x - top) * unit);
    return PENALISED && seen[i] ? likely + whole(x * (x > 0.0f ? positive : other)) : likely;
  }
};

// A row and the threadgroup that works on it; what they find, all threads get. A simdgroup has a stretch of the row, a
// thread every 32nd token of that: the first KEPT in registers, more in threadgroup memory, what is left in the logits.
template <typename T, bool PENALISED, int KEPT>
struct Row {
  Likely<T, PENALISED> likely;
  Tables tables;
  threadgroup int* shared;  // a thread's own, so many threads apart
  threadgroup uint* partial;
  uint places, first, end, steps, size, place, threads;
  int likeliest;
  int kept[KEPT];

  uint index(uint k) const { return first + 32 * k; }

  // Of a token that is neither in registers nor in threadgroup memory.
  int below(uint i) const { return i < end ? under(likely(float(likely.logits[i]), i)) : BEYOND; }
  int under(int likely) const { return likely == NEVER ? FAR : metal::min(likeliest - likely, FAR); }

  // Reads the row once; whether it has a largest logit, and a finite one.
  bool read(threadgroup float* partial_max) {
    float top = -INFINITY;
    uint nans = 0;
#pragma clang loop unroll(full)
    for (uint k = 0; k < KEPT; ++k) kept[k] = looked_at(index(k), top, nans);
    for (uint k = KEPT; k < steps; ++k) {
      const int x = looked_at(index(k), top, nans);
      if (k < places) shared[(k - KEPT) * threads] = x;
    }
    likely.top = group_max(top, partial_max, place, threads);
    return group_sum(nans, partial, place, threads) == 0 && !metal::isinf(likely.top);
  }

  int looked_at(uint i, thread float& top, thread uint& nans) const {
    const float x = i < end ? float(likely.logits[i]) : -INFINITY;
    nans += x != x;
    top = metal::max(top, x);
    return as_type<int>(x);
  }

  // Logits become how far they are below the likeliest, where they are.
  void rank() {
    int most = NEVER;
#pragma clang loop unroll(full)
    for (uint k = 0; k < KEPT; ++k) most = metal::max(most, kept[k] = ranked(kept[k], index(k)));
    for (uint k = KEPT; k < places; ++k) {
      threadgroup int& own = shared[(k - KEPT) * threads];
      most = metal::max(most, own = ranked(own, index(k)));
    }
    for (uint k = places; PENALISED && k < steps; ++k) {
      if (index(k) < end) most = metal::max(most, likely(float(likely.logits[index(k)]), index(k)));
    }
    // As numbers without a sign, which are ordered alike. Without a penalty it is the largest logit, at 0.
    likeliest = PENALISED ? int(group_max(uint(most) ^ 0x80000000u, partial, place, threads) ^ 0x80000000u) : 0;
#pragma clang loop unroll(full)
    for (uint k = 0; k < KEPT; ++k) kept[k] = index(k) < end ? under(kept[k]) : BEYOND;
    for (uint k = KEPT; k < places; ++k) {
      threadgroup int& own = shared[(k - KEPT) * threads];
      own = index(k) < end ? under(own) : BEYOND;
    }
  }

  int ranked(int bits, uint i) const { return i < end ? likely(as_type<float>(bits), i) : NEVER; }

  // A thread's tokens in the order of their index, as many times as the others of its simdgroup.
  template <typename Visit>
  void walk(thread Visit& visit) const {
#pragma clang loop unroll(full)
    for (uint k = 0; k < KEPT; ++k) visit(kept[k], index(k));
    for (uint k = KEPT; k < places; ++k) visit(shared[(k - KEPT) * threads], index(k));
    for (uint k = places; k < steps; ++k) visit(below(index(k)), index(k));
  }

  uint count(Place upto) const {
    Count counted = {upto, 0};
    walk(counted);
    return group_sum(counted.found, partial, place, threads);
  }

  ulong weight(Place upto) const {
    Weigh weighed = {upto, tables, 0};
    walk(weighed);
    return group_sum(weighed.sum, partial, place, threads);
  }

  // The n-th place, from 1: first how far below, then which index among equals.
  Place nth(uint n) const {
    int low = 0, high = FAR;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (count({middle, int(size)}) >= n) high = middle; else low = middle + 1;
    }
    Place found = {low, 0};
    low = 0, high = int(size) - 1;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (count({found.below, middle}) >= n) high = middle; else low = middle + 1;
    }
    found.index = low;
    return found;
  }

  // How many tokens have less than `enough` before them.
  uint needed(float enough) const {
    int low = 0, high = FAR;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (as_float(weight({middle, int(size)})) >= enough) high = middle; else low = middle + 1;
    }
    const int edge = low;
    const uint nearer = count({edge, -1});
    const ulong before = weight({edge, -1}), each = weight_of(edge, tables.coarse, tables.fine);
    low = 0, high = int(count({edge, int(size)}) - nearer);
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (as_float(before + ulong(middle) * each) >= enough) high = middle; else low = middle + 1;
    }
    return nearer + uint(low);
  }
};
