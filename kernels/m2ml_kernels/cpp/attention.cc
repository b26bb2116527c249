// out = softmax(scale q kᵀ + mask) v per head, and its gradients: see flash.h and flash_backward.h.
//
// Must move: q, k, v and out once; moves k and v once more, packed. Scores never leave the cache.
#include "few_queries.h"
#include "flash_backward.h"
#include "many_queries.h"

namespace m2ml {

// [batch][length][head][width]
template <class T> Heads<T> heads_of(const Array& a) {
  auto* data = const_cast<T*>(a.data<T>());
  return {data, a.size(1) * a.size(2) * a.size(3), a.size(3), a.size(2) * a.size(3)};
}

// q, k, v are the first arguments; a mask [b or 1][h or 1][t or 1][s or 1] and the lengths [b] come last, where `mask`
// (1: allowed, 2: added) and `lengths` say so.
inline Rules rules_of(const Call& call) {
  const Array q = call.in(0), k = call.in(1), v = call.in(2);
  Rules rules{};
  rules.batches = q.size(0), rules.queries = q.size(1), rules.heads = q.size(2), rules.width = q.size(3);
  rules.keys = k.size(1), rules.key_heads = k.size(2), rules.value_width = v.size(3);
  rules.scale = call.number("scale"), rules.cap = call.number("soft_cap");
  rules.causal = call.integer("causal"), rules.placed = call.integer("placed");
  rules.shift = call.integer("offset"), rules.window = call.integer("window");
  int64_t last = call.arguments();
  if (call.integer("lengths")) rules.lengths = call.in(--last).data<int32_t>();
  if (const int64_t kind = call.integer("mask")) {
    const Array mask = call.in(--last);
    int64_t stride = 1, *const strides[] = {&rules.mask.batch, &rules.mask.head, &rules.mask.query, &rules.mask.key};
    for (int axis = 3; axis >= 0; --axis) {
      *strides[axis] = mask.size(axis) > 1 ? stride : 0;
      stride *= mask.size(axis);
    }
    if (kind == 1) rules.mask.allowed = mask.data<uint8_t>();
    else rules.mask.added = mask.data<float>();
  }
  return rules;
}

}  // namespace m2ml

// out: out[b t h e], lse[b t h] in float32.
M2ML_KERNEL(attention) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Rules rules = rules_of(call);
    if (!call.out(0).count() && !call.out(1).count()) return;
    const auto q = heads_of<const T>(call.in(0)), k = heads_of<const T>(call.in(1)), v = heads_of<const T>(call.in(2));
    const auto out = heads_of<T>(call.out(0));
    float* lse = call.out(1).data<float>();
    if (rules.queries * rules.group() <= 16) FewQueries<T>(call, rules, q, k, v, out, lse);
    else attend<T>(call, rules, q, k, v, out, lse);
  });
}

// in: q, k, v, out, lse, dout, dlse in float32 (where `of_lse` is 1), mask, lengths; out: dq, dk, dv.
M2ML_KERNEL(attention_backward) {
  using namespace m2ml;
  with_type(call.in(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Rules rules = rules_of(call);
    const float* of_lse = call.integer("of_lse") ? call.in(6).data<float>() : nullptr;
    Backward<T>(call, rules, heads_of<const T>(call.in(0)), heads_of<const T>(call.in(1)), heads_of<const T>(call.in(2)),
                heads_of<const T>(call.in(3)), heads_of<const T>(call.in(5)), call.in(4).data<float>(), of_lse,
                {heads_of<T>(call.out(0)), heads_of<T>(call.out(1)), heads_of<T>(call.out(2))});
  });
}
