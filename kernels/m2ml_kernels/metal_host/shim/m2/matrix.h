// simdgroup_matrix, 8x8: each lane holds two neighbours of one row. Apple does not document which; MLX and llama.cpp
// rely on this layout.
#pragma once
#include "simd.h"

namespace metal {

template <class T, int rows, int columns>
struct simdgroup_matrix {
  static_assert(rows == 8 && columns == 8, "simdgroup_matrix has 8 rows and 8 columns");
  static_assert(is_floating_point_v<T>, "simdgroup_matrix holds float, half or bfloat");
  using storage_type = vec<T, 2>;
  storage_type elements;

  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    for (int i = 0; i < 2; ++i) elements.data[i] = row() == column() + i ? diagonal : T(0);
  }
  storage_type& thread_elements() { return elements; }
  const storage_type& thread_elements() const { return elements; }

  static int row_of(int lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
  static int column_of(int lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }
  static int row() { return row_of(int(m2_host->self()->lane)); }
  static int column() { return column_of(int(m2_host->self()->lane)); }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int rows, int columns>
inline simdgroup_matrix<T, rows, columns> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, rows, columns> out;
  out.elements = vec<T, 2>(value);
  return out;
}
template <class T>
inline simdgroup_matrix<T, 8, 8> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, 8, 8>(value);
}

namespace detail {
inline long element_at(int row, int column, ulong per_row, ulong2 origin, bool transpose) {
  long r = long(origin.y) + (transpose ? column : row), c = long(origin.x) + (transpose ? row : column);
  return r * long(per_row) + c;
}
template <class D, class A, class B, class C>
struct product_frame {
  vec<D, 2>* d;
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
};
// All of the product in float, rounded once.
template <class D, class A, class B, class C>
M2_UNWATCHED void resolve_product(m2::rendezvous& r) {
  using layout = simdgroup_matrix<float, 8, 8>;
  float a[8][8] = {}, b[8][8] = {};
  int terms[8], found = 0;  // 0 to 7, in the order the launch asks for
  for (int i = 0; i < 32; ++i)
    if (r.order[i] < 8) terms[found++] = r.order[i];
  for (int lane = 0; lane < 32; ++lane) {
    if (!(r.active >> lane & 1)) continue;
    auto& frame = *static_cast<product_frame<D, A, B, C>*>(r.frames[lane]);
    for (int i = 0; i < 2; ++i) {
      a[layout::row_of(lane)][layout::column_of(lane) + i] = float(frame.a.data[i]);
      b[layout::row_of(lane)][layout::column_of(lane) + i] = float(frame.b.data[i]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(r.active >> lane & 1)) continue;
    auto& frame = *static_cast<product_frame<D, A, B, C>*>(r.frames[lane]);
    int row = layout::row_of(lane);
    for (int i = 0; i < 2; ++i) {
      float sum = float(frame.c.data[i]);
      for (int k : terms) sum += a[row][k] * b[k][layout::column_of(lane) + i];
      frame.d->data[i] = D(sum);
    }
  }
}
}  // namespace detail

template <class T, class U>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const U* source, ulong per_row = 8, ulong2 origin = ulong2(0), bool transpose = false, M2_HERE) {
  static_assert(is_same_v<T, remove_cv_t<U>>, "simdgroup_load needs the memory's type to be the matrix's");
  m2::site where = M2_SITE("simdgroup_load");
  m2_host->meet(nullptr, nullptr, &where, m2::meeting::matrix);
  for (int i = 0; i < 2; ++i) d.elements.data[i] = source[detail::element_at(d.row(), d.column() + i, per_row, origin, transpose)];
}
template <class T, class U>
inline void simdgroup_store(simdgroup_matrix<T, 8, 8> a, U* target, ulong per_row = 8, ulong2 origin = ulong2(0), bool transpose = false, M2_HERE) {
  static_assert(is_same_v<T, U>, "simdgroup_store needs the memory's type to be the matrix's");
  for (int i = 0; i < 2; ++i) target[detail::element_at(a.row(), a.column() + i, per_row, origin, transpose)] = a.elements.data[i];
  m2::site where = M2_SITE("simdgroup_store");
  m2_host->meet(nullptr, nullptr, &where, m2::meeting::matrix);
}
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c, M2_HERE) {
  m2::site where = M2_SITE("simdgroup_multiply_accumulate");
  detail::product_frame<D, A, B, C> frame{&d.elements, a.elements, b.elements, c.elements};
  m2_host->meet(&detail::resolve_product<D, A, B, C>, &frame, &where, m2::meeting::matrix);
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b, M2_HERE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f), file, line, column);
}
template <class T>
inline simdgroup_matrix<T, 8, 8> operator*(simdgroup_matrix<T, 8, 8> a, simdgroup_matrix<T, 8, 8> b) {
  simdgroup_matrix<T, 8, 8> out;
  simdgroup_multiply(out, a, b);
  return out;
}

}  // namespace metal
