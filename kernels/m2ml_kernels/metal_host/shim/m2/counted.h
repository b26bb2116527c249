// Compiled to be counted, a kernel has the calls that a compiler writes for ThreadSanitizer and for coverage; here they
// tell the runtime of every access and of every block of code that is entered. No sanitizer is linked.
#pragma once
#include "base.h"

#define M2_COUNTS __attribute__((used, noinline, visibility("hidden"), no_sanitize("thread"))) M2_UNCOVERED
#if defined(__clang__)
#define M2_UNCOVERED __attribute__((no_sanitize("coverage")))
#else
#define M2_UNCOVERED __attribute__((no_sanitize_coverage))
#endif
#define M2_TELL(bytes, how) m2_host->access(__builtin_return_address(0), address, bytes, m2::access::how)

extern "C" {
M2_COUNTS void __sanitizer_cov_trace_pc() {
  if (m2_host) m2_host->block(__builtin_return_address(0));  // not yet there while the object is loaded
}
M2_COUNTS void __tsan_init() {}
M2_COUNTS void __tsan_func_entry(void*) {}
M2_COUNTS void __tsan_func_exit(void*) {}
M2_COUNTS void __tsan_vptr_update(void**, void*) {}
M2_COUNTS void __tsan_vptr_read(void**) {}
M2_COUNTS void __tsan_read_range(void* address, unsigned long bytes) { M2_TELL(m2::u32(bytes), load); }
M2_COUNTS void __tsan_write_range(void* address, unsigned long bytes) { M2_TELL(m2::u32(bytes), store); }
#define M2_SIZE(bytes)                                                                              \
  M2_COUNTS void __tsan_read##bytes(void* address) { M2_TELL(bytes, load); }                        \
  M2_COUNTS void __tsan_write##bytes(void* address) { M2_TELL(bytes, store); }                      \
  M2_COUNTS void __tsan_unaligned_read##bytes(void* address) { M2_TELL(bytes, load); }              \
  M2_COUNTS void __tsan_unaligned_write##bytes(void* address) { M2_TELL(bytes, store); }            \
  M2_COUNTS void __tsan_volatile_read##bytes(void* address) { M2_TELL(bytes, load); }               \
  M2_COUNTS void __tsan_volatile_write##bytes(void* address) { M2_TELL(bytes, store); }             \
  M2_COUNTS void __tsan_unaligned_volatile_read##bytes(void* address) { M2_TELL(bytes, load); }     \
  M2_COUNTS void __tsan_unaligned_volatile_write##bytes(void* address) { M2_TELL(bytes, store); }
M2_SIZE(1)
M2_SIZE(2)
M2_SIZE(4)
M2_SIZE(8)
M2_SIZE(16)
#undef M2_SIZE
// Clang's copies.
M2_COUNTS void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  m2_host->access(__builtin_return_address(0), from, m2::u32(bytes), m2::access::load);
  m2_host->access(__builtin_return_address(0), to, m2::u32(bytes), m2::access::store);
  return __builtin_memcpy(to, from, bytes);
}
M2_COUNTS void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
  m2_host->access(__builtin_return_address(0), from, m2::u32(bytes), m2::access::load);
  m2_host->access(__builtin_return_address(0), to, m2::u32(bytes), m2::access::store);
  return __builtin_memmove(to, from, bytes);
}
M2_COUNTS void* __tsan_memset(void* address, int value, unsigned long bytes) {
  M2_TELL(m2::u32(bytes), store);
  return __builtin_memset(address, value, bytes);
}

// Atomics are replaced by these calls, not accompanied by them.
M2_COUNTS void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#define M2_ATOMIC_FETCH(bits, T, name)                                                    \
  M2_COUNTS T __tsan_atomic##bits##_fetch_##name(volatile void* address, T x, int) {      \
    M2_TELL(bits / 8, update);                                                            \
    return __atomic_fetch_##name((volatile T*)address, x, __ATOMIC_SEQ_CST);              \
  }
#define M2_ATOMIC(bits, T)                                                                                               \
  M2_COUNTS T __tsan_atomic##bits##_load(const volatile void* address, int) {                                            \
    M2_TELL(bits / 8, load);                                                                                             \
    return __atomic_load_n((const volatile T*)address, __ATOMIC_SEQ_CST);                                                \
  }                                                                                                                      \
  M2_COUNTS void __tsan_atomic##bits##_store(volatile void* address, T x, int) {                                         \
    M2_TELL(bits / 8, store);                                                                                            \
    __atomic_store_n((volatile T*)address, x, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                                      \
  M2_COUNTS T __tsan_atomic##bits##_exchange(volatile void* address, T x, int) {                                         \
    M2_TELL(bits / 8, update);                                                                                           \
    return __atomic_exchange_n((volatile T*)address, x, __ATOMIC_SEQ_CST);                                               \
  }                                                                                                                      \
  M2_COUNTS bool __tsan_atomic##bits##_compare_exchange_strong(volatile void* address, void* old, T x, int, int) {       \
    M2_TELL(bits / 8, update);                                                                                           \
    return __atomic_compare_exchange_n((volatile T*)address, (T*)old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);     \
  }                                                                                                                      \
  M2_COUNTS bool __tsan_atomic##bits##_compare_exchange_weak(volatile void* address, void* old, T x, int, int) {         \
    M2_TELL(bits / 8, update);                                                                                           \
    return __atomic_compare_exchange_n((volatile T*)address, (T*)old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);     \
  }                                                                                                                      \
  M2_COUNTS T __tsan_atomic##bits##_compare_exchange_val(volatile void* address, T old, T x, int, int) {                 \
    M2_TELL(bits / 8, update);                                                                                           \
    __atomic_compare_exchange_n((volatile T*)address, &old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);               \
    return old;                                                                                                          \
  }                                                                                                                      \
  M2_ATOMIC_FETCH(bits, T, add)                                                                                          \
  M2_ATOMIC_FETCH(bits, T, sub)                                                                                          \
  M2_ATOMIC_FETCH(bits, T, and)                                                                                          \
  M2_ATOMIC_FETCH(bits, T, or)                                                                                           \
  M2_ATOMIC_FETCH(bits, T, xor)
M2_ATOMIC(8, unsigned char)
M2_ATOMIC(16, unsigned short)
M2_ATOMIC(32, unsigned)
M2_ATOMIC(64, unsigned long)
#undef M2_ATOMIC
#undef M2_ATOMIC_FETCH
}  // extern "C"

#undef M2_TELL
#undef M2_COUNTS
#undef M2_UNCOVERED
