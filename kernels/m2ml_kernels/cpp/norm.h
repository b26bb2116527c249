// What the norms share: sums over a row, and gradients that are summed over rows.
#pragma once

#include <vector>

#include "two.h"

namespace m2ml {

// The sum of term(i, whole, n) over a row of n elements of T, in four running sums.
template <class T, class Term> float sum_of(int64_t n, const Term& term) {
  Floats total[4] = {splat(0), splat(0), splat(0), splat(0)};
  constexpr std::integral_constant<bool, true> whole{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    if constexpr (kTwoAtOnce)
      for (int k = 0; k < 4; k += 2) {
        const Two more = term(i + k * kLanes, Both<T>{}, int64_t{2 * kLanes});
        total[k] += more.low, total[k + 1] += more.high;
      }
    else
      for (int k = 0; k < 4; ++k) total[k] += term(i + k * kLanes, whole, int64_t{kLanes});
  each_vector(n - i, [&, i](int64_t j, auto part, int64_t count) { total[0] += term(i + j, part, count); });
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

// Several terms at once, and their sums over a row.
template <int kTerms, class V> struct Terms { V of[kTerms]; };
template <class V, class... More> Terms(V, More...) -> Terms<1 + sizeof...(More), V>;
template <int kTerms> struct Sums { float of[kTerms]; };
template <class T, int kTerms, class Term> Sums<kTerms> sums_of(int64_t n, const Term& term) {
  constexpr int kRunning = kTerms > 2 ? 2 : 4;
  Terms<kTerms, Floats> total[kRunning] = {};
  const auto add = [](auto& to, const auto& more) {
    for (int k = 0; k < kTerms; ++k) to.of[k] += more.of[k];
  };
  constexpr std::integral_constant<bool, true> whole{};
  int64_t i = 0;
  for (; i + kRunning * kLanes <= n; i += kRunning * kLanes)
    if constexpr (kTwoAtOnce)
      for (int k = 0; k < kRunning; k += 2) {
        const auto more = term(i + k * kLanes, Both<T>{}, int64_t{2 * kLanes});
        for (int j = 0; j < kTerms; ++j) total[k].of[j] += more.of[j].low, total[k + 1].of[j] += more.of[j].high;
      }
    else
      for (int k = 0; k < kRunning; ++k) add(total[k], term(i + k * kLanes, whole, int64_t{kLanes}));
  each_vector(n - i, [&, i](int64_t j, auto part, int64_t count) { add(total[0], term(i + j, part, count)); });
  for (int k = kRunning / 2; k; k /= 2)
    for (int j = 0; j < k; ++j) add(total[j], total[j + k]);
  Sums<kTerms> found;
  for (int k = 0; k < kTerms; ++k) found.of[k] = sum(total[0].of[k]);
  return found;
}

// Rows in parallel, in parts that are worth a thread.
template <class Work> void each_rows(const Call& call, int64_t rows, int64_t n, const Work& work) {
  call.parallel(n ? rows : 0, 1 + (int64_t{1} << 14) / std::max<int64_t>(n, 1), work);
}

// Calls body(count, row) for rows [begin, end): two at once where two rows and their sums stay in the first cache, and
// single vectors leave time for it.
template <class T, class Body> void each_few_rows(int64_t begin, int64_t end, const Body& body) {
  for (; !kTwoAtOnce && sizeof(T) == 2 && begin + 2 <= end; begin += 2) body(std::integral_constant<int, 2>{}, begin);
  for (; begin < end; ++begin) body(std::integral_constant<int, 1>{}, begin);
}

// Sums over rows of `arrays` gradients of length n: each part of the rows, if it is worth a thread, adds to sums of its own.
class RowSums {
 public:
  RowSums(const Call& call, int64_t rows, int64_t n, int64_t arrays) : n_(n), arrays_(arrays) {
    parts_ = std::clamp<int64_t>(rows * n >> 14, 1, 4 * call.threads());
    part_ = (rows + parts_ - 1) / parts_;
    sums_.assign(parts_ * arrays * n, 0.0f);
  }
  // work(begin, end, sums): rows [begin, end) into sums[array * n + i].
  template <class Work> void run(const Call& call, int64_t rows, const Work& work) {
    call.parallel(parts_, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) work(std::min(rows, p * part_), std::min(rows, (p + 1) * part_), sums_.data() + p * arrays_ * n_);
    });
  }
  // What was summed up in_order over rows of T.
  template <class T, class W> void write(int64_t array, W* to) const {
    each_two<T>(n_, [&](int64_t i, auto whole, int64_t count) {
      auto total = load_at(sums_.data() + array * n_ + i, in_order(whole), count);
      for (int64_t p = 1; p < parts_; ++p) total += load_at(sums_.data() + (p * arrays_ + array) * n_ + i, in_order(whole), count);
      store_at(to + i, total, whole, count);
    });
  }

 private:
  int64_t n_, arrays_, parts_, part_;
  std::vector<float> sums_;
};

}  // namespace m2ml
