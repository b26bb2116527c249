// y = gate * sigmoid(gate) * up, element by element.
//
// Must move: two arrays in, one out; moves just that. Backward: three in, two out.
#include "functions.h"

namespace m2ml {

// Calls body(i, whole, n) over all elements in vectors, in parallel.
template <class Body> void elements(const Call& call, int64_t count, const Body& body) {
  call.parallel((count + kLanes - 1) / kLanes, 1 << 10, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kLanes;
    each_vector(std::min(end * kLanes, count) - first, [&](int64_t i, auto whole, int64_t n) { body(first + i, whole, n); });
  });
}

}  // namespace m2ml

// in: gate, up; out: y; all of one type.
M2ML_KERNEL(swiglu) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *gate = call.in(0).data<T>(), *up = call.in(1).data<T>();
    T* y = call.out(0).data<T>();
    elements(call, call.in(0).count(), [&](int64_t i, auto whole, int64_t n) {
      const Floats g = load_at(gate + i, whole, n);
      store_at(y + i, g * sigmoid(g) * load_at(up + i, whole, n), whole, n);
    });
  });
}

// in: gate, up, dy; out: dgate = dy up s (1 + gate (1 - s)), dup = dy gate s, with s = sigmoid(gate).
M2ML_KERNEL(swiglu_backward) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *gate = call.in(0).data<T>(), *up = call.in(1).data<T>(), *dy = call.in(2).data<T>();
    T *dgate = call.out(0).data<T>(), *dup = call.out(1).data<T>();
    elements(call, call.in(0).count(), [&](int64_t i, auto whole, int64_t n) {
      const Floats g = load_at(gate + i, whole, n), d = load_at(dy + i, whole, n), s = sigmoid(g);
      store_at(dgate + i, d * load_at(up + i, whole, n) * s * (1.0f + g * (1.0f - s)), whole, n);
      store_at(dup + i, d * g * s, whole, n);
    });
  });
}
