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
      for (int64_t t = 0; t < rules_.queries; ++t)
        to_rows(s.query_grads.data() + (g * rules_.queries + t) * wide_, to_.q.row(b, kh * group() + g, t), rules_.width, rules_.scale);
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
    for (int64_t r = 0; r < kKeys; ++r) {
      if (r < count) to_floats(k_.row(b, kh, start + r), s.keys.data() + r * wide_, rules_.width, wide_);
      else std::fill_n(s.keys.data() + r * wide_, wide_, 0.0f);
    }
    s.key_grads.assign(kKeys * wide_, 0.0f), s.value_grads.assign(kKeys * value_wide_, 0.0f);
    each_pair(b, start, [&](int64_t g, int64_t t, int64_t rows) { add_gradients(b, kh, g, t, rows, start, s); });
    for (int64_t r = 0; r < count; ++r) {
      to_rows(s.key_grads.data() + r * wide_, to_.k.row(b, kh, start + r), rules_.width, 1.0f);
      to_rows(s.value_grads.data() + r * value_wide_, to_.v.row(b, kh, start + r), rules_.value_width, 1.0f);
    }
  }

  // S and dP of a block of queries of one head against the first `keys` of the block of keys.
  void scores(int64_t b, int64_t h, int64_t t, int64_t rows, int64_t keys, Scratch& s) const {
    for (int64_t r = 0; r < rows; ++r) {
      to_floats(q_.row(b, h, t + r), s.query.data() + r * wide_, rules_.width, wide_, rules_.scale);
      to_floats(grad_.row(b, h, t + r), s.grads.data() + r * value_wide_, rules_.value_width, value_wide_);
    }
    product<false>(rows, keys, rules_.width, s.query.data(), wide_, 1, s.keys_packed.data(), rules_.width * kTileColumns, kTileColumns, s.weights.data(), kKeys);
    product<false>(rows, keys, rules_.value_width, s.grads.data(), value_wide_, 1, s.values_packed.data(), rules_.value_width * kTileColumns, kTileColumns, s.slopes.data(), kKeys);
  }

  void add_deltas(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, int64_t start, Scratch& s) const {
    const int64_t h = kh * group() + g;
    const Part part = part_seen(rules_, b, t, t + rows, start);
    scores(b, h, t, rows, part.keys, s);
    for (int64_t r = 0; r < rows; ++r) {
      float* weights = s.weights.data() + r * kKeys;
      if (!part.open) limit_scores(rules_, b, h, t + r, start, weights, part.keys);
      const float lse = lse_[rules_.row(b, h, t + r)];
      Floats total = splat(0);
      for (int64_t j = 0; j < part.keys; j += kLanes) total += exp(load(weights + j) - (lse == -kInfinity ? 0.0f : lse)) * load(s.slopes.data() + r * kKeys + j);
      s.delta[g * rules_.queries + t + r] += sum(total);
    }
  }

  void add_gradients(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, int64_t start, Scratch& s) const {
    const int64_t h = kh * group() + g;
    const Part part = part_seen(rules_, b, t, t + rows, start);
    scores(b, h, t, rows, part.keys, s);
    float *weights = s.weights.data(), *slopes = s.slopes.data();
    for (int64_t r = 0; r < rows; ++r) slope_row(b, h, g, t + r, start, part, weights + r * kKeys, slopes + r * kKeys, s);
    product<true>(part.keys, value_wide_, rows, weights, 1, kKeys, s.grads.data(), kTileColumns, value_wide_, s.value_grads.data(), value_wide_);
    product<true>(part.keys, wide_, rows, slopes, 1, kKeys, s.query.data(), kTileColumns, wide_, s.key_grads.data(), wide_);
    float* query_grads = s.query_grads.data() + (g * rules_.queries + t) * wide_;
    product<true>(rows, wide_, part.keys, slopes, kKeys, 1, s.keys.data(), kTileColumns, wide_, query_grads, wide_);
  }

  // Scores of one row become weights, and the gradients of the weights those of the scores.
  void slope_row(int64_t b, int64_t h, int64_t g, int64_t q, int64_t start, Part part, float* weights, float* slopes, const Scratch& s) const {
    const float delta = s.delta[g * rules_.queries + q], lse = lse_[rules_.row(b, h, q)];
    float flat[kKeys];  // what the cap lets through of the slope
    if (rules_.cap > 0)
      for (int64_t j = 0; j < part.keys; j += kLanes) {
        const Floats level = tanh(load(weights + j) / rules_.cap);
        store(flat + j, 1.0f - level * level);
      }
    if (!part.open) limit_scores(rules_, b, h, q, start, weights, part.keys);
    const Floats shift = splat(lse == -kInfinity ? 0.0f : lse);
    for (int64_t j = 0; j < part.keys; j += kLanes) {
      const Floats weight = exp(load(weights + j) - shift);
      Floats slope = weight * (load(slopes + j) - delta);
      if (rules_.cap > 0) slope *= load(flat + j);
      store(weights + j, weight), store(slopes + j, slope);
    }
  }

  const Rules& rules_;
  Heads<const T> q_, k_, v_, out_, grad_;
  const float *lse_, *lse_grad_;
  Gradients<T> to_;
  int64_t wide_, value_wide_;
};

}  // namespace m2ml
