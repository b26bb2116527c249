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
inline float group_sum(float value, threadgroup float* partial, uint place, uint threads) {
  value = metal::simd_sum(value);
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (place % 32 == 0) partial[place / 32] = value;
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  return metal::simd_sum(place % 32 < threads / 32 ? partial[place % 32] : 0.0f);
}

inline float group_max(float value, threadgroup float* partial, uint place, uint threads) {
  value = metal::simd_max(value);
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (place % 32 == 0) partial[place / 32] = value;
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  return metal::simd_max(place % 32 < threads / 32 ? partial[place % 32] : -INFINITY);
}

// Whole numbers likewise; a wide one goes in three parts of 21 bits, of which a threadgroup's sum fits into 32.
inline uint group_sum(uint value, threadgroup uint* partial, uint place, uint threads) {
  value = metal::simd_sum(value);
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (place % 32 == 0) partial[place / 32] = value;
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  return metal::simd_sum(place % 32 < threads / 32 ? partial[place % 32] : 0u);
}

inline uint group_max(uint value, threadgroup uint* partial, uint place, uint threads) {
  value = metal::simd_max(value);
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (place % 32 == 0) partial[place / 32] = value;
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  return metal::simd_max(place % 32 < threads / 32 ? partial[place % 32] : 0u);
}

inline ulong group_sum(ulong value, threadgroup uint* partial, uint place, uint threads) {
  ulong sum = 0;
  for (uint k = 0; k < 3; ++k) {
    sum += ulong(group_sum(uint(value >> (21 * k)) & 0x1fffffu, partial, place, threads)) << (21 * k);
  }
  return sum;
}

