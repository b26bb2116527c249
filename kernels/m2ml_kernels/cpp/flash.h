// Attention over blocks of keys with a running maximum (T. Dao et al., FlashAttention, 2022): memory linear in the length.
//
// What is shared by the forward pass of many queries, of few, and by the gradients.
#pragma once

#include <vector>

#include "functions.h"
#include "transpose.h"

namespace m2ml {

// An array of rows of one head: element d of position t of head h of batch b at data[b * batch + h * head + t * step + d].
template <class T> struct Heads {
  T* data;
  int64_t batch, head, step;
  T* row(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * step; }
};

// A mask broadcast over any axis by a stride of 0: bytes (0 forbids) or floats (added to the scores).
struct Mask {
  const uint8_t* allowed = nullptr;
  const float* added = nullptr;
  int64_t batch = 0, head = 0, query = 0, key = 0;
  explicit operator bool() const { return allowed || added; }
  int64_t at(int64_t b, int64_t h, int64_t q) const { return b * batch + h * head + q * query; }
};

struct Rules {
  int64_t batches, heads, key_heads, queries, keys, width, value_width;
  float scale, cap;             // cap 0: none
  bool causal, placed;          // placed: query q stands at q + shift, otherwise the last query at the row's last key
  int64_t shift, window;        // window 0: none; otherwise keys fewer than `window` away
  const int32_t* lengths;       // keys per batch, or null
  Mask mask;

  int64_t group() const { return heads / key_heads; }
  int64_t length(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, keys) : keys; }
  int64_t place(int64_t b, int64_t q) const { return q + (placed ? shift : length(b) - queries); }
  // Query q of batch b may read the keys [first, last).
  int64_t first(int64_t b, int64_t q) const { return window > 0 ? std::clamp<int64_t>(place(b, q) - window + 1, 0, keys) : 0; }
  int64_t last(int64_t b, int64_t q) const {
    int64_t end = length(b);
    if (causal) end = std::min(end, place(b, q) + 1);
    if (window > 0) end = std::min(end, place(b, q) + window);
    return std::max<int64_t>(end, 0);
  }
  int64_t row(int64_t b, int64_t h, int64_t q) const { return (b * queries + q) * heads + h; }  // of arrays [b][q][h]
};

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr int64_t kQueries = 48;  // rows of a block of queries, whole tiles
constexpr int64_t kKeys = 128;    // columns of a block of keys, whole tiles
static_assert(kQueries % kTileRows == 0 && kKeys % kTileColumns == 0);
// From one row of scores to the next: a power of two apart, rows would push each other out of the cache.
constexpr int64_t kScores = kKeys + kTileColumns;

constexpr int64_t kAhead = kLanes;  // rows
template <class T> void fetch_row(const T* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(T)) fetch(row + i);
}

// Where in panels of kRows rows column d of the first row lies, of a whole vector.
template <int64_t kRows> int64_t in_panel(int64_t d) { return d / kTileColumns * kTileColumns * kRows + d % kTileColumns; }

// Rows of a head as panels of kTileColumns columns, [panel][row of kRows][column], padded with zeros: what products read
// from either side. Rows of a head lie far apart, so that the memory has to be asked for those to come.
template <int64_t kRows, class T>
void to_panels(const Heads<const T>& from, int64_t b, int64_t h, int64_t begin, int64_t count, int64_t n, float* to, float scale = 1) {
  for (int64_t r = 0; r < count; ++r, to += kTileColumns) {
    fetch_row(from.row(b, h, begin + std::min(r + kAhead, count - 1)), n);
    const T* row = from.row(b, h, begin + r);
    each_vector(n, [=](int64_t d, auto whole, int64_t many) { store(to + in_panel<kRows>(d), load_at(row + d, whole, many) * scale); });
    for (int64_t d = round_up(n, kLanes); d % kTileColumns; d += kLanes) store(to + in_panel<kRows>(d), splat(0));
  }
}

// Rows of a head from panels, times scale(row).
template <int64_t kRows, class T, class Scale>
void from_panels(const float* from, const Heads<T>& to, int64_t b, int64_t h, int64_t begin, int64_t count, int64_t n, const Scale& scale) {
  for (int64_t r = 0; r < count; ++r, from += kTileColumns) {
    fetch_row(to.row(b, h, begin + std::min(r + kAhead, count - 1)), n);
    T* row = to.row(b, h, begin + r);
    const float factor = scale(r);
    each_vector(n, [=](int64_t d, auto whole, int64_t many) { store_at(row + d, load(from + in_panel<kRows>(d)) * factor, whole, many); });
  }
}

// rows[count][width] as panels of kTileColumns columns: the transpose, packed for products. Missing rows are zero.
template <class T> void pack_transposed(const Heads<const T>& from, int64_t b, int64_t h, int64_t begin, int64_t count, int64_t width, float* to) {
  for (int64_t row = 0; row < kKeys; row += kLanes) {
    for (int64_t next = row + kAhead; next < std::min(count, row + kAhead + kLanes); ++next) fetch_row(from.row(b, h, begin + next), width);
    pack_vector(from.row(b, h, begin + row), from.step, count - row, width, to + row / kTileColumns * width * kTileColumns + row % kTileColumns);
  }
}

// What some queries may see of a block of keys: its keys [first, last), and whether every query sees all of these and
// they are whole vectors, so that no score has to be looked at.
struct Part { int64_t first, last; bool open; };

// The parts of a block of keys, from key `start` on, that `rows` queries from `begin` on may see, kTileRows of them at a time.
struct Parts {
  Part of[kQueries / kTileRows];

  Parts(const Rules& rules, int64_t b, int64_t begin, int64_t rows, int64_t start) {
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t from = begin + r, to = begin + std::min<int64_t>(rows, r + kTileRows) - 1;
      const int64_t first = std::clamp<int64_t>(rules.first(b, from) - start, 0, kKeys);
      const int64_t last = std::clamp<int64_t>(rules.last(b, to) - start, first, kKeys);
      const bool alike = rules.first(b, to) <= start + first && rules.last(b, from) >= start + last;
      const bool whole = first % kLanes == 0 && last % kLanes == 0;
      of[r / kTileRows] = {first, last, alike && whole && !rules.mask && rules.cap == 0};
    }
  }
};

// scores[rows][kScores] = left keysᵀ, where they are seen: tiles that no query may see are left as they are.
inline void score(const Parts& parts, int64_t rows, int64_t depth, const float* left, const float* keys, float* scores) {
  for (int64_t j = 0; j < kKeys; j += kTileColumns)
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const Part& part = parts.of[r / kTileRows];
      if (part.first < j + kTileColumns && j < part.last)
        tile_rows<false, kTileColumns, 1>(std::min<int64_t>(kTileRows, rows - r), depth, left + r * kTileColumns, kTileColumns,
                                          kQueries * kTileColumns, keys + j * depth, scores + r * kScores + j, kScores);
    }
}

// to[rows] += scores[rows][kScores] right[kKeys], both of them panels, where they are seen.
inline void add_seen(const Parts& parts, int64_t rows, const float* scores, const float* right, int64_t wide, float* to) {
  for (int64_t d = 0; d < wide; d += kTileColumns)
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const Part& part = parts.of[r / kTileRows];
      tile_rows<true, kScores, 1>(std::min<int64_t>(kTileRows, rows - r), part.last - part.first, scores + r * kScores + part.first, kKeys, 0,
                                  right + d * kKeys + part.first * kTileColumns, to + d * kQueries + r * kTileColumns, kTileColumns);
    }
}

// Scores of one query row against `keys` keys, with cap, masks and limits applied; forbidden ones are -infinity.
inline void limit_scores(const Rules& rules, int64_t b, int64_t h, int64_t q, int64_t start, float* scores, int64_t keys) {
  if (rules.cap > 0)
    for (int64_t j = 0; j < keys; j += kLanes) store(scores + j, rules.cap * tanh(load(scores + j) / rules.cap));
  const int64_t first = std::clamp<int64_t>(rules.first(b, q) - start, 0, keys), last = std::clamp<int64_t>(rules.last(b, q) - start, 0, keys);
  if (rules.mask) {
    const int64_t at = rules.mask.at(b, h, q);
    for (int64_t j = first; j < last; ++j) {
      const int64_t index = at + (start + j) * rules.mask.key;
      if (rules.mask.added) scores[j] += rules.mask.added[index];
      else if (!rules.mask.allowed[index]) scores[j] = -kInfinity;
    }
  }
  std::fill(scores, scores + first, -kInfinity);
  std::fill(scores + std::max(first, last), scores + keys, -kInfinity);
}

// The scores of a row become weights exp(s - shift); returns their sums, lane by lane.
inline Floats weights_of(float* scores, int64_t keys, float shift) {
  Floats mass = splat(0);
  const auto some = [&](int64_t j, auto& weights) {
    constexpr int kCount = sizeof weights / sizeof(Floats);
    for (int i = 0; i < kCount; ++i) weights[i] = load(scores + j + i * kLanes) - shift;
    exp_falling(weights);
    for (int i = 0; i < kCount; ++i) store(scores + j + i * kLanes, weights[i]), mass += weights[i];
  };
  int64_t j = 0;
  for (Floats four[4]; j + 4 * kLanes <= keys; j += 4 * kLanes) some(j, four);
  for (Floats one[1]; j < keys; j += kLanes) some(j, one);
  return mass;
}

// Scores of one row for `keys` keys become weights exp(s - maximum); returns their sums, lane by lane, and updates the maximum.
inline Floats weigh(float* scores, int64_t keys, float& maximum_so_far, float& correction) {
  Floats top = load(scores);
  for (int64_t j = kLanes; j < keys; j += kLanes) top = maximum(top, load(scores + j));
  const float now = std::max(maximum_so_far, largest(top));
  correction = now == maximum_so_far ? 1.0f : std::exp(maximum_so_far - now);
  maximum_so_far = now;
  const Floats shift = splat(now == -kInfinity ? 0.0f : now);
  Floats total = splat(0);
  for (int64_t j = 0; j < keys; j += kLanes) {
    const Floats weight = exp(load(scores + j) - shift);
    store(scores + j, weight);
    total += weight;
  }
  return total;
}

// The blocks of keys that some of the queries [begin, end) may see.
struct Range { int64_t begin, end; };
inline Range blocks_seen(const Rules& rules, int64_t b, int64_t begin, int64_t end) {
  const int64_t first = rules.first(b, begin), last = rules.last(b, end - 1);
  return {first / kKeys, last > first ? round_up(last, kKeys) / kKeys : first / kKeys};
}

}  // namespace m2ml
