// token = the first of the largest logits of a row; -1 where the largest is not finite or a logit is no number.
//
// Each lane keeps the largest it has met and where that was. Must move: logits once; moves just that.
#include "vector.h"

namespace m2ml {

template <class T> int32_t likeliest(const T* logits, int64_t size) {
  const float lowest = -__builtin_inff();
  Floats largest = splat(lowest);
  Ints place{}, here, odd{};
  for (int i = 0; i < kLanes; ++i) here[i] = i;
  each_vector(size, [&](int64_t i, auto whole, int64_t n) {
    Floats x;
    if constexpr (whole.value) x = load(logits + i);
    else x = load_part(logits + i, n, lowest);
    odd |= x != x;
    place = x > largest ? here + static_cast<int32_t>(i) : place;
    largest = x > largest ? x : largest;
  });
  int best = 0;
  bool numbers = true;
  for (int i = 0; i < kLanes; ++i) {
    numbers &= !odd[i];
    if (largest[i] > largest[best] || (largest[i] == largest[best] && place[i] < place[best])) best = i;
  }
  return numbers && std::isfinite(largest[best]) ? place[best] : -1;
}

}  // namespace m2ml

// in: logits[*b v]; out: tokens[*b].
M2ML_KERNEL(sample_token) {
  using namespace m2ml;
  const Array logits = call.in(0);
  const int64_t size = logits.size(-1);
  with_type(logits.type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    call.parallel(logits.rows(-1), 1 + (int64_t{1} << 16) / size, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) call.out(0).data<int32_t>()[row] = likeliest(logits.data<T>() + row * size, size);
    });
  });
}
