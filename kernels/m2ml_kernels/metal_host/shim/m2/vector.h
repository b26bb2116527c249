// vec<T, 2..4> and packed_vec. Swizzles come from the rewriter as calls: v.xz reads v.swizzle<0, 2>(), a copy;
// v.xz = ... becomes v.swizzle_ref<0, 2>() = ..., which writes exactly those components.
#pragma once
#include "base.h"
#include "limits.h"

// What a list in braces becomes; the compiler knows it by this name, and no header is included for it.
namespace std {
template <class T>
class initializer_list {
  const T* start_ = nullptr;
  size_t count_ = 0;

 public:
  constexpr size_t size() const { return count_; }
  constexpr const T* begin() const { return start_; }
};
}  // namespace std

namespace metal {

template <class T, int N>
struct vec;

namespace detail {
template <class T, int N, bool packed>
struct storage;
template <class T>
struct storage<T, 2, false> {
  union alignas(2 * sizeof(T)) {
    T data[2];
    struct { T x, y; };
    struct { T r, g; };
  };
};
template <class T>
struct storage<T, 3, false> {
  union alignas(4 * sizeof(T)) {
    T data[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
  };
};
template <class T>
struct storage<T, 4, false> {
  union alignas(4 * sizeof(T)) {
    T data[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
  };
};
template <class T>
struct storage<T, 2, true> {
  union {
    T data[2];
    struct { T x, y; };
    struct { T r, g; };
  };
};
template <class T>
struct storage<T, 3, true> {
  union {
    T data[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
  };
};
template <class T>
struct storage<T, 4, true> {
  union {
    T data[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
  };
};

template <class T>
struct components {
  static constexpr int count = 1;
};

// The named components of a vector, to be written to.
template <class T, int... I>
struct components_of {
  T* data;
  using value = vec<T, sizeof...(I)>;

  constexpr components_of& operator=(value v) {
    int from = 0;
    ((data[I] = v.data[from++]), ...);
    return *this;
  }
  constexpr operator value() const { return value(data[I]...); }
#define M2_UPDATE(op) \
  constexpr components_of& operator op##=(value v) { return *this = value(*this) op v; }
  M2_UPDATE(+)
  M2_UPDATE(-)
  M2_UPDATE(*)
  M2_UPDATE(/)
  M2_UPDATE(%)
  M2_UPDATE(&)
  M2_UPDATE(|)
  M2_UPDATE(^)
  M2_UPDATE(<<)
  M2_UPDATE(>>)
#undef M2_UPDATE
};
}  // namespace detail

template <class T, int N>
struct packed_vec;

template <class T, int N>
struct vec : detail::storage<T, N, false> {
  static_assert(N >= 2 && N <= 4, "a vector has 2 to 4 components");
  using detail::storage<T, N, false>::data;

  vec() = default;
  constexpr vec(T all) : vec(fill(all)) {}
  template <class U>
  constexpr explicit vec(vec<U, N> from) {
    for (int i = 0; i < N; ++i) data[i] = T(from.data[i]);
  }
  constexpr vec(packed_vec<T, N> from) {
    for (int i = 0; i < N; ++i) data[i] = from.data[i];
  }
  template <class A, class B, class... Rest,
            class = enable_if_t<((detail::components<A>::count + detail::components<B>::count) + ... +
                                 detail::components<Rest>::count) == N>>
  constexpr vec(A a, B b, Rest... rest) : vec(zero()) {
    int at = 0;
    put(at, a);
    put(at, b);
    (put(at, rest), ...);
  }

  // In braces components may be left out, and are zero then.
  constexpr vec(std::initializer_list<T> list) : vec(zero()) {
    for (size_t i = 0; i < list.size(); ++i) data[i] = list.begin()[i];
    if (list.size() == 1) *this = fill(data[0]);
  }

  constexpr T& operator[](int i) { return data[i]; }
  constexpr const T& operator[](int i) const { return data[i]; }
  template <int... I>
  constexpr const vec<T, sizeof...(I)> swizzle() const {
    return vec<T, sizeof...(I)>(data[I]...);
  }
  template <int... I>
  constexpr detail::components_of<T, I...> swizzle_ref() {
    return {data};
  }

#define M2_BINARY(op)                                                \
  friend constexpr vec operator op(vec a, vec b) {                   \
    vec out = zero();                                                \
    for (int i = 0; i < N; ++i) out.data[i] = T(a.data[i] op b.data[i]); \
    return out;                                                      \
  }                                                                  \
  constexpr vec& operator op##=(vec b) { return *this = *this op b; }
  M2_BINARY(+)
  M2_BINARY(-)
  M2_BINARY(*)
  M2_BINARY(/)
  M2_BINARY(%)
  M2_BINARY(&)
  M2_BINARY(|)
  M2_BINARY(^)
  M2_BINARY(<<)
  M2_BINARY(>>)
#undef M2_BINARY
#define M2_COMPARE(op)                                             \
  friend constexpr vec<bool, N> operator op(vec a, vec b) {        \
    vec<bool, N> out = vec<bool, N>::zero();                       \
    for (int i = 0; i < N; ++i) out.data[i] = a.data[i] op b.data[i]; \
    return out;                                                    \
  }
  M2_COMPARE(==)
  M2_COMPARE(!=)
  M2_COMPARE(<)
  M2_COMPARE(<=)
  M2_COMPARE(>)
  M2_COMPARE(>=)
  M2_COMPARE(&&)
  M2_COMPARE(||)
#undef M2_COMPARE
  friend constexpr vec operator-(vec a) {
    for (int i = 0; i < N; ++i) a.data[i] = T(-a.data[i]);
    return a;
  }
  friend constexpr vec operator+(vec a) { return a; }
  friend constexpr vec operator~(vec a) {
    for (int i = 0; i < N; ++i) a.data[i] = T(~a.data[i]);
    return a;
  }
  friend constexpr vec<bool, N> operator!(vec a) { return a == vec(T(0)); }
  constexpr vec& operator++() { return *this += vec(T(1)); }
  constexpr vec& operator--() { return *this -= vec(T(1)); }
  constexpr vec operator++(int) {
    vec before = *this;
    ++*this;
    return before;
  }
  constexpr vec operator--(int) {
    vec before = *this;
    --*this;
    return before;
  }

  static constexpr vec zero() {
    vec out{};
    for (int i = 0; i < N; ++i) out.data[i] = T(0);
    return out;
  }

 private:
  static constexpr vec fill(T all) {
    vec out{};
    for (int i = 0; i < N; ++i) out.data[i] = all;
    return out;
  }
  template <class A>
  constexpr void put(int& at, A a) {
    if constexpr (detail::components<A>::count == 1) {
      data[at++] = T(a);
    } else {
      for (int i = 0; i < detail::components<A>::count; ++i) data[at++] = T(a.data[i]);
    }
  }
};

// The same components without padding or alignment; converts to and from vec.
template <class T, int N>
struct packed_vec : detail::storage<T, N, true> {
  using detail::storage<T, N, true>::data;
  packed_vec() = default;
  constexpr packed_vec(T all) : packed_vec(vec<T, N>(all)) {}
  constexpr packed_vec(vec<T, N> from) {
    for (int i = 0; i < N; ++i) data[i] = from.data[i];
  }
  template <class A, class B, class... Rest>
  constexpr packed_vec(A a, B b, Rest... rest) : packed_vec(vec<T, N>(a, b, rest...)) {}
  constexpr T& operator[](int i) { return data[i]; }
  constexpr const T& operator[](int i) const { return data[i]; }
  template <int... I>
  constexpr const vec<T, sizeof...(I)> swizzle() const {
    return vec<T, sizeof...(I)>(data[I]...);
  }
  template <int... I>
  constexpr detail::components_of<T, I...> swizzle_ref() {
    return {data};
  }
#define M2_UPDATE(op) \
  constexpr packed_vec& operator op##=(vec<T, N> b) { return *this = packed_vec(vec<T, N>(*this) op b); }
  M2_UPDATE(+)
  M2_UPDATE(-)
  M2_UPDATE(*)
  M2_UPDATE(/)
#undef M2_UPDATE
  friend constexpr vec<T, N> operator-(packed_vec a) { return -vec<T, N>(a); }
};

namespace detail {
template <class T>
struct same {
  using type = T;
};
template <class T>
using same_t = typename same<T>::type;  // a parameter that takes no part in deduction
}  // namespace detail

#define M2_BINARY(op)                                                                  \
  template <class T, int N>                                                            \
  constexpr vec<T, N> operator op(packed_vec<T, N> a, packed_vec<T, N> b) {            \
    return vec<T, N>(a) op vec<T, N>(b);                                               \
  }                                                                                    \
  template <class T, int N>                                                            \
  constexpr vec<T, N> operator op(packed_vec<T, N> a, detail::same_t<T> b) {           \
    return vec<T, N>(a) op vec<T, N>(b);                                               \
  }                                                                                    \
  template <class T, int N>                                                            \
  constexpr vec<T, N> operator op(detail::same_t<T> a, packed_vec<T, N> b) {           \
    return vec<T, N>(a) op vec<T, N>(b);                                               \
  }
M2_BINARY(+)
M2_BINARY(-)
M2_BINARY(*)
M2_BINARY(/)
#undef M2_BINARY

namespace detail {
template <class T, int N>
struct components<vec<T, N>> {
  static constexpr int count = N;
};
template <class T, int N>
struct components<packed_vec<T, N>> {
  static constexpr int count = N;
};
template <class T, int... I>
struct components<components_of<T, I...>> {
  static constexpr int count = sizeof...(I);
};
}  // namespace detail

template <class T>
struct scalar_of {
  using type = T;
};
template <class T, int N>
struct scalar_of<vec<T, N>> {
  using type = T;
};
template <class T>
using scalar_of_t = typename scalar_of<T>::type;

// A fixed array that is copied as a value.
template <class T, size_t N>
struct array {
  T elems[N];
  constexpr T& operator[](size_t i) { return elems[i]; }
  constexpr const T& operator[](size_t i) const { return elems[i]; }
  constexpr size_t size() const { return N; }
  constexpr T* data() { return elems; }
  constexpr const T* data() const { return elems; }
  constexpr T* begin() { return elems; }
  constexpr T* end() { return elems + N; }
};

}  // namespace metal

#define M2_VECTORS(T, name)               \
  using name##2 = metal::vec<T, 2>;       \
  using name##3 = metal::vec<T, 3>;       \
  using name##4 = metal::vec<T, 4>;       \
  using packed_##name##2 = metal::packed_vec<T, 2>; \
  using packed_##name##3 = metal::packed_vec<T, 3>; \
  using packed_##name##4 = metal::packed_vec<T, 4>;
M2_VECTORS(bool, bool)
M2_VECTORS(signed char, char)
M2_VECTORS(unsigned char, uchar)
M2_VECTORS(short, short)
M2_VECTORS(unsigned short, ushort)
M2_VECTORS(int, int)
M2_VECTORS(unsigned int, uint)
M2_VECTORS(long, long)
M2_VECTORS(unsigned long, ulong)
M2_VECTORS(float, float)
M2_VECTORS(half, half)
M2_VECTORS(bfloat, bfloat)
#undef M2_VECTORS
