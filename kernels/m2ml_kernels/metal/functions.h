// What the bodies share. A body is the inside of a function that mx.fast.metal_kernel writes around it; arrays of
// fewer than eight elements are in the constant address space there, so bodies index them in place.

// 1 / (1 + exp(-x)), without overflow for x far below 0.
inline float sigmoid(float x) {
  const float e = metal::precise::exp(-metal::abs(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// x * sigmoid(x), whose left tail is halved before it is squared, so that it is not lost where e is subnormal.
inline float silu(float x) {
  const float root = metal::precise::exp(-0.5f * metal::abs(x));
  return (x < 0.0f ? x * root * root : x) / (1.0f + root * root);
}

// The sum, or the largest, of a value of each thread of a threadgroup of whole simdgroups; every thread gets it.
// `partial` has room for one of each simdgroup, and is free again for the next call.
template <typename T>
inline void put_partial(T value, threadgroup T* partial, uint place) {
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (place % 32 == 0) partial[place / 32] = value;
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
}

template <typename T>
inline T group_sum(T value, threadgroup T* partial, uint place, uint threads) {
  put_partial(metal::simd_sum(value), partial, place);
  return metal::simd_sum(place % 32 < threads / 32 ? partial[place % 32] : T(0));
}

template <typename T>
inline T group_max(T value, threadgroup T* partial, uint place, uint threads) {
  put_partial(metal::simd_max(value), partial, place);
  return metal::simd_max(partial[place % 32 < threads / 32 ? place % 32 : 0]);
}

// Wide numbers in three parts of 21 bits: simd_sum takes 32 bits, in which the sum of a threadgroup's parts fits.
inline ulong simd_sum_of(ulong value) {
  ulong sum = 0;
  for (uint k = 0; k < 3; ++k) sum += ulong(metal::simd_sum(uint(value >> (21 * k)) & 0x1fffffu)) << (21 * k);
  return sum;
}

inline ulong group_sum(ulong value, threadgroup uint* partial, uint place, uint threads) {
  ulong sum = 0;
  for (uint k = 0; k < 3; ++k) {
    sum += ulong(group_sum(uint(value >> (21 * k)) & 0x1fffffu, partial, place, threads)) << (21 * k);
  }
  return sum;
}
