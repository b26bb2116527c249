// How a weight of packed codes lies in memory.
#pragma once

#include <vector>

#include "codes.h"

namespace m2ml {

struct Format { int64_t outputs, inputs, group, groups, words, span; };  // span: words of a group

// Scales or biases, whatever they are stored as.
struct Numbers {
  const void* from;
  void (*convert)(const void*, int64_t, int64_t, float*);

  template <class S> static Numbers of(const S* from) {
    return {from, [](const void* from, int64_t first, int64_t n, float* to) {
      const S* p = static_cast<const S*>(from) + first;
      if (n < kLanes)
        for (int64_t i = 0; i < n; ++i) to[i] = to_float(p[i]);
      else
        for (int64_t i = 0; i < n; i += kLanes) store(to + std::min(i, n - kLanes), load(p + std::min(i, n - kLanes)));
    }};
  }
  void get(int64_t first, int64_t n, float* to) const { convert(from, first, n, to); }
};

// All of the weight. There are no biases where `biases.from` is null.
struct Weight { const uint32_t* words; Numbers scales, biases; };

// A row of the weight; `last` is the first word that lies less than a vector before the end of all rows. What comes
// `ahead` of it, in rows, is asked for meanwhile.
template <class S> struct Row { const uint32_t* words; const S *scales, *biases; const uint32_t* last; int64_t ahead; };

// Lane i of the result is lane places[i] of x.
inline Floats picked(Floats x, Ints places) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_permutevar8x32_ps((__m256)x, (__m256i)places);
#else
  Floats y;
  for (int i = 0; i < kLanes; ++i) y[i] = x[places[i]];
  return y;
#endif
}

// What is used several times, in a register: GCC would rather load it each time, and loads are what there is least of.
template <class V> V held(V x) {
#if defined(__AVX512F__) && defined(__GNUC__)
  asm("" : "+v"(x));
#endif
  return x;
}

}  // namespace m2ml
