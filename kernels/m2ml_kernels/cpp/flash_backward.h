// Gradients of attention from its results and log-sum-exp: weights are worked out again, block by block.
//
// Per block of keys and block of queries: P = exp(S - lse), dV += Pᵀ dO, dP = dO Vᵀ, dS = P (dP - rowsum(dO O) + dlse),
// dQ += dS K, dK += dSᵀ Q. One task owns all queries of one key head, so that nothing is added twice at once.
#pragma once

#include "flash.h"

namespace m2ml {

template <class T> struct Gradients { Heads<T> q, k, v; };

template <class T> class Backward {
 public:
  Backward(const Call& call, const Rules& rules, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> out,
           Heads<const T> grad, const float* lse, const float* lse_grad, Gradients<T> to)
      : rules_(rules), q_(q), k_(k), v_(v), out_(out), grad_(grad), lse_(lse), lse_grad_(lse_grad), to_(to),
        wide_(round_up(rules.width, kTileColumns)), value_wide_(round_up(rules.value_width, kTileColumns)) {
    call.parallel(rules.batches * rules.key_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) head(i / rules_.key_heads, i % rules_.key_heads);
    });
  }

 private:
  // Results in half precision are too coarse for rowsum(dO O): it is the sum of P dP then, in a pass of its own.
  static constexpr bool kExact = std::is_same<T, float>::value;

  struct Scratch {
    std::vector<float> query_grads, delta, keys, keys_packed, values_packed, key_grads, value_grads, query, grads, weights, slopes;
  };

  int64_t group() const { return rules_.group(); }

  void head(int64_t b, int64_t kh) {
    thread_local Scratch s;
    s.query_grads.assign(group() * rules_.queries * wide_, 0.0f);
    s.delta.resize(group() * rules_.queries);
    s.keys.resize(kKeys * wide_), s.keys_packed.resize(kKeys * rules_.width), s.values_packed.resize(kKeys * rules_.value_width);
    s.query.resize(kQueries * wide_), s.grads.resize(kQueries * value_wide_);
    s.weights.resize(kQueries * kKeys), s.slopes.resize(kQueries * kKeys);
    for (int64_t g = 0; g < group(); ++g)
      for (int64_t t = 0; t < rules_.queries; ++t) {
        const int64_t h = kh * group() + g;
        s.delta[g * rules_.queries + t] = (kExact ? dot(b, h, t) : 0.0f) - (lse_grad_ ? lse_grad_[rules_.row(b, h, t)] : 0.0f);
      }
    if (!kExact)
      for (int64_t start = 0; start < rules_.keys; start += kKeys) {
        pack_block(b, kh, start, s);
        each_pair(b, start, [&](int64_t g, int64_t t, int64_t rows) { add_deltas(b, kh, g, t, rows, start, s); });
      }
    for (int64_t start = 0; start < rules_.keys; start += kKeys) block(b, kh, start, s);
    for (int64_t g = 0; g < group(); ++g)
      to_rows(s.query_grads.data() + g * rules_.queries * wide_, wide_, to_.q, b, kh * group() + g, 0, rules_.queries, rules_.width,
              [&](int64_t) { return rules_.scale; });
  }

  // What is taken from the scores of a query that its weights are their exponentials; its log-sum-exp where it reads a key.
  float shift(int64_t b, int64_t h, int64_t t) const {
    const float lse = lse_[rules_.row(b, h, t)];
    return lse == -kInfinity ? 0.0f : lse;
  }

  float dot(int64_t b, int64_t h, int64_t t) const {
    const T *o = out_.row(b, h, t), *g = grad_.row(b, h, t);
    Floats total = splat(0);
    each_vector(rules_.value_width, [&](int64_t d, auto whole, int64_t n) { total += load_at(o + d, whole, n) * load_at(g + d, whole, n); });
    return sum(total);
  }

  void pack_block(int64_t b, int64_t kh, int64_t start, Scratch& s) const {
    const int64_t count = std::min(kKeys, rules_.keys - start);
    pack_transposed(k_, b, kh, start, count, rules_.width, s.keys_packed.data());
    pack_transposed(v_, b, kh, start, count, rules_.value_width, s.values_packed.data());
  }

  // Calls body(head of the group, first query, rows) for the blocks of queries that may read the block of keys.
  template <class Body> void each_pair(int64_t b, int64_t start, const Body& body) const {
    for (int64_t g = 0; g < group(); ++g)
      for (int64_t t = 0; t < rules_.queries; t += kQueries) {
        const int64_t rows = std::min(kQueries, rules_.queries - t);
        const Range seen = blocks_seen(rules_, b, t, t + rows);
        if (start / kKeys >= seen.begin && start / kKeys < seen.end) body(g, t, rows);
      }
  }

  void block(int64_t b, int64_t kh, int64_t start, Scratch& s) {
    const int64_t count = std::min(kKeys, rules_.keys - start);
    pack_block(b, kh, start, s);
    to_floats(k_, b, kh, start, count, rules_.width, s.keys.data(), wide_);
    s.key_grads.assign(kKeys * wide_, 0.0f), s.value_grads.assign(kKeys * value_wide_, 0.0f);
    each_pair(b, start, [&](int64_t g, int64_t t, int64_t rows) { add_gradients(b, kh, g, t, rows, start, s); });
    const auto whole = [](int64_t) { return 1.0f; };
    to_rows(s.key_grads.data(), wide_, to_.k, b, kh, start, count, rules_.width, whole);
    to_rows(s.value_grads.data(), value_wide_, to_.v, b, kh, start, count, rules_.value_width, whole);
  }

  // S and dP of a block of queries of one head against a block of keys, where they are seen.
  void scores(int64_t b, int64_t h, int64_t t, int64_t rows, const Parts& parts, Scratch& s) const {
    to_floats(q_, b, h, t, rows, rules_.width, s.query.data(), wide_, rules_.scale);
    to_floats(grad_, b, h, t, rows, rules_.value_width, s.grads.data(), value_wide_);
    score(parts, rows, rules_.width, s.query.data(), wide_, s.keys_packed.data(), s.weights.data());
    score(parts, rows, rules_.value_width, s.grads.data(), value_wide_, s.values_packed.data(), s.slopes.data());
  }

  void add_deltas(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, int64_t start, Scratch& s) const {
    const int64_t h = kh * group() + g;
    const Parts parts(rules_, b, t, rows, start);
    scores(b, h, t, rows, parts, s);
    for (int64_t r = 0; r < rows; ++r) {
      const Part& part = parts.of[r / kTileRows];
      const int64_t from = part.first / kLanes * kLanes, count = round_up(part.last, kLanes) - from;
      float* weights = s.weights.data() + r * kKeys + from;
      if (!part.open) limit_scores(rules_, b, h, t + r, start + from, weights, count);
      weights_of(weights, count, shift(b, h, t + r));
      Floats total = splat(0);
      for (int64_t j = 0; j < count; j += kLanes) total += load(weights + j) * load(s.slopes.data() + r * kKeys + from + j);
      s.delta[g * rules_.queries + t + r] += sum(total);
    }
  }

  void add_gradients(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, int64_t start, Scratch& s) const {
    const int64_t h = kh * group() + g;
    const Parts parts(rules_, b, t, rows, start);
    scores(b, h, t, rows, parts, s);
    float *weights = s.weights.data(), *slopes = s.slopes.data();
    for (int64_t r = 0; r < rows; ++r) slope_row(b, h, g, t + r, start, parts.of[r / kTileRows], weights + r * kKeys, slopes + r * kKeys, s);
    // Keys [key, key + count) are seen by the tiles of rows [first, last): with causal limits or windows these move with the keys.
    for (int64_t key = 0; key < kKeys; key += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, kKeys - key);
      int64_t first = 0, last = (rows + kTileRows - 1) / kTileRows;
      const auto unseen = [&](int64_t tile) { return parts.of[tile].last <= key || parts.of[tile].first >= key + count; };
      while (first < last && unseen(first)) ++first;
      while (first < last && unseen(last - 1)) --last;
      first *= kTileRows, last = std::min(rows, last * kTileRows);
      if (first >= last) continue;
      add_tiles(count, last - first, weights + first * kKeys + key, s.grads.data() + first * value_wide_, value_wide_, s.value_grads.data() + key * value_wide_);
      add_tiles(count, last - first, slopes + first * kKeys + key, s.query.data() + first * wide_, wide_, s.key_grads.data() + key * wide_);
    }
    float* query_grads = s.query_grads.data() + (g * rules_.queries + t) * wide_;
    for (int64_t d = 0; d < wide_; d += kTileColumns)
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const Part& part = parts.of[r / kTileRows];
        tile_rows<true>(std::min<int64_t>(kTileRows, rows - r), part.last - part.first, slopes + r * kKeys + part.first, kKeys, 1,
                        s.keys.data() + part.first * wide_ + d, wide_, query_grads + r * wide_ + d, wide_);
      }
  }

  // to[count][wide] += left[rows][kKeys]ᵀ right[rows][wide].
  static void add_tiles(int64_t count, int64_t rows, const float* left, const float* right, int64_t wide, float* to) {
    for (int64_t d = 0; d < wide; d += kTileColumns) tile_rows<true>(count, rows, left, 1, kKeys, right + d, wide, to + d, wide);
  }

  // Scores of one row become weights, and the gradients of the weights those of the scores; 0 where the tile sees nothing.
  void slope_row(int64_t b, int64_t h, int64_t g, int64_t q, int64_t start, const Part& part, float* weights, float* slopes, const Scratch& s) const {
    const float delta = s.delta[g * rules_.queries + q];
    const int64_t from = part.first / kLanes * kLanes, to = round_up(part.last, kLanes);
    float flat[kKeys];  // what the cap lets through of the slope
    if (rules_.cap > 0)
      for (int64_t j = from; j < to; j += kLanes) {
        const Floats level = tanh(load(weights + j) / rules_.cap);
        store(flat + j, 1.0f - level * level);
      }
    if (!part.open) limit_scores(rules_, b, h, q, start + from, weights + from, to - from);
    weights_of(weights + from, to - from, shift(b, h, q));
    for (int64_t j = from; j < to; j += kLanes) {
      const Floats slope = load(weights + j) * (load(slopes + j) - delta);
      store(slopes + j, rules_.cap > 0 ? slope * load(flat + j) : slope);
    }
    for (float* row : {weights, slopes}) std::fill(row, row + from, 0.0f), std::fill(row + to, row + kKeys, 0.0f);
  }

  const Rules& rules_;
  Heads<const T> q_, k_, v_, out_, grad_;
  const float *lse_, *lse_grad_;
  Gradients<T> to_;
  int64_t wide_, value_wide_;
};

}  // namespace m2ml
