// Metal for libclang: nothing but declarations, with real address spaces and the compiler's own vectors. What a kernel
// computes is the host's to check; this tells what merged address spaces and class vectors hide.
#pragma once
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define kernel
#define __METAL__ 1
#define __METAL_VERSION__ 320
#define METAL_FUNC inline
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using size_t = unsigned long;
using ptrdiff_t = long;
using half = _Float16;
using bfloat = __bf16;
using float16_t = half;
using bfloat16_t = bfloat;

namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

// By value, so that an argument of any address space is read.
template <class T, class... A>
T like_first(T, A...);
#define M2_LIKE(name)            \
  template <class T, class... A> \
  T name(T, A...);
#define M2_LIKE_EACH(...) M2_LIKE_6(__VA_ARGS__)
#define M2_LIKE_6(a, b, c, d, e, f) M2_LIKE(a) M2_LIKE(b) M2_LIKE(c) M2_LIKE(d) M2_LIKE(e) M2_LIKE(f)
#define M2_MATH                                                      \
  M2_LIKE_EACH(exp, exp2, exp10, log, log2, log10)                   \
  M2_LIKE_EACH(sin, cos, tan, asin, acos, atan)                      \
  M2_LIKE_EACH(sinh, cosh, tanh, asinh, acosh, atanh)                \
  M2_LIKE_EACH(sqrt, rsqrt, pow, powr, fmod, fma)                    \
  M2_LIKE_EACH(floor, ceil, trunc, round, rint, fract)               \
  M2_LIKE_EACH(abs, fabs, min, max, fmin, fmax)                      \
  M2_LIKE_EACH(clamp, mix, saturate, sign, step, select)
M2_MATH
namespace fast {
M2_MATH
}
namespace precise {
M2_MATH
}
M2_LIKE_EACH(simd_sum, simd_product, simd_max, simd_min, simd_and, simd_or)
M2_LIKE_EACH(simd_xor, simd_shuffle, simd_shuffle_xor, simd_shuffle_down, simd_shuffle_up, simd_broadcast)
M2_LIKE_EACH(simd_prefix_inclusive_sum, simd_prefix_exclusive_sum, simd_broadcast_first, quad_sum, quad_max, quad_min)
M2_LIKE_EACH(popcount, clz, ctz, reverse_bits, rotate, mulhi)

#define M2_TEST(name)          \
  template <class T>           \
  bool name(T);
M2_TEST(isnan)
M2_TEST(isinf)
M2_TEST(isfinite)

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;

template <class T, int R, int C>
struct simdgroup_matrix {
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T);
  vec<T, 2>& thread_elements();
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
}  // namespace metal

template <class To, class From>
To as_type(From);
template <class V, class... A>
V m2_make(A...);
#define M2_VECTORS(T)                \
  using T##2 = metal::vec<T, 2>;     \
  using T##3 = metal::vec<T, 3>;     \
  using T##4 = metal::vec<T, 4>;
M2_VECTORS(float)
M2_VECTORS(half)
M2_VECTORS(int)
M2_VECTORS(uint)
M2_VECTORS(short)
M2_VECTORS(ushort)
M2_VECTORS(char)
M2_VECTORS(uchar)
M2_VECTORS(long)
M2_VECTORS(ulong)
#define float2(...) m2_make<float2>(__VA_ARGS__)
#define float3(...) m2_make<float3>(__VA_ARGS__)
#define float4(...) m2_make<float4>(__VA_ARGS__)
#define half2(...) m2_make<half2>(__VA_ARGS__)
#define half4(...) m2_make<half4>(__VA_ARGS__)
#define uint2(...) m2_make<uint2>(__VA_ARGS__)
#define uint3(...) m2_make<uint3>(__VA_ARGS__)
#define uint4(...) m2_make<uint4>(__VA_ARGS__)
#define int2(...) m2_make<int2>(__VA_ARGS__)
#define int4(...) m2_make<int4>(__VA_ARGS__)
