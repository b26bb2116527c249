// Pairs (a, b) of dimensions become (a cos - b sin, b cos + a sin), by the angle position * frequency.
//
// Sines are worked out once per token and serve all its heads. Must move: x once, y once; moves just that.
#include <vector>

#include "functions.h"

namespace m2ml {

struct Angles { const float *cosine, *sine; int64_t count; };

template <class T> void rotate_halves(const T* x, T* y, const Angles& angles) {
  each_vector(angles.count, [&](int64_t i, auto whole, int64_t n) {
    const Floats a = load_at(x + i, whole, n), b = load_at(x + angles.count + i, whole, n);
    const Floats c = load_at(angles.cosine + i, whole, n), s = load_at(angles.sine + i, whole, n);
    store_at(y + i, a * c - b * s, whole, n);
    store_at(y + angles.count + i, b * c + a * s, whole, n);
  });
}

template <class T> T from_float(float x) {
  T value;
  store_part(&value, splat(x), 1);
  return value;
}

template <class T> void rotate_neighbours(const T* x, T* y, const Angles& angles) {
  for (int64_t i = 0; i < angles.count; ++i) {
    const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]), c = angles.cosine[i], s = angles.sine[i];
    y[2 * i] = from_float<T>(a * c - b * s), y[2 * i + 1] = from_float<T>(b * c + a * s);
  }
}

template <class T> void rope(const Call& call, const float* positions, const float* frequencies, bool interleaved, float magnitude) {
  const Array input = call.in(0);
  const int64_t dim = input.size(-1), heads = input.size(-2), count = call.in(2).count();
  const T* x = input.data<T>();
  T* y = call.out(0).data<T>();
  const int64_t row = heads * dim;
  call.parallel(input.rows(-2), 1 + (int64_t{1} << 13) / std::max<int64_t>(row, 1), [&](int64_t begin, int64_t end) {
    std::vector<float> table(2 * count);
    const Angles angles{table.data(), table.data() + count, count};
    for (int64_t token = begin; token < end; ++token) {
      each_vector(count, [&](int64_t i, auto whole, int64_t n) {
        Floats sine, cosine;
        sincos(load_at(frequencies + i, whole, n) * positions[token], sine, cosine);
        store_at(table.data() + i, cosine * magnitude, whole, n);
        store_at(table.data() + count + i, sine * magnitude, whole, n);
      });
      for (int64_t h = 0; h < heads; ++h) {
        const T* from = x + token * row + h * dim;
        T* to = y + token * row + h * dim;
        interleaved ? rotate_neighbours(from, to, angles) : rotate_halves(from, to, angles);
        std::memcpy(to + 2 * count, from + 2 * count, (dim - 2 * count) * sizeof(T));
      }
    }
  });
}

}  // namespace m2ml

// in: x[*b heads dim], positions[*b] and frequencies[f] in float32; out: y; static: interleaved, magnitude.
M2ML_KERNEL(rope) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rope<T>(call, call.in(1).data<float>(), call.in(2).data<float>(), call.integer("interleaved") != 0, call.number("magnitude"));
  });
}
