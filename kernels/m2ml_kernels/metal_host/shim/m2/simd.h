// Operations of a simdgroup and of its quads: each lane leaves its values in a frame on its stack and waits; when all
// lanes that will come have come, one function computes every lane's result.
#pragma once
#include "math.h"

namespace metal {

namespace detail {

template <class T>
constexpr bool fits_lane = sizeof(scalar_of_t<T>) <= 4 && is_arithmetic_v<scalar_of_t<T>> && !is_same_v<scalar_of_t<T>, bool>;
#define M2_FITS(T) \
  static_assert(detail::fits_lane<T>, "simd and quad operations take numbers of at most 32 bits, and vectors of them")

template <int width>
constexpr m2::meeting meeting_of = width == 4 ? m2::meeting::quad : m2::meeting::simd;

struct sum {
  template <class T>
  static T of(T a, T b) { return T(a + b); }
};
struct product {
  template <class T>
  static T of(T a, T b) { return T(a * b); }
};
struct least {
  template <class T>
  static T of(T a, T b) { return min(a, b); }
};
struct greatest {
  template <class T>
  static T of(T a, T b) { return max(a, b); }
};
struct bit_and {
  template <class T>
  static T of(T a, T b) { return T(a & b); }
};
struct bit_or {
  template <class T>
  static T of(T a, T b) { return T(a | b); }
};
struct bit_xor {
  template <class T>
  static T of(T a, T b) { return T(a ^ b); }
};

template <class T>
struct lane_values {
  T value, other;  // other: the filling of a shuffle
  T result;
  m2::u32 argument, modulo;
};

// A tree over the active lanes of each group of `width`, in the order the launch asks for.
template <class T, class Op, int width>
M2_UNWATCHED void resolve_reduction(m2::rendezvous& r) {
  for (int base = 0; base < 32; base += width) {
    T values[32];
    int count = 0;
    for (int i = 0; i < 32; ++i) {
      int lane = r.order[i];
      if (lane / width == base / width && (r.active >> lane & 1)) values[count++] = static_cast<lane_values<T>*>(r.frames[lane])->value;
    }
    for (int n = count; n > 1; n = (n + 1) / 2)
      for (int i = 0; i < n / 2; ++i) values[i] = Op::of(values[i], values[i + (n + 1) / 2]);
    for (int lane = base; lane < base + width; ++lane)
      if (r.active >> lane & 1) static_cast<lane_values<T>*>(r.frames[lane])->result = values[0];
  }
}

template <class T, class Op, int width, bool inclusive>
M2_UNWATCHED void resolve_prefix(m2::rendezvous& r) {
  for (int base = 0; base < 32; base += width) {
    T so_far = is_same_v<Op, product> ? T(1) : T(0);
    for (int lane = base; lane < base + width; ++lane) {
      if (!(r.active >> lane & 1)) continue;
      auto& frame = *static_cast<lane_values<T>*>(r.frames[lane]);
      T before = so_far;
      so_far = Op::of(so_far, frame.value);
      frame.result = inclusive ? so_far : before;
    }
  }
}

// Where a lane's value comes from: a lane, or `keep` for the lane's own, or `fill` plus a lane for that lane's filling.
constexpr int keep = -1, fill = 64;
struct from_lane {
  static constexpr bool uniform = false;
  static int source(int, int argument, int, int) { return argument; }
};
struct from_uniform_lane {
  static constexpr bool uniform = true;
  static int source(int, int argument, int, int) { return argument; }
};
struct from_xor {
  static constexpr bool uniform = true;
  static int source(int lane, int argument, int, int) { return lane ^ argument; }
};
struct from_down {
  static constexpr bool uniform = true;
  static int source(int lane, int delta, int, int width) { return lane + delta < width ? lane + delta : keep; }
};
struct from_up {
  static constexpr bool uniform = true;
  static int source(int lane, int delta, int, int) { return lane >= delta ? lane - delta : keep; }
};
struct from_rotated_down {
  static constexpr bool uniform = true;
  static int source(int lane, int delta, int, int width) { return (lane + delta) % width; }
};
struct from_rotated_up {
  static constexpr bool uniform = true;
  static int source(int lane, int delta, int, int width) { return (lane + width - delta % width) % width; }
};
struct from_filled_down {
  static constexpr bool uniform = true;
  static int source(int lane, int delta, int modulo, int) {
    int within = lane % modulo + delta;
    return within < modulo ? lane + delta : fill + (lane - lane % modulo) + within % modulo;
  }
};
struct from_filled_up {
  static constexpr bool uniform = true;
  static int source(int lane, int delta, int modulo, int) {
    int within = lane % modulo - delta;
    return within >= 0 ? lane - delta : fill + (lane - lane % modulo) + (within % modulo + modulo) % modulo;
  }
};

template <class T, class From, int width>
M2_UNWATCHED void resolve_shuffle(m2::rendezvous& r) {
  int first = __builtin_ctz(r.active);
  auto** frames = reinterpret_cast<lane_values<T>**>(r.frames);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(r.active >> lane & 1)) continue;
    if (From::uniform && frames[lane]->argument != frames[first]->argument) r.undefined(r, lane, "the lanes give different lane numbers or deltas");
    int base = lane / width * width;
    int source = From::source(lane - base, int(frames[lane]->argument), int(frames[lane]->modulo), width);
    bool filled = source >= fill;
    int from = source == keep ? lane : base + (filled ? source - fill : source);
    if (source < keep || from < base || from >= base + width || !(r.active >> from & 1)) {
      __builtin_memset(&frames[lane]->result, 0xff, sizeof(T));
      r.undefined(r, lane, from < base || from >= base + width ? "the lane read is outside the group" : "the lane read is inactive");
    } else {
      frames[lane]->result = filled ? frames[from]->other : frames[from]->value;
    }
  }
}

template <class T, int width>
M2_UNWATCHED void resolve_broadcast_first(m2::rendezvous& r) {
  for (int base = 0; base < 32; base += width) {
    m2::u32 mask = r.active & ((width == 32 ? ~0u : (1u << width % 32) - 1u) << base);
    if (!mask) continue;
    T value = static_cast<lane_values<T>*>(r.frames[__builtin_ctz(mask)])->value;
    for (int lane = base; lane < base + width; ++lane)
      if (r.active >> lane & 1) static_cast<lane_values<T>*>(r.frames[lane])->result = value;
  }
}

struct ballot {
  bool value;
  m2::u32 result, active, lane;
};
template <int width>
M2_UNWATCHED void resolve_ballot(m2::rendezvous& r) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(r.active >> lane & 1)) continue;
    int base = lane / width * width;
    m2::u32 votes = 0, present = 0;
    for (int i = base; i < base + width; ++i) {
      if (!(r.active >> i & 1)) continue;
      present |= 1u << (i - base);
      votes |= m2::u32(static_cast<ballot*>(r.frames[i])->value) << (i - base);
    }
    auto& frame = *static_cast<ballot*>(r.frames[lane]);
    frame.result = votes;
    frame.active = present;
    frame.lane = lane - base;
  }
}

template <class T>
inline T meet(m2::resolver resolve, lane_values<T> frame, const m2::site& where, m2::meeting kind) {
  m2_host->meet(resolve, &frame, &where, kind);
  return frame.result;
}
template <int width>
inline ballot vote(bool value, const m2::site& where) {
  ballot frame{value, 0, 0, 0};
  m2_host->meet(&resolve_ballot<width>, &frame, &where, meeting_of<width>);
  return frame;
}

}  // namespace detail

#define M2_REDUCTION(group, width, name, op)                                                                       \
  template <class T>                                                                                               \
  inline T group##_##name(T data, M2_HERE) {                                                                       \
    M2_FITS(T);                                                                                                    \
    return detail::meet<T>(&detail::resolve_reduction<T, detail::op, width>, {data, data, data, 0, width},         \
                           M2_SITE(#group "_" #name), detail::meeting_of<width>);                                  \
  }
#define M2_PREFIX(group, width, name, op, inclusive)                                                               \
  template <class T>                                                                                               \
  inline T group##_prefix_##name(T data, M2_HERE) {                                                                \
    M2_FITS(T);                                                                                                    \
    return detail::meet<T>(&detail::resolve_prefix<T, detail::op, width, inclusive>, {data, data, data, 0, width}, \
                           M2_SITE(#group "_prefix_" #name), detail::meeting_of<width>);                           \
  }
#define M2_SHUFFLE(group, width, name, from)                                                                       \
  template <class T>                                                                                               \
  inline T group##_##name(T data, ushort argument, M2_HERE) {                                                      \
    M2_FITS(T);                                                                                                    \
    return detail::meet<T>(&detail::resolve_shuffle<T, detail::from, width>, {data, data, data, argument, width},  \
                           M2_SITE(#group "_" #name), detail::meeting_of<width>);                                  \
  }
#define M2_FILLING(group, width, name, from)                                                                           \
  template <class T>                                                                                                   \
  inline T group##_shuffle_and_fill_##name(T data, detail::same_t<T> filling, ushort delta, ushort modulo, M2_HERE) {  \
    M2_FITS(T);                                                                                                        \
    return detail::meet<T>(&detail::resolve_shuffle<T, detail::from, width>, {data, filling, data, delta, modulo},     \
                           M2_SITE(#group "_shuffle_and_fill_" #name), detail::meeting_of<width>);                     \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  inline T group##_shuffle_and_fill_##name(T data, detail::same_t<T> filling, ushort delta, M2_HERE) {                 \
    return group##_shuffle_and_fill_##name(data, filling, delta, ushort(width), file, line, column);                   \
  }
#define M2_GROUP(group, width)                                                                          \
  M2_REDUCTION(group, width, sum, sum)                                                                  \
  M2_REDUCTION(group, width, product, product)                                                          \
  M2_REDUCTION(group, width, min, least)                                                                \
  M2_REDUCTION(group, width, max, greatest)                                                             \
  M2_PREFIX(group, width, inclusive_sum, sum, true)                                                     \
  M2_PREFIX(group, width, exclusive_sum, sum, false)                                                    \
  M2_PREFIX(group, width, inclusive_product, product, true)                                             \
  M2_PREFIX(group, width, exclusive_product, product, false)                                            \
  M2_SHUFFLE(group, width, shuffle, from_lane)                                                          \
  M2_SHUFFLE(group, width, shuffle_xor, from_xor)                                                       \
  M2_SHUFFLE(group, width, shuffle_down, from_down)                                                     \
  M2_SHUFFLE(group, width, shuffle_up, from_up)                                                         \
  M2_SHUFFLE(group, width, shuffle_rotate_down, from_rotated_down)                                      \
  M2_SHUFFLE(group, width, shuffle_rotate_up, from_rotated_up)                                          \
  M2_SHUFFLE(group, width, broadcast, from_uniform_lane)                                                \
  M2_FILLING(group, width, down, from_filled_down)                                                      \
  M2_FILLING(group, width, up, from_filled_up)                                                          \
  template <class T>                                                                                    \
  inline T group##_broadcast_first(T data, M2_HERE) {                                                   \
    M2_FITS(T);                                                                                         \
    return detail::meet<T>(&detail::resolve_broadcast_first<T, width>, {data, data, data, 0, width},    \
                           M2_SITE(#group "_broadcast_first"), detail::meeting_of<width>);              \
  }                                                                                                     \
  inline bool group##_all(bool x, M2_HERE) {                                                            \
    auto told = detail::vote<width>(x, M2_SITE(#group "_all"));                                         \
    return told.result == told.active;                                                                  \
  }                                                                                                     \
  inline bool group##_any(bool x, M2_HERE) {                                                            \
    return detail::vote<width>(x, M2_SITE(#group "_any")).result != 0;                                  \
  }                                                                                                     \
  inline bool group##_is_first(M2_HERE) {                                                               \
    auto told = detail::vote<width>(true, M2_SITE(#group "_is_first"));                                 \
    return told.lane == m2::u32(__builtin_ctz(told.active));                                            \
  }                                                                                                     \
  struct group##_vote {                                                                                 \
    using vote_t = ulong;                                                                               \
    ulong votes = 0;                                                                                    \
    explicit constexpr group##_vote(ulong v = 0) : votes(v) {}                                          \
    explicit constexpr operator ulong() const { return votes; }                                         \
    bool all() const { return votes == (width == 32 ? 0xfffffffful : 0xful); }                          \
    bool any() const { return votes != 0; }                                                             \
  };                                                                                                    \
  inline group##_vote group##_ballot(bool x, M2_HERE) {                                                 \
    return group##_vote(detail::vote<width>(x, M2_SITE(#group "_ballot")).result);                      \
  }                                                                                                     \
  inline group##_vote group##_active_threads_mask(M2_HERE) {                                            \
    return group##_vote(detail::vote<width>(true, M2_SITE(#group "_active_threads_mask")).result);      \
  }
M2_GROUP(simd, 32)
M2_GROUP(quad, 4)
#undef M2_GROUP

// `and`, `or` and `xor` are operators of C++ and cannot be pasted: these six are named in full.
#define M2_BITWISE(name, width, op)                                                                            \
  template <class T>                                                                                           \
  inline T name(T data, M2_HERE) {                                                                             \
    M2_FITS(T);                                                                                                \
    return detail::meet<T>(&detail::resolve_reduction<T, detail::op, width>, {data, data, data, 0, width},     \
                           M2_SITE(#name), detail::meeting_of<width>);                                         \
  }
M2_BITWISE(simd_and, 32, bit_and)
M2_BITWISE(simd_or, 32, bit_or)
M2_BITWISE(simd_xor, 32, bit_xor)
M2_BITWISE(quad_and, 4, bit_and)
M2_BITWISE(quad_or, 4, bit_or)
M2_BITWISE(quad_xor, 4, bit_xor)
#undef M2_BITWISE
#undef M2_REDUCTION
#undef M2_PREFIX
#undef M2_SHUFFLE
#undef M2_FILLING

}  // namespace metal
