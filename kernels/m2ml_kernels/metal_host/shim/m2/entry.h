// What the generated end of a translation unit needs: threadgroup variables, and the call of the kernel with its
// arguments, whose types are those of the function itself.
#pragma once
#include "matrix.h"
#include "sync.h"

namespace m2 {

template <class T>
inline T* threadgroup_variable(const char* name, const char* file, u32 line) {
  site where{file, line, 0, name};
  return static_cast<T*>(m2_host->threadgroup_variable(&where, sizeof(T), alignof(T)));
}

enum class source : u32 { buffer, threadgroup, attribute };
enum class attribute : u32 {
  dispatch_quadgroups_per_threadgroup,
  dispatch_simdgroups_per_threadgroup,
  dispatch_threads_per_threadgroup,
  grid_origin,
  grid_size,
  quadgroup_index_in_threadgroup,
  quadgroups_per_threadgroup,
  simdgroup_index_in_threadgroup,
  simdgroups_per_threadgroup,
  thread_execution_width,
  thread_index_in_quadgroup,
  thread_index_in_simdgroup,
  thread_index_in_threadgroup,
  thread_position_in_grid,
  thread_position_in_threadgroup,
  threadgroup_position_in_grid,
  threadgroups_per_grid,
  threads_per_grid,
  threads_per_simdgroup,
  threads_per_threadgroup,
};
struct slot {
  source from;
  u32 index;
};

inline u32 count(extent e) { return e.x * e.y * e.z; }
inline extent value_of(attribute a, const thread_info& t) {
  auto one = [](u32 x) { return extent{x, 0, 0}; };
  switch (a) {
    case attribute::dispatch_quadgroups_per_threadgroup: return one((count(t.dispatch_threads_per_threadgroup) + 3) / 4);
    case attribute::dispatch_simdgroups_per_threadgroup: return one(t.dispatch_simdgroups_per_threadgroup);
    case attribute::dispatch_threads_per_threadgroup: return t.dispatch_threads_per_threadgroup;
    case attribute::grid_origin: return extent{0, 0, 0};
    case attribute::grid_size: return t.threads_per_grid;
    case attribute::quadgroup_index_in_threadgroup: return one(t.index_in_threadgroup / 4);
    case attribute::quadgroups_per_threadgroup: return one((count(t.threads_per_threadgroup) + 3) / 4);
    case attribute::simdgroup_index_in_threadgroup: return one(t.simdgroup);
    case attribute::simdgroups_per_threadgroup: return one(t.simdgroups_per_threadgroup);
    case attribute::thread_execution_width: return one(simd_width);
    case attribute::thread_index_in_quadgroup: return one(t.index_in_threadgroup % 4);
    case attribute::thread_index_in_simdgroup: return one(t.lane);
    case attribute::thread_index_in_threadgroup: return one(t.index_in_threadgroup);
    case attribute::thread_position_in_grid: return t.position_in_grid;
    case attribute::thread_position_in_threadgroup: return t.position_in_threadgroup;
    case attribute::threadgroup_position_in_grid: return t.threadgroup;
    case attribute::threadgroups_per_grid: return t.threadgroups_per_grid;
    case attribute::threads_per_grid: return t.threads_per_grid;
    case attribute::threads_per_simdgroup: return one(simd_width);
    case attribute::threads_per_threadgroup: return t.threads_per_threadgroup;
  }
  return extent{0, 0, 0};
}

template <class A>
struct argument {
  using from = metal::remove_reference_t<A>;
  static A get(slot s, void* const* buffers, void* const* memory, const thread_info& t) {
    void* address = s.from == source::buffer ? buffers[s.index] : s.from == source::threadgroup ? memory[s.index] : nullptr;
    if constexpr (!metal::is_same_v<A, from>) {
      return *static_cast<from*>(address);
    } else if constexpr (metal::is_pointer_v<A>) {
      return static_cast<A>(address);
    } else {
      static_assert(metal::is_integral_v<metal::scalar_of_t<A>>, "an argument that is no pointer or reference is an attribute, of integers");
      extent e = value_of(attribute(s.index), t);
      if constexpr (metal::detail::components<A>::count == 1) {
        return A(e.x);
      } else {
        A out = A::zero();
        u32 all[3] = {e.x, e.y, e.z};
        for (int i = 0; i < metal::detail::components<A>::count; ++i) out.data[i] = metal::scalar_of_t<A>(all[i]);
        return out;
      }
    }
  }
};

// Arguments in braces are evaluated from left to right, so `next` walks the slots.
template <class... A>
struct invocation {
  invocation(void (*kernel)(A...), A... a) { kernel(static_cast<A>(a)...); }
};
template <class... A>
inline void call(void (*kernel)(A...), const slot* slots, void* const* buffers, void* const* memory, const thread_info& t) {
  [[maybe_unused]] const slot* next = slots;
  invocation<A...>{kernel, argument<A>::get(*next++, buffers, memory, t)...};
}

// What each parameter's memory holds, to be found in the compiled object by its mark: the kind of its numbers ('f'
// float and half, 'b' bfloat, 'i' integers, '?' bool, '-' what no array is checked against) and their bytes.
struct held {
  char kind, bytes;
};
template <class T>
struct numbers_of {
  using type = metal::scalar_of_t<T>;
};
template <class T, int N>
struct numbers_of<metal::packed_vec<T, N>> {
  using type = T;
};
template <class T>
struct numbers_of<metal::atomic<T>> {
  using type = T;
};
template <class A>
constexpr held held_by() {
  using all = metal::remove_cv_t<metal::remove_pointer_t<metal::remove_reference_t<A>>>;
  using T = typename numbers_of<all>::type;
  if constexpr (metal::is_same_v<A, all>) return {'-', 0};  // an attribute
  else if constexpr (metal::is_same_v<T, bool>) return {'?', 1};
  else if constexpr (metal::is_same_v<T, bfloat>) return {'b', 2};
  else if constexpr (metal::is_floating_point_v<T>) return {'f', sizeof(T)};
  else if constexpr (metal::is_integral_v<T>) return {'i', sizeof(T)};
  else return {'-', 0};
}
template <class... A>
struct contents {
  char mark[12] = {'m', '2', ':', 'c', 'o', 'n', 't', 'e', 'n', 't', 's', '='};
  held each[sizeof...(A) + 1] = {held_by<A>()..., {'-', 0}};
};
template <class... A>
constexpr contents<A...> contents_of(void (*)(A...)) {
  return {};
}

// What the compiler's checks of undefined behaviour call, with where it happened.
struct checked_place {
  const char* file;
  u32 line, column;
};
inline void undefined(const checked_place* place, const char* what) {
  site where{place->file, place->line, place->column, "undefined behaviour"};
  m2_host->fault(&where, what);
}

}  // namespace m2

#define M2_CHECK(name, what) \
  extern "C" __attribute__((weak, visibility("hidden"))) void name(const m2::checked_place* place, ...) { m2::undefined(place, what); }
#ifndef M2_LIBRARY_CHECKS
M2_CHECK(__ubsan_handle_divrem_overflow, "an integer is divided by zero, or the quotient does not fit")
M2_CHECK(__ubsan_handle_divrem_overflow_abort, "an integer is divided by zero, or the quotient does not fit")
M2_CHECK(__ubsan_handle_out_of_bounds, "an index is outside its array")
M2_CHECK(__ubsan_handle_out_of_bounds_abort, "an index is outside its array")
M2_CHECK(__ubsan_handle_shift_out_of_bounds, "a shift is by more bits than the number has")
M2_CHECK(__ubsan_handle_shift_out_of_bounds_abort, "a shift is by more bits than the number has")
#endif
