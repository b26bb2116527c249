// y = activation((x - m) / sqrt(v + eps) * weight + bias) per channel, the last axis; m and v of the batch or given.
//
// In training the statistics of blocks of rows are merged (Chan, Golub and LeVeque, 1983), so that x is read twice and
// not three times. Must move: x once (twice in training), y once; moves just that.
#include <vector>

#include "activation.h"
#include "norm.h"

namespace m2ml {

// Per channel: how many rows, their mean, and the sum of the squares of what lies beside it.
struct Moments {
  float count = 0;
  std::vector<float> mean, squares;
  explicit Moments(int64_t channels) : mean(channels), squares(channels) {}

  void merge(float rows, const float* other_mean, const float* other_squares) {
    const float all = count + rows, share = rows / all, both = count * share;
    float *means = mean.data(), *sums = squares.data();
    each_vector(static_cast<int64_t>(mean.size()), [=](int64_t i, auto whole, int64_t n) {
      const Floats apart = load_at(other_mean + i, whole, n) - load_at(means + i, whole, n);
      store_at(means + i, load_at(means + i, whole, n) + apart * share, whole, n);
      store_at(sums + i, load_at(sums + i, whole, n) + load_at(other_squares + i, whole, n) + apart * apart * both, whole, n);
    });
    count = all;
  }
};

// Adds how far rows lie from the row `one`, and its square. Sums are in_order of T, here and below.
template <class T> void add_apart(const T* one, const T* x, int64_t rows, int64_t channels, float* sums, float* squares) {
  each_two<T>(channels, [=](int64_t i, auto whole, int64_t n) {
    const auto about = load_at(one + i, whole, n);
    auto sum = load_at(sums + i, in_order(whole), n), square = load_at(squares + i, in_order(whole), n);
    for (int64_t r = 0; r < rows; ++r) {
      const auto apart = load_at(x + r * channels + i, whole, n) - about;
      sum += apart, square += apart * apart;
    }
    store_at(sums + i, sum, in_order(whole), n), store_at(squares + i, square, in_order(whole), n);
  });
}

// total += the rows [begin, end) of x.
template <class T> void add_rows(const T* x, int64_t begin, int64_t end, int64_t channels, Moments& total) {
  const int64_t block = std::clamp<int64_t>((int64_t{1} << 15) / channels, 1, 64);
  std::vector<float> scratch(2 * channels);
  float *mean = scratch.data(), *squares = mean + channels;
  for (int64_t start = begin; start < end; start += block) {
    const int64_t rows = std::min(block, end - start);
    const T* from = x + start * channels;
    std::fill_n(mean, 2 * channels, 0.0f);
    // About a value of the block's own, so that no more than it has rows is lost to cancellation.
    for (int64_t r = 1; r < rows; r += 4) add_apart(from, from + r * channels, std::min<int64_t>(4, rows - r), channels, mean, squares);
    each_two<T>(channels, [=](int64_t i, auto whole, int64_t n) {
      const auto order = in_order(whole);
      const auto sum = load_at(mean + i, order, n), share = sum / static_cast<float>(rows);
      const auto beside = load_at(squares + i, order, n) - sum * share;
      store_at(mean + i, load_at(from + i, whole, n) + share, order, n), store_at(squares + i, maximum(decltype(beside)(splat(0)), beside), order, n);
    });
    total.merge(static_cast<float>(rows), mean, squares);
  }
}

template <class T> Moments moments(const Call& call, const T* x, int64_t rows, int64_t channels) {
  const int64_t parts = std::clamp<int64_t>(rows * channels >> 14, 1, 4 * call.threads()), part = (rows + parts - 1) / parts;
  std::vector<Moments> found(parts, Moments(channels));
  call.parallel(parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) add_rows(x, std::min(rows, p * part), std::min(rows, (p + 1) * part), channels, found[p]);
  });
  for (int64_t p = 1; p < parts; ++p)
    if (found[p].count > 0) found[0].merge(found[p].count, found[p].mean.data(), found[p].squares.data());
  return found[0];
}

}  // namespace m2ml

// in: x[*b c], mean, variance, weight, bias [c] in float32; out: y[*b c], mean, variance; static: train, momentum, eps,
// activation.
M2ML_KERNEL(batch_norm_act) {
  using namespace m2ml;
  const int64_t channels = call.in(0).size(-1), rows = channels ? call.in(0).rows(-1) : 0;
  const float *mean = call.in(1).data<float>(), *variance = call.in(2).data<float>();
  const float *weight = call.in(3).data<float>(), *bias = call.in(4).data<float>();
  float *new_mean = call.out(1).data<float>(), *new_variance = call.out(2).data<float>();
  const float eps = call.number("eps"), by = call.number("momentum"), rest = call.number("rest");
  std::vector<float> scratch(3 * channels);
  float *levels = scratch.data(), *scales = levels + channels, *shifts = scales + channels;  // in_order
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* x = call.in(0).data<T>();
    T* y = call.out(0).data<T>();
    if (call.integer("train")) {
      const Moments batch = moments(call, x, rows, channels);
      const float *of_batch = batch.mean.data(), *squares = batch.squares.data(), count = batch.count;
      each_two<T>(channels, [=](int64_t i, auto whole, int64_t n) {
        const auto order = in_order(whole);
        const auto level = load_at(of_batch + i, order, n), square = load_at(squares + i, order, n);
        store_at(levels + i, level, order, n), store_at(scales + i, square / count, order, n);
        store_at(new_mean + i, rest * load_at(mean + i, whole, n) + by * level, whole, n);
        store_at(new_variance + i, rest * load_at(variance + i, whole, n) + by * (square / (count - 1)), whole, n);
      });
    } else {
      std::copy_n(mean, channels, new_mean), std::copy_n(variance, channels, new_variance);
      each_two<T>(channels, [=](int64_t i, auto whole, int64_t n) {
        store_at(levels + i, load_at(mean + i, whole, n), in_order(whole), n), store_at(scales + i, load_at(variance + i, whole, n), in_order(whole), n);
      });
    }
    each_two<T>(channels, [=](int64_t i, auto whole, int64_t n) {
      const auto order = in_order(whole);
      store_at(scales + i, 1.0f / square_root(load_at(scales + i, order, n) + eps) * load_at(weight + i, whole, n), order, n);
      store_at(shifts + i, load_at(bias + i, whole, n), order, n);
    });
    const bool past = y != x && streams(y, channels, 2 * call.in(0).count() * sizeof(T));
    with_activation(call.integer("activation"), [&](auto activate) {
      each_rows(call, rows, channels, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const T* from = x + row * channels;
          T* to = y + row * channels;
          each_two<T>(channels, [=](int64_t i, auto whole, int64_t n) {
            const auto order = in_order(whole);
            const auto normal = (load_at(from + i, whole, n) - load_at(levels + i, order, n)) * load_at(scales + i, order, n);
            store_at(to + i, activate(normal + load_at(shifts + i, order, n)), whole, n, past);
          });
        }
      });
    });
  });
}
