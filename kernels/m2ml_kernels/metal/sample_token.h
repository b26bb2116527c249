// What sample_token.metal does with a row of tokens and how far, in units of 2^-20 octaves, each is below the likeliest.
// Tokens are ordered by that and by index; a place in the order is a pair of both.

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

// A row and the threadgroup that works on it; what they count, all threads get.
struct Row {
  const device int* below;
  const device uint* coarse;
  const device uint* fine;
  uint size;
  threadgroup uint* partial;
  uint place, threads;

  uint count(Place upto) const {
    uint n = 0;
    for (uint i = place; i < size; i += threads) n += upto.holds(below[i], i);
    return group_sum(n, partial, place, threads);
  }

  // In three parts of 21 bits, of which a threadgroup's sum fits into 32.
  ulong weight(Place upto) const {
    ulong mine = 0, sum = 0;
    for (uint i = place; i < size; i += threads) {
      if (upto.holds(below[i], i)) mine += weight_of(below[i], coarse, fine);
    }
    for (uint k = 0; k < 3; ++k) {
      sum += ulong(group_sum(uint(mine >> (21 * k)) & 0x1fffffu, partial, place, threads)) << (21 * k);
    }
    return sum;
  }

  // The n-th place, from 1: first how far below, then which index among equals.
  Place nth(uint n) const {
    int low = 0, high = 1 << 30;
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
    int low = 0, high = 1 << 30;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (as_float(weight({middle, int(size)})) >= enough) high = middle; else low = middle + 1;
    }
    const int edge = low;
    const uint nearer = count({edge, -1});
    const ulong before = weight({edge, -1}), each = weight_of(edge, coarse, fine);
    low = 0, high = int(count({edge, int(size)}) - nearer);
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (as_float(before + ulong(middle) * each) >= enough) high = middle; else low = middle + 1;
    }
    return nearer + uint(low);
  }
};
