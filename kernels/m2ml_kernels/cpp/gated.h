// y = f(gate) * up, element by element, and its gradients: what swiglu and geglu share.
//
// Must move: two arrays in, one out; moves just that. Backward: three in, two out.
#pragma once

#include "functions.h"

namespace m2ml {

// f and its slope at the same place.
template <class V> struct Activated { V value, slope; };
template <class V> Activated(V, V) -> Activated<V>;

// Calls body(i, whole, n) over all elements of arrays of T, in parallel.
template <class T, class Body> void elements(const Call& call, int64_t count, const Body& body) {
  constexpr int64_t kStep = kTwoAtOnce ? 2 * kLanes : kLanes, kGrain = (1 << 10) * kLanes / kStep;
  call.parallel((count + kStep - 1) / kStep, kGrain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kStep;
    each_two<T>(std::min(end * kStep, count) - first, [=](int64_t i, auto whole, int64_t n) { body(first + i, whole, n); });
  });
}

// in: gate, up; out: y; all of one type. value(gate) is f.
template <class Value> void gate_forward(const Call& call, const Value& value) {
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *gate = call.in(0).data<T>(), *up = call.in(1).data<T>();
    T* y = call.out(0).data<T>();
    const int64_t count = call.in(0).count();
    const bool past = streams(y, kLanes, 3 * count * sizeof(T));
    elements<T>(call, count, [=](int64_t i, auto whole, int64_t n) {
      store_at(y + i, value(load_at(gate + i, whole, n)) * load_at(up + i, whole, n), whole, n, past);
    });
  });
}

// in: gate, up, dy; out: dgate = dy up f'(gate), dup = dy f(gate). activate(gate) is `Activated`.
template <class Activate> void gate_backward(const Call& call, const Activate& activate) {
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *gate = call.in(0).data<T>(), *up = call.in(1).data<T>(), *dy = call.in(2).data<T>();
    T *dgate = call.out(0).data<T>(), *dup = call.out(1).data<T>();
    const int64_t count = call.in(0).count(), bytes = 5 * count * sizeof(T);
    const bool past = streams(dgate, kLanes, bytes) && streams(dup, kLanes, bytes);
    elements<T>(call, count, [=](int64_t i, auto whole, int64_t n) {
      const auto f = activate(load_at(gate + i, whole, n));
      const auto d = load_at(dy + i, whole, n);
      store_at(dgate + i, d * load_at(up + i, whole, n) * f.slope, whole, n, past);
      store_at(dup + i, d * f.value, whole, n, past);
    });
  });
}

}  // namespace m2ml
