// Barriers, fences and atomics.
#pragma once
#include "base.h"
#include "vector.h"

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8, mem_object_data = 16 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
constexpr mem_flags operator&(mem_flags a, mem_flags b) { return mem_flags(int(a) & int(b)); }
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

inline void threadgroup_barrier(mem_flags flags, M2_HERE) {
  m2::site where = M2_SITE("threadgroup_barrier");
  m2_host->threadgroup_barrier(m2::u32(flags), &where);
}
inline void simdgroup_barrier(mem_flags, M2_HERE) {
  m2::site where = M2_SITE("simdgroup_barrier");
  m2_host->meet(nullptr, nullptr, &where, m2::meeting::barrier);
}
inline void atomic_thread_fence(mem_flags, memory_order = memory_order_seq_cst, thread_scope = thread_scope_device) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

template <class T>
struct atomic {
  static_assert(is_same_v<T, int> || is_same_v<T, uint> || is_same_v<T, bool> || is_same_v<T, float> || is_same_v<T, ulong> ||
                    is_same_v<T, long>,
                "atomic takes int, uint, bool, float and ulong");
  T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;

namespace detail {
template <class T, class Change>
inline T atomic_update(volatile atomic<T>* object, Change change) {
  T old, wanted;
  __atomic_load(&object->value, &old, __ATOMIC_RELAXED);
  do {
    wanted = change(old);
  } while (!__atomic_compare_exchange(&object->value, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
}  // namespace detail

template <class T>
inline T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  T out;
  __atomic_load(&object->value, &out, __ATOMIC_RELAXED);
  return out;
}
template <class T>
inline void atomic_store_explicit(volatile atomic<T>* object, detail::same_t<T> desired, memory_order) {
  __atomic_store(&object->value, &desired, __ATOMIC_RELAXED);
}
template <class T>
inline T atomic_exchange_explicit(volatile atomic<T>* object, detail::same_t<T> desired, memory_order) {
  T out;
  __atomic_exchange(&object->value, &desired, &out, __ATOMIC_RELAXED);
  return out;
}
template <class T>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected, detail::same_t<T> desired, memory_order, memory_order) {
  return __atomic_compare_exchange(&object->value, expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
#define M2_FETCH(name, value, allowed, why)                                                                  \
  template <class T>                                                                                         \
  inline T atomic_fetch_##name##_explicit(volatile atomic<T>* object, detail::same_t<T> x, memory_order) {   \
    static_assert(allowed, why);                                                                             \
    return detail::atomic_update(object, [x](T old) { return T(value); });                                   \
  }
M2_FETCH(add, old + x, true, "")
M2_FETCH(sub, old - x, true, "")
M2_FETCH(min, x < old ? x : old, is_integral_v<T>, "atomic min takes integers only")
M2_FETCH(max, old < x ? x : old, is_integral_v<T>, "atomic max takes integers only")
#undef M2_FETCH
#define M2_FETCH_BITS(name, op)                                                                              \
  template <class T>                                                                                         \
  inline T name(volatile atomic<T>* object, detail::same_t<T> x, memory_order) {                             \
    static_assert(is_integral_v<T>, "atomic bit operations take integers only");                             \
    return detail::atomic_update(object, [x](T old) { return T(old op x); });                                \
  }
M2_FETCH_BITS(atomic_fetch_and_explicit, &)
M2_FETCH_BITS(atomic_fetch_or_explicit, |)
M2_FETCH_BITS(atomic_fetch_xor_explicit, ^)
#undef M2_FETCH_BITS

}  // namespace metal
