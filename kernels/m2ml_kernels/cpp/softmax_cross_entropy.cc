// loss = lse - ((1 - s) x[label] + s mean(x)) + z lse^2 per row, with lse = log(sum(exp(x))) and s the label smoothing.
//
// Must move: the logits once (backward: once in, once out); a row is read again from cache.
#include "functions.h"
#include "norm.h"

namespace m2ml {

// The largest of a row, in four running ones; -infinity where there is nothing but NaN.
template <class T> float largest_of(const T* x, int64_t v) {
  Floats top[4];
  for (Floats& t : top) t = splat(-kInfinity);
  int64_t i = 0;
  for (; i + 4 * kLanes <= v; i += 4 * kLanes)
    if constexpr (kTwoAtOnce)
      for (int k = 0; k < 4; k += 2) {
        const Two next = load_at(x + i + k * kLanes, Both<T>{}, 2 * kLanes);
        top[k] = maximum(next.low, top[k]), top[k + 1] = maximum(next.high, top[k + 1]);
      }
    else
      for (int k = 0; k < 4; ++k) top[k] = maximum(load(x + i + k * kLanes), top[k]);
  for (; i < v; i += kLanes) top[0] = maximum(v - i < kLanes ? load_part(x + i, v - i, -kInfinity) : load(x + i), top[0]);
  return largest(maximum(maximum(top[0], top[1]), maximum(top[2], top[3])));
}

template <class T, class Exp> float sum_of_exps(const T* x, int64_t v, float shift, const Exp& exp) {
  return sum_of<T>(v, [=](int64_t i, auto whole, int64_t n) {
    fetch(x + v + i);
    if constexpr (decltype(whole)::value) return exp(load_at(x + i, whole, n) - shift);
    else return exp(load_part(x + i, n, -kInfinity) - shift);
  });
}

template <class T> float log_sum_exp(const T* x, int64_t v) {
  const float most = largest_of(x, v);
  if (!std::isfinite(most)) return std::log(sum_of_exps(x, v, 0.0f, [](auto of) { return exp(of); }));
  return std::log(sum_of_exps(x, v, most, [](auto of) { return exp_falling(of); })) + most;
}

struct Losses {
  int64_t ignored;
  float smoothing, z;
  explicit Losses(const Call& call) : ignored(call.integer("ignore_index")), smoothing(call.number("label_smoothing")), z(call.number("z_loss")) {}
};

}  // namespace m2ml

// in: logits[*b v], labels[*b] (int32); out: losses[*b], lse[*b] in float32; static: ignore_index, label_smoothing, z_loss.
M2ML_KERNEL(softmax_cross_entropy) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Losses rules(call);
    const int64_t v = call.in(0).size(-1);
    const T* logits = call.in(0).data<T>();
    const int32_t* labels = call.in(1).data<int32_t>();
    float *losses = call.out(0).data<float>(), *lses = call.out(1).data<float>();
    each_rows(call, call.in(1).count(), v, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = logits + row * v;
        const int64_t label = labels[row];
        const float lse = lses[row] = log_sum_exp(x, v);
        float expected = to_float(x[std::clamp<int64_t>(label, 0, v - 1)]);
        if (rules.smoothing != 0) {
          const float mean = sum_of<T>(v, [=](int64_t i, auto whole, int64_t n) { return load_at(x + i, whole, n); }) / static_cast<float>(v);
          expected = (1 - rules.smoothing) * expected + rules.smoothing * mean;
        }
        const float loss = lse - expected + rules.z * lse * lse;
        losses[row] = label == rules.ignored ? 0.0f : label >= 0 && label < v ? loss : std::nanf("");
      }
    });
  });
}

// in: logits, labels, lse, dloss[*b], dlse[*b] in float32; out: dlogits; static as above.
M2ML_KERNEL(softmax_cross_entropy_backward) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Losses rules(call);
    const int64_t v = call.in(0).size(-1);
    const T* logits = call.in(0).data<T>();
    const int32_t* labels = call.in(1).data<int32_t>();
    const float *lses = call.in(2).data<float>(), *of_losses = call.in(3).data<float>(), *of_lses = call.in(4).data<float>();
    T* gradients = call.out(0).data<T>();
    const bool past = streams(gradients, v, 2 * call.in(0).count() * sizeof(T));
    each_rows(call, call.in(1).count(), v, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = logits + row * v;
        T* to = gradients + row * v;
        const int64_t label = labels[row];
        const bool counts = label >= 0 && label < v && label != rules.ignored;
        const float lse = lses[row], of_loss = counts ? of_losses[row] : 0.0f;
        const float of_lse = of_loss * (1 + 2 * rules.z * lse) + of_lses[row], even = of_loss * rules.smoothing / static_cast<float>(v);
        const float sharp = of_loss * (1 - rules.smoothing);
        const auto gradient = [=](auto x) { return exp_falling(x - lse) * of_lse - even; };
        const Floats of_label = gradient(splat(counts ? to_float(x[label]) : 0.0f)) - sharp;  // `to` may be where x is
        each_two<T>(v, [=](int64_t i, auto whole, int64_t n) { store_at(to + i, gradient(load_at(x + i, whole, n)), whole, n, past); });
        if (counts) store_part(to + label, of_label, 1);
      }
    });
  });
}
