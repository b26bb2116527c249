// Gradients of attention from its results and log-sum-exp: weights are worked out again, block by block.
//
// Per block of keys and block of queries: P = exp(S - lse), dV += Pᵀ dO, dP = dO Vᵀ, dS = P (dP - rowsum(dO O) + dlse),
// dQ += dS K, dK += dSᵀ Q. One task owns all queries of one key head, so that nothing is added twice at once.
#pragma once

#include "flash.h"
#include "team.h"

namespace m2ml {

template <class T> struct Gradients { Heads<T> q, k, v; };

template <class T> class Backward {
 public:
  Backward(const Call& call, const Rules& rules, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> out,
           Heads<const T> grad, const float* lse, const float* lse_grad, Gradients<T> to)
      : rules_(rules), q_(q), k_(k), v_(v), out_(out), grad_(grad), lse_(lse), lse_grad_(lse_grad), to_(to),
        wide_(round_up(rules.width, kTileColumns)), value_wide_(round_up(rules.value_width, kTileColumns)) {
    Team::parallel(call, rules.batches * rules.key_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) head(i / rules_.key_heads, i % rules_.key_heads);
    });
  }

 private:
  // Results in half precision are too coarse for rowsum(dO O): it is the sum of P dP then, in a pass of its own.
  static constexpr bool kExact = std::is_same<T, float>::value;

  // What one thread needs for a head of keys. Blocks of queries are packed when they are first met, or anew for every block
  // of keys where there are too many to keep.
  struct Scratch {
    std::vector<float> delta;
    std::vector<bool> packed;
    std::vector<Floats> memory;
    float *query_grads, *queries, *keys, *keys_packed, *values_packed, *key_grads, *value_grads, *weights, *slopes;
    bool all;

    void resize(int64_t blocks, int64_t width, int64_t value_width, int64_t wide, int64_t value_wide) {
      const int64_t block = kQueries * (wide + value_wide);
      all = blocks * block * int64_t{sizeof(float)} <= kKept;
      const std::pair<float**, int64_t> parts[] = {
          {&query_grads, blocks * kQueries * wide}, {&queries, (all ? blocks : 1) * block}, {&keys, kKeys * wide},
          {&keys_packed, kKeys * width}, {&values_packed, kKeys * value_width}, {&key_grads, kKeys * wide},
          {&value_grads, kKeys * value_wide}, {&weights, kQueries * kScores}, {&slopes, kQueries * kScores}};
      int64_t size = 0;
      for (const auto& part : parts) size += part.second;
      memory.resize(size / kLanes);
      float* at = reinterpret_cast<float*>(memory.data());
      for (const auto& part : parts) *part.first = at, at += part.second;
      packed.assign(blocks, false);
      std::fill(query_grads, query_grads + blocks * kQueries * wide, 0.0f);
    }
    void release() {
      if (memory.size() * sizeof(Floats) > 2 * kKept) *this = Scratch();
    }
  };
  static constexpr int64_t kKept = int64_t{1} << 23;

  int64_t group() const { return rules_.group(); }
  // Blocks of the queries of a head, and of it the g-th of its group the one that begins with query t.
  int64_t blocks() const { return round_up(rules_.queries, kQueries) / kQueries; }
  int64_t block_of(int64_t g, int64_t t) const { return g * blocks() + t / kQueries; }

  void head(int64_t b, int64_t kh) {
    thread_local Scratch s;
    s.resize(group() * blocks(), rules_.width, rules_.value_width, wide_, value_wide_);
    s.delta.resize(group() * rules_.queries);
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
      for (int64_t t = 0; t < rules_.queries; t += kQueries)
        from_panels<kQueries>(s.query_grads + block_of(g, t) * kQueries * wide_, to_.q, b, kh * group() + g, t,
                              std::min(kQueries, rules_.queries - t), rules_.width, [&](int64_t) { return rules_.scale; });
    s.release();
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
    pack_transposed(k_, b, kh, start, count, rules_.width, s.keys_packed);
    pack_transposed(v_, b, kh, start, count, rules_.value_width, s.values_packed);
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
    to_panels<kKeys>(k_, b, kh, start, count, rules_.width, s.keys);
    std::fill(s.key_grads, s.key_grads + kKeys * wide_, 0.0f), std::fill(s.value_grads, s.value_grads + kKeys * value_wide_, 0.0f);
    each_pair(b, start, [&](int64_t g, int64_t t, int64_t rows) { add_gradients(b, kh, g, t, rows, start, s); });
    const auto whole = [](int64_t) { return 1.0f; };
    from_panels<kKeys>(s.key_grads, to_.k, b, kh, start, count, rules_.width, whole);
    from_panels<kKeys>(s.value_grads, to_.v, b, kh, start, count, rules_.value_width, whole);
  }

  // A block of queries of one head, scaled, and of the gradients of its results, as panels.
  struct Block { const float *query, *grads; };
  Block block_of_queries(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, Scratch& s) const {
    const int64_t i = block_of(g, t);
    float *query = s.queries + (s.all ? i : 0) * kQueries * (wide_ + value_wide_), *grads = query + kQueries * wide_;
    if (!s.all || !s.packed[i]) {
      to_panels<kQueries>(q_, b, kh * group() + g, t, rows, rules_.width, query, rules_.scale);
      to_panels<kQueries>(grad_, b, kh * group() + g, t, rows, rules_.value_width, grads);
      s.packed[i] = true;
    }
    return {query, grads};
  }

  // S and dP of a block of queries against a block of keys, where they are seen.
  void scores(const Block& block, int64_t rows, const Parts& parts, Scratch& s) const {
    score(parts, rows, rules_.width, block.query, s.keys_packed, s.weights);
    score(parts, rows, rules_.value_width, block.grads, s.values_packed, s.slopes);
  }

  void add_deltas(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, int64_t start, Scratch& s) const {
    const int64_t h = kh * group() + g;
    const Parts parts(rules_, b, t, rows, start);
    scores(block_of_queries(b, kh, g, t, rows, s), rows, parts, s);
    for (int64_t r = 0; r < rows; ++r) {
      const Part& part = parts.of[r / kTileRows];
      const int64_t from = part.first / kLanes * kLanes, count = round_up(part.last, kLanes) - from;
      float *weights = s.weights + r * kScores + from, *slopes = s.slopes + r * kScores + from;
      if (!part.open) limit_scores(rules_, b, h, t + r, start + from, weights, count);
      weights_of(weights, count, shift(b, h, t + r));
      Floats total = splat(0);
      for (int64_t j = 0; j < count; j += kLanes) total += load(weights + j) * load(slopes + j);
      s.delta[g * rules_.queries + t + r] += sum(total);
    }
  }

  void add_gradients(int64_t b, int64_t kh, int64_t g, int64_t t, int64_t rows, int64_t start, Scratch& s) const {
    const int64_t h = kh * group() + g;
    const Parts parts(rules_, b, t, rows, start);
    const Block block = block_of_queries(b, kh, g, t, rows, s);
    scores(block, rows, parts, s);
    for (int64_t r = 0; r < rows; ++r) slope_row(b, h, g, t + r, start, parts.of[r / kTileRows], s.weights + r * kScores, s.slopes + r * kScores, s);
    const Turned turned(parts, rows);
    add_turned(turned, s.weights, block.grads, value_wide_, s.value_grads);
    add_turned(turned, s.slopes, block.query, wide_, s.key_grads);
    add_seen(parts, rows, s.slopes, s.keys, wide_, s.query_grads + block_of(g, t) * kQueries * wide_);
  }

  // The rows [begin, end) of a block of queries whose tiles see some of kTileRows keys: with causal limits or windows these
  // move with the keys.
  struct Turned {
    Range of[(kKeys + kTileRows - 1) / kTileRows];

    Turned(const Parts& parts, int64_t rows) {
      for (int64_t key = 0; key < kKeys; key += kTileRows) {
        int64_t first = 0, last = (rows + kTileRows - 1) / kTileRows;
        const auto unseen = [&](int64_t tile) { return parts.of[tile].last <= key || parts.of[tile].first >= key + kTileRows; };
        while (first < last && unseen(first)) ++first;
        while (first < last && unseen(last - 1)) --last;
        of[key / kTileRows] = {first * kTileRows, std::min(rows, last * kTileRows)};
      }
    }
  };

  // to[kKeys] += scores[rows][kScores]ᵀ right[rows], both of them panels, where they are seen.
  static void add_turned(const Turned& turned, const float* scores, const float* right, int64_t wide, float* to) {
    for (int64_t d = 0; d < wide; d += kTileColumns)
      for (int64_t key = 0; key < kKeys; key += kTileRows) {
        const auto [first, last] = turned.of[key / kTileRows];
        if (first < last)
          tile_rows<true, 1, kScores>(std::min<int64_t>(kTileRows, kKeys - key), last - first, scores + first * kScores + key, kQueries, 0,
                                      right + d * kQueries + first * kTileColumns, to + d * kKeys + key * kTileColumns, kTileColumns);
      }
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
