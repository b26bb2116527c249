// Attention over blocks of keys with a running maximum (T. Dao et al., FlashAttention, 2022): memory linear in the length.
//
// Keys are packed once per key head, transposed, so that scores come from the same register tiles as every product;
// values are packed beside them. A block of queries then walks the blocks of keys it may see.
#pragma once

#include <memory>
#include <vector>

#include "functions.h"
#include "matrix.h"

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

constexpr int64_t kQueries = 4 * kTileRows;        // rows of a block of queries
constexpr int64_t kKeys = 4 * kTileColumns;        // columns of a block of keys

// Keys and values of one head in float32: keys[block][tile][d][column], values[position][padded width].
struct Packed {
  int64_t blocks, width, padded;
  std::unique_ptr<float[]> keys, values;

  Packed(int64_t heads, const Rules& rules)
      : blocks(round_up(rules.keys, kKeys) / kKeys), width(rules.width), padded(round_up(rules.value_width, kTileColumns)),
        keys(new float[heads * blocks * kKeys * width]), values(new float[heads * blocks * kKeys * padded]) {}
  float* key_block(int64_t head, int64_t block) const { return keys.get() + (head * blocks + block) * kKeys * width; }
  float* value_block(int64_t head, int64_t block) const { return values.get() + (head * blocks + block) * kKeys * padded; }
};

template <class T> void to_floats(const T* from, float* to, int64_t n, int64_t padded, float scale = 1) {
  each_vector(n, [&](int64_t i, auto whole, int64_t count) { store_at(to + i, load_at(from + i, whole, count) * scale, whole, count); });
  std::fill(to + n, to + padded, 0.0f);
}

template <class T> void to_rows(const float* from, T* to, int64_t n, float scale) {
  each_vector(n, [&](int64_t i, auto whole, int64_t count) { store_at(to + i, load_at(from + i, whole, count) * scale, whole, count); });
}

// rows[count][width] as panels of kTileColumns columns: the transpose, packed for `product`. Missing rows are zero.
template <class T> void pack_transposed(const Heads<const T>& from, int64_t b, int64_t h, int64_t begin, int64_t count, int64_t width, float* to) {
  for (int64_t row = 0; row < kKeys; ++row) {
    float* column = to + row / kTileColumns * width * kTileColumns + row % kTileColumns;
    if (row >= count) {
      for (int64_t d = 0; d < width; ++d) column[d * kTileColumns] = 0;
      continue;
    }
    const T* source = from.row(b, h, begin + row);
    for (int64_t d = 0; d < width; ++d) column[d * kTileColumns] = static_cast<float>(to_float(source[d]));
  }
}

template <class T> void pack(const Call& call, const Rules& rules, const Heads<const T>& k, const Heads<const T>& v, const Packed& packed) {
  call.parallel(rules.batches * rules.key_heads * packed.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % packed.blocks, head = i / packed.blocks, b = head / rules.key_heads, h = head % rules.key_heads;
      const int64_t start = block * kKeys, count = std::min(kKeys, rules.keys - start);
      pack_transposed(k, b, h, start, count, rules.width, packed.key_block(head, block));
      float* to = packed.value_block(head, block);
      for (int64_t row = 0; row < kKeys; ++row) {
        if (row < count) to_floats(v.row(b, h, start + row), to + row * packed.padded, rules.value_width, packed.padded);
        else std::fill(to + row * packed.padded, to + (row + 1) * packed.padded, 0.0f);
      }
    }
  });
}

// How much of a block of keys, from key `start` on, the queries [begin, end) may see: so many keys from its first on, and
// whether every query sees all of them, so that no score has to be looked at.
struct Part { int64_t keys; bool open; };
inline Part part_seen(const Rules& rules, int64_t b, int64_t begin, int64_t end, int64_t start) {
  const int64_t keys = std::clamp(round_up(rules.last(b, end - 1) - start, kTileColumns), kTileColumns, kKeys);
  const bool limited = rules.cap > 0 || rules.mask || rules.first(b, end - 1) > start || rules.last(b, begin) < start + keys;
  return {keys, !limited};
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

// out = softmax(scale q kᵀ + masks) v, and log-sum-exp per row when `lse` is given ([batches][queries][heads]).
template <class T>
void attend(const Call& call, const Rules& rules, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> out, float* lse) {
  const Packed packed(rules.batches * rules.key_heads, rules);
  pack(call, rules, k, v, packed);
  const int64_t blocks = round_up(rules.queries, kQueries) / kQueries;
  call.parallel(rules.batches * rules.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;
    scratch.resize(kQueries * (rules.width + kKeys + packed.padded));
    float* query = scratch.data();
    float* scores = query + kQueries * rules.width;
    float* total = scores + kQueries * kKeys;
    float top[kQueries];
    Floats masses[kQueries];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t h = i / blocks % rules.heads, b = i / blocks / rules.heads, start = i % blocks * kQueries;
      const int64_t rows = std::min(kQueries, rules.queries - start), head = b * rules.key_heads + h / rules.group();
      for (int64_t r = 0; r < rows; ++r) to_floats(q.row(b, h, start + r), query + r * rules.width, rules.width, rules.width, rules.scale);
      std::fill(top, top + rows, -kInfinity), std::fill(masses, masses + rows, splat(0));
      std::fill(total, total + rows * packed.padded, 0.0f);
      const Range seen = blocks_seen(rules, b, start, start + rows);
      for (int64_t block = seen.begin; block < seen.end; ++block) {
        const Part part = part_seen(rules, b, start, start + rows, block * kKeys);
        product<false>(rows, part.keys, rules.width, query, rules.width, 1, packed.key_block(head, block), rules.width * kTileColumns, kTileColumns, scores, kKeys);
        for (int64_t r = 0; r < rows; ++r) {
          float correction;
          if (!part.open) limit_scores(rules, b, h, start + r, block * kKeys, scores + r * kKeys, part.keys);
          const Floats added = weigh(scores + r * kKeys, part.keys, top[r], correction);
          masses[r] = masses[r] * correction + added;
          if (correction != 1.0f)
            for (int64_t d = 0; d < packed.padded; d += kLanes) store(total + r * packed.padded + d, load(total + r * packed.padded + d) * correction);
        }
        product<true>(rows, packed.padded, part.keys, scores, kKeys, 1, packed.value_block(head, block), kTileColumns, packed.padded, total, packed.padded);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const float mass = sum(masses[r]), share = mass > 0 ? 1.0f / mass : 0.0f;
        to_rows(total + r * packed.padded, out.row(b, h, start + r), rules.value_width, share);
        if (lse) lse[rules.row(b, h, start + r)] = mass > 0 ? top[r] + std::log(mass) : -kInfinity;
      }
    }
  });
}

}  // namespace m2ml
