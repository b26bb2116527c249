// Attention of few queries, as when a text is written: keys and values are read once, where they lie, nothing is packed.
//
// The rows of q that read one head of keys are worked on together. Each piece of kKeys keys gives a result of its own;
// results of pieces are joined by their maxima and masses (T. Dao et al., Flash-Decoding, 2023).
#pragma once

#include "flash.h"
#include "team.h"

namespace m2ml {

// Rows of q, keys and vectors of values that meet in registers.
#if defined(__AVX512F__)
constexpr int kFewRows = 4, kFewVectors = 4;
#else
constexpr int kFewRows = 2, kFewVectors = 2;
#endif
constexpr int kFewKeys = 4;

// A row times `scale`, of one type as another.
template <class From, class To> void to_row(const From* from, To* to, int64_t n, float scale) {
  each_vector(n, [=](int64_t i, auto whole, int64_t count) { store_at(to + i, load_at(from + i, whole, count) * scale, whole, count); });
}

// scores[r][kKeys] of kRows rows of query[r][width] and `count` keys `step` apart; those of a last few beyond are no scores.
template <int kRows, class T>
void few_scores(const float* query, int64_t width, const T* keys, int64_t step, int64_t count, float* scores) {
  for (int64_t j = 0; j < count; j += kFewKeys) {
    const T* key[kFewKeys];
    for (int i = 0; i < kFewKeys; ++i) key[i] = keys + std::min(j + i, count - 1) * step;
    Floats sums[kRows][kFewKeys] = {};
    each_vector(width, [&](int64_t d, auto whole, int64_t n) __attribute__((always_inline)) {
      Floats right[kFewKeys];
#pragma GCC unroll 4
      for (int i = 0; i < kFewKeys; ++i) right[i] = load_at(key[i] + d, whole, n);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Floats left = load_at(query + r * width + d, whole, n);
#pragma GCC unroll 4
        for (int i = 0; i < kFewKeys; ++i) sums[r][i] += left * right[i];
      }
    });
    for (int r = 0; r < kRows; ++r) sums_of_four(sums[r], scores + r * kKeys + j);
  }
}

// total[r][row] = correction[r] * total[r] + weights[r][kKeys] times kVectors vectors of `count` values `step` apart, of
// which the last has n numbers.
template <int kRows, int kVectors, class T, class Whole>
void few_columns(const float* weights, const float* correction, const T* values, int64_t step, int64_t count, float* total, int64_t row, Whole whole, int64_t n) {
  Floats sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVectors; ++c) sums[r][c] = load(total + r * row + c * kLanes) * correction[r];
  for (int64_t j = 0; j < count; ++j, values += step) {
    Floats right[kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) right[c] = load_at(values + c * kLanes, whole, n);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Floats left = splat(weights[r * kKeys + j]);
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) sums[r][c] += left * right[c];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVectors; ++c) store(total + r * row + c * kLanes, sums[r][c]);
}

template <int kRows, class T>
void few_values(const float* weights, const float* correction, const T* values, int64_t step, int64_t count, int64_t width, float* total, int64_t row) {
  int64_t d = 0;
  for (; d + kFewVectors * kLanes <= width; d += kFewVectors * kLanes)
    few_columns<kRows, kFewVectors>(weights, correction, values + d, step, count, total + d, row, std::true_type{}, kLanes);
  each_vector(width - d, [&](int64_t i, auto whole, int64_t n) {
    few_columns<kRows, 1>(weights, correction, values + d + i, step, count, total + d + i, row, whole, n);
  });
}

// Calls body with the number of rows, 1 to kFewRows, as a constant.
template <class Body> void with_rows(int64_t rows, const Body& body) {
  switch (rows) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, std::min(3, kFewRows)>{});
    default: return body(std::integral_constant<int, kFewRows>{});
  }
}

// Results of the rows of q of one head of keys over some of the keys: totals are not divided by their masses yet.
struct FewResults {
  int64_t rows, padded;
  float* data;

  static int64_t size(int64_t rows, int64_t padded) { return rows * (padded + 2); }
  float& top(int64_t r) const { return data[r]; }
  float& mass(int64_t r) const { return data[rows + r]; }
  float* total(int64_t r) const { return data + 2 * rows + r * padded; }

  void clear() const {
    std::fill(data, data + rows, -kInfinity);
    std::fill(data + rows, data + size(rows, padded), 0.0f);
  }
  void join(const FewResults& other) const {
    for (int64_t r = 0; r < rows; ++r) {
      if (other.mass(r) == 0) continue;
      const float most = std::max(top(r), other.top(r));
      const float own = mass(r) == 0 ? 0.0f : std::exp(top(r) - most), others = std::exp(other.top(r) - most);
      top(r) = most, mass(r) = mass(r) * own + other.mass(r) * others;
      for (int64_t d = 0; d < padded; d += kLanes) store(total(r) + d, load(total(r) + d) * own + load(other.total(r) + d) * others);
    }
  }
};

// out = softmax(scale q kᵀ + masks) v, and log-sum-exp per row when `lse` is given, as `attend`.
template <class T> class FewQueries {
 public:
  FewQueries(const Call& call, const Rules& rules, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> out, float* lse)
      : rules_(rules), q_(q), k_(k), v_(v), rows_(rules.group() * rules.queries), padded_(round_up(rules.value_width, kLanes)) {
    const int64_t heads = rules.batches * rules.key_heads;
    int64_t pieces = 1;
    for (int64_t b = 0; b < rules.batches; ++b) pieces = std::max(pieces, seen(b).end - seen(b).begin);
    const int64_t size = FewResults::size(rows_, padded_);
    std::unique_ptr<float[]> found(new float[heads * pieces * size]);
    const auto result = [&](int64_t i) { return FewResults{rows_, padded_, found.get() + i * size}; };
    const int64_t work = rows_ * std::min(kKeys, rules.keys) * (rules.width + rules.value_width);
    Team::parallel(call, heads * pieces, 1 + kWorth / std::max<int64_t>(work, 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) read(i / pieces, i % pieces, result(i));
    });
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t piece = 1; piece < pieces; ++piece) result(head * pieces).join(result(head * pieces + piece));
      write(head, result(head * pieces), out, lse);
    }
  }

 private:
  static constexpr int64_t kWorth = 1 << 16;  // products for which a second thread is worth its while

  Range seen(int64_t b) const { return blocks_seen(rules_, b, 0, rules_.queries); }
  // The rows of q that read key head `kh`: each head of theirs, and of it each query.
  int64_t head_of(int64_t kh, int64_t r) const { return kh * rules_.group() + r / rules_.queries; }
  int64_t query_of(int64_t r) const { return r % rules_.queries; }

  void read(int64_t head, int64_t piece, const FewResults& result) const {
    result.clear();
    const int64_t b = head / rules_.key_heads, kh = head % rules_.key_heads, start = (seen(b).begin + piece) * kKeys;
    const int64_t count = std::min(kKeys, rules_.last(b, rules_.queries - 1) - start), keys = round_up(count, kLanes);
    if (count <= 0) return;
    thread_local std::vector<float> scratch;
    scratch.resize(kFewRows * (rules_.width + kKeys));
    float *query = scratch.data(), *scores = query + kFewRows * rules_.width;
    for (int64_t first = 0; first < rows_; first += kFewRows) with_rows(rows_ - first, [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      float correction[kRows];
      for (int r = 0; r < kRows; ++r)
        to_row(q_.row(b, head_of(kh, first + r), query_of(first + r)), query + r * rules_.width, rules_.width, rules_.scale);
      few_scores<kRows>(query, rules_.width, k_.row(b, kh, start), k_.step, count, scores);
      for (int r = 0; r < kRows; ++r) {
        float* row = scores + r * kKeys;
        std::fill(row + count, row + keys, -kInfinity);
        limit_scores(rules_, b, head_of(kh, first + r), query_of(first + r), start, row, keys);
        result.mass(first + r) = sum(weigh(row, keys, result.top(first + r), correction[r]));
      }
      few_values<kRows>(scores, correction, v_.row(b, kh, start), v_.step, count, rules_.value_width, result.total(first), padded_);
    });
  }

  void write(int64_t head, const FewResults& result, Heads<T> out, float* lse) const {
    const int64_t b = head / rules_.key_heads, kh = head % rules_.key_heads;
    for (int64_t r = 0; r < rows_; ++r) {
      const float mass = result.mass(r), share = mass == 0 ? 0.0f : 1.0f / mass;
      to_row(result.total(r), out.row(b, head_of(kh, r), query_of(r)), rules_.value_width, share);
      if (lse) lse[rules_.row(b, head_of(kh, r), query_of(r))] = mass == 0 ? -kInfinity : result.top(r) + std::log(mass);
    }
  }

  const Rules& rules_;
  Heads<const T> q_, k_, v_;
  int64_t rows_, padded_;
};

}  // namespace m2ml
