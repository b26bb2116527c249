// Attention of many queries, as when a text is read: blocks of queries walk the blocks of keys that they may see.
//
// Keys are packed once by each thread that needs them, transposed, so that scores come from the same register tiles as
// every product; values are packed beside them, in panels.
#pragma once

#include "flash.h"
#include "team.h"

namespace m2ml {

// What one thread has packed of the keys and values of one head, in float32, block by block when it first comes to them:
// keys[tile][d][column], values[panel][position][column].
class Packed {
 public:
  // Forgets what is packed unless it belongs to this head of this call.
  void hold(const Rules& rules, uint64_t call, int64_t head) {
    if (call == call_ && head == head_) return;
    call_ = call, head_ = head, width_ = rules.width, padded_ = round_up(rules.value_width, kTileColumns);
    const int64_t blocks = round_up(rules.keys, kKeys) / kKeys;
    ready_.assign(blocks, false), memory_.resize(blocks * size() / kLanes);
  }

  // Keys and values of a block.
  struct Block { const float *keys, *values; };
  template <class T> Block block(const Rules& rules, const Heads<const T>& k, const Heads<const T>& v, int64_t b, int64_t kh, int64_t i) {
    float *keys = reinterpret_cast<float*>(memory_.data()) + i * size(), *values = keys + kKeys * width_;
    if (!ready_[i]) {
      const int64_t start = i * kKeys, count = std::min(kKeys, rules.keys - start);
      pack_transposed(k, b, kh, start, count, width_, keys);
      to_panels<kKeys>(v, b, kh, start, count, rules.value_width, values);
      ready_[i] = true;
    }
    return {keys, values};
  }

  // Gives back what is too much to keep for the next call.
  void release() {
    if (memory_.size() * sizeof(Floats) > kKept) *this = Packed();
  }

 private:
  static constexpr size_t kKept = size_t{1} << 24;
  int64_t size() const { return kKeys * (width_ + padded_); }

  uint64_t call_ = 0;
  int64_t head_ = -1, width_ = 0, padded_ = 0;
  std::vector<bool> ready_;
  std::vector<Floats> memory_;
};

// The scores of a tile of rows become weights exp(s - maximum); the maxima and what has been summed up to now follow.
inline void weigh_tile(int64_t rows, int64_t keys, float* scores, float* top, Floats* masses, float* total, int64_t padded) {
  float now[kLanes] = {}, correction[kLanes];
  for (int64_t r = 0; r < rows; ++r) {
    Floats most = load(scores + r * kScores);
    for (int64_t j = kLanes; j < keys; j += kLanes) most = maximum(most, load(scores + r * kScores + j));
    now[r] = largest(most);
  }
  const Floats before = load_part(top, rows), after = maximum(before, load(now)), shift = where(after == splat(-kInfinity), splat(0), after);
  store(now, shift), store(correction, exp(before - shift)), store_part(top, after, rows);
  for (int64_t r = 0; r < rows; ++r) {
    masses[r] = masses[r] * correction[r] + weights_of(scores + r * kScores, keys, now[r]);
    if (correction[r] == 1.0f) continue;
    for (int64_t d = 0; d < padded; d += kTileColumns)
      for (float *to = total + d * kQueries + r * kTileColumns, *end = to + kTileColumns; to != end; to += kLanes) store(to, load(to) * correction[r]);
  }
}

// out = softmax(scale q kᵀ + masks) v, and log-sum-exp per row ([batches][queries][heads]).
template <class T>
void attend(const Call& call, const Rules& rules, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> out, float* lse) {
  static std::atomic<uint64_t> calls{0};
  const uint64_t number = ++calls;
  const int64_t blocks = round_up(rules.queries, kQueries) / kQueries, padded = round_up(rules.value_width, kTileColumns);
  Team::parallel(call, rules.batches * rules.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    thread_local Packed packed;
    thread_local std::vector<Floats> scratch;
    scratch.resize(kQueries * (round_up(rules.width, kTileColumns) + kScores + padded) / kLanes);
    float* scores = reinterpret_cast<float*>(scratch.data());
    float *total = scores + kQueries * kScores, *query = total + kQueries * padded;
    float top[kQueries];
    Floats masses[kQueries];
    for (int64_t i = begin; i < end; ++i) {
      // Of causal blocks of queries the last sees most: it comes first, so that threads end together.
      const int64_t h = i / blocks % rules.heads, b = i / blocks / rules.heads, start = (blocks - 1 - i % blocks) * kQueries;
      const int64_t rows = std::min(kQueries, rules.queries - start), kh = h / rules.group();
      packed.hold(rules, number, b * rules.key_heads + kh);
      to_panels<kQueries>(q, b, h, start, rows, rules.width, query, rules.scale);
      std::fill(top, top + rows, -kInfinity), std::fill(masses, masses + rows, splat(0));
      std::fill(total, total + kQueries * padded, 0.0f);
      const Range seen = blocks_seen(rules, b, start, start + rows);
      for (int64_t block = seen.begin; block < seen.end; ++block) {
        const auto [keys, values] = packed.block(rules, k, v, b, kh, block);
        const Parts parts(rules, b, start, rows, block * kKeys);
        score(parts, rows, rules.width, query, keys, scores);
        for (int64_t r = 0; r < rows; r += kTileRows) {
          const Part& part = parts.of[r / kTileRows];
          const int64_t many = std::min<int64_t>(kTileRows, rows - r), from = part.first / kLanes * kLanes, count = round_up(part.last, kLanes) - from;
          if (part.first == part.last) continue;
          float* tile = scores + r * kScores + from;
          if (!part.open)
            for (int64_t i = 0; i < many; ++i) limit_scores(rules, b, h, start + r + i, block * kKeys + from, tile + i * kScores, count);
          weigh_tile(many, count, tile, top + r, masses + r, total + r * kTileColumns, padded);
        }
        add_seen(parts, rows, scores, values, padded, total);
      }
      from_panels<kQueries>(total, out, b, h, start, rows, rules.value_width, [&](int64_t r) {
        const float mass = sum(masses[r]);
        lse[rules.row(b, h, start + r)] = mass == 0 ? -kInfinity : top[r] + std::log(mass);
        return mass == 0 ? 0.0f : 1.0f / mass;
      });
    }
    packed.release();
  });
}

}  // namespace m2ml
