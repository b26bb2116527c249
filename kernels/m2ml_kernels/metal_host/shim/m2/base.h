// Scalar types and type traits of Metal. No library header is included: <cmath> would put double functions in reach.
#pragma once
#include "../../runtime/interface.h"

#define __METAL__ 1
#define __METAL_VERSION__ 320
#define __METAL_CPU__ 1
#define METAL_FUNC inline
#define METAL_INTERNAL inline
#if !defined(__FAST_MATH__) && !defined(M2_SAFE_MATH)
#define __FAST_MATH__ 1
#endif

// The call site, as a hidden last parameter: which operation lanes meet at, and what messages name.
#if defined(__has_builtin)
#if __has_builtin(__builtin_COLUMN)
#define M2_COLUMN __builtin_COLUMN()
#endif
#endif
#ifndef M2_COLUMN
#define M2_COLUMN 0
#endif
#define M2_HERE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE(), unsigned column = M2_COLUMN
#define M2_SITE(what) (m2::site{file, line, column, what})

// A function that reads other lanes' stacks, which is no race.
#define M2_UNWATCHED __attribute__((no_sanitize("thread")))

extern "C" const m2::host* m2_host;

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = decltype(sizeof(0));
using ptrdiff_t = decltype((char*)0 - (char*)0);
using uintptr_t = size_t;
using intptr_t = ptrdiff_t;
using half = _Float16;

namespace metal {

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
  constexpr T operator()() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool, class A, class B>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool b, class A, class B>
using conditional_t = typename conditional<b, A, B>::type;

template <bool, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool b, class T = void>
using enable_if_t = typename enable_if<b, T>::type;

template <class T>
struct remove_reference {
  using type = T;
};
template <class T>
struct remove_reference<T&> {
  using type = T;
};
template <class T>
struct remove_reference<T&&> {
  using type = T;
};
template <class T>
struct remove_const {
  using type = T;
};
template <class T>
struct remove_const<const T> {
  using type = T;
};
template <class T>
struct remove_volatile {
  using type = T;
};
template <class T>
struct remove_volatile<volatile T> {
  using type = T;
};
template <class T>
struct remove_pointer {
  using type = T;
};
template <class T>
struct remove_pointer<T*> {
  using type = T;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
using remove_const_t = typename remove_const<T>::type;
template <class T>
using remove_cv_t = typename remove_volatile<remove_const_t<T>>::type;
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
using remove_addrspace_t = T;
template <class T>
using decay_t = remove_cv_t<remove_reference_t<T>>;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <class...>
struct _disjunction : false_type {};
template <class First, class... Rest>
struct _disjunction<First, Rest...> : bool_constant<First::value || _disjunction<Rest...>::value> {};
template <class...>
struct _conjunction : true_type {};
template <class First, class... Rest>
struct _conjunction<First, Rest...> : bool_constant<First::value && _conjunction<Rest...>::value> {};

template <class T>
T&& declval() noexcept;

namespace detail {
template <class...>
using void_t = void;
template <class T>
void accepts(T);
template <class From, class To, class = void>
struct convertible : false_type {};
template <class From, class To>
struct convertible<From, To, void_t<decltype(accepts<To>(declval<From>()))>> : true_type {};
}  // namespace detail
template <class From, class To>
struct is_convertible : detail::convertible<From, To> {};
template <class From, class To>
constexpr bool is_convertible_v = is_convertible<From, To>::value;
template <class T>
struct is_pointer : bool_constant<!is_same_v<remove_pointer_t<T>, T>> {};
template <class T>
constexpr bool is_pointer_v = is_pointer<T>::value;
template <class T>
constexpr bool is_enum_v = __is_enum(T);
template <class T>
constexpr bool is_trivially_copyable_v = __is_trivially_copyable(T);

}  // namespace metal

#include "bfloat.h"

namespace metal {

template <class T>
struct is_integral : false_type {};
#define M2_INTEGERS(X) \
  X(bool) X(char) X(signed char) X(unsigned char) X(short) X(unsigned short) X(int) X(unsigned) X(long) \
      X(unsigned long) X(long long) X(unsigned long long)
#define M2_TRAIT(T) \
  template <>       \
  struct is_integral<T> : true_type {};
M2_INTEGERS(M2_TRAIT)
#undef M2_TRAIT
template <class T>
struct is_floating_point : bool_constant<is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>> {};
template <class T>
constexpr bool is_integral_v = is_integral<remove_cv_t<T>>::value;
template <class T>
constexpr bool is_floating_point_v = is_floating_point<remove_cv_t<T>>::value;
template <class T>
struct is_arithmetic : bool_constant<is_integral_v<T> || is_floating_point_v<T>> {};
template <class T>
constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T, bool = is_arithmetic_v<T>>
struct is_signed : bool_constant<is_floating_point_v<T> || (T(-1) < T(0))> {};
template <class T>
struct is_signed<T, false> : false_type {};
template <class T>
constexpr bool is_signed_v = is_signed<T>::value;
template <class T>
constexpr bool is_unsigned_v = is_integral_v<T> && !is_signed_v<T>;
template <class T>
struct is_unsigned : bool_constant<is_unsigned_v<T>> {};

template <class T>
struct make_unsigned {
  using type = conditional_t<sizeof(T) == 1, uchar, conditional_t<sizeof(T) == 2, ushort, conditional_t<sizeof(T) == 4, uint, ulong>>>;
};
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;
template <class T>
struct make_signed {
  using type = conditional_t<sizeof(T) == 1, int8_t, conditional_t<sizeof(T) == 2, short, conditional_t<sizeof(T) == 4, int, long>>>;
};
template <class T>
using make_signed_t = typename make_signed<T>::type;

// Threads see values, not types, that are the same for all of a simdgroup; here that says nothing more.
template <class T>
using uniform = T;
template <class T>
constexpr T make_uniform(T x) {
  return x;
}

}  // namespace metal

template <class To, class From>
constexpr To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
  return __builtin_bit_cast(To, from);
}
