// bfloat: the upper half of a float. Metal converts it to float by itself and never back.
#pragma once

namespace m2 {
template <class T>
constexpr bool is_bfloat_integer = false;  // what becomes a bfloat by itself
#define M2_INTEGER(T) \
  template <>         \
  constexpr bool is_bfloat_integer<T> = true;
M2_INTEGER(bool)
M2_INTEGER(char)
M2_INTEGER(signed char)
M2_INTEGER(unsigned char)
M2_INTEGER(short)
M2_INTEGER(unsigned short)
M2_INTEGER(int)
M2_INTEGER(unsigned)
M2_INTEGER(long)
M2_INTEGER(unsigned long)
M2_INTEGER(long long)
M2_INTEGER(unsigned long long)
#undef M2_INTEGER
}  // namespace m2

struct bfloat {
  unsigned short bits;

  bfloat() = default;
  constexpr explicit bfloat(float x) : bits(rounded(x)) {}
  template <class H, class = metal::enable_if_t<metal::is_same_v<H, half>>, class = void>
  constexpr explicit bfloat(H x) : bits(rounded(float(x))) {}
  template <class I, class = metal::enable_if_t<m2::is_bfloat_integer<I>>>
  constexpr bfloat(I x) : bits(rounded(float(x))) {}

  constexpr operator float() const { return __builtin_bit_cast(float, unsigned(bits) << 16); }
  constexpr explicit operator half() const { return half(float(*this)); }

  static constexpr bfloat from_bits(unsigned short bits) {
    bfloat made{};
    made.bits = bits;
    return made;
  }

 private:
  // Round to nearest, ties to even; a NaN stays one.
  static constexpr unsigned short rounded(float x) {
    unsigned u = __builtin_bit_cast(unsigned, x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((u >> 16) | 0x40u);
    return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

namespace m2 {
template <class A, class B>
constexpr bool bfloat_pair = (metal::is_same_v<A, bfloat> && (metal::is_same_v<B, bfloat> || is_bfloat_integer<B>)) ||
                             (metal::is_same_v<B, bfloat> && is_bfloat_integer<A>);
}  // namespace m2

#define M2_ARITHMETIC(op)                                                                    \
  template <class A, class B, class = metal::enable_if_t<m2::bfloat_pair<A, B>>>             \
  constexpr bfloat operator op(A a, B b) {                                                   \
    return bfloat(float(bfloat(a)) op float(bfloat(b)));                                     \
  }                                                                                          \
  template <class B, class = metal::enable_if_t<m2::is_bfloat_integer<B> || metal::is_same_v<B, bfloat> || metal::is_same_v<B, float> || metal::is_same_v<B, half>>> \
  constexpr bfloat& operator op##=(bfloat& a, B b) {                                         \
    return a = bfloat(float(a) op float(b));                                                 \
  }
M2_ARITHMETIC(+)
M2_ARITHMETIC(-)
M2_ARITHMETIC(*)
M2_ARITHMETIC(/)
#undef M2_ARITHMETIC
#define M2_COMPARE(op)                                                           \
  template <class A, class B, class = metal::enable_if_t<m2::bfloat_pair<A, B>>> \
  constexpr bool operator op(A a, B b) {                                         \
    return float(bfloat(a)) op float(bfloat(b));                                 \
  }
M2_COMPARE(==)
M2_COMPARE(!=)
M2_COMPARE(<)
M2_COMPARE(<=)
M2_COMPARE(>)
M2_COMPARE(>=)
#undef M2_COMPARE
constexpr bfloat operator-(bfloat a) { return bfloat::from_bits(a.bits ^ 0x8000u); }
constexpr bfloat operator+(bfloat a) { return a; }
constexpr bfloat& operator++(bfloat& a) { return a = a + 1; }
constexpr bfloat& operator--(bfloat& a) { return a = a - 1; }
constexpr bfloat operator++(bfloat& a, int) {
  bfloat before = a;
  ++a;
  return before;
}
constexpr bfloat operator--(bfloat& a, int) {
  bfloat before = a;
  --a;
  return before;
}
