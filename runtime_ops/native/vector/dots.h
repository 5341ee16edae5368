// Dot products of few vectors with many rows of weights, which are used where they lie. Internal linkage: see scalar.h.
#ifndef GRAFT_VECTOR_DOTS_H_
#define GRAFT_VECTOR_DOTS_H_

#include "math.h"

namespace graft {
namespace {

// to[t * stride + r] += w[r] · x[t] from `first` up to `end`, for R rows and T tokens at a time; rows `ahead` elements
// further are asked for.
template <class V, int R, int T, int D>
inline void add_dots(const void* const* w, const float* const* x, int64_t first, int64_t end, int64_t ahead, float* to,
                     int64_t stride) {
  using F = typename V::F;
  F sum[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[r][t] = V::set1(0.0f);
  }
  int64_t i = first;
  for (; i + V::lanes <= end; i += V::lanes) {
    F y[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) y[t] = V::load(x[t] + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(element(w[r], D, ahead + i));
      const F one = widen<V>(w[r], D, i);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[r][t] = V::fma(one, y[t], sum[r][t]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      float total = V::reduce_add(sum[r][t]);
      for (int64_t j = i; j < end; ++j) total += widen1(w[r], D, j) * x[t][j];
      to[t * stride + r] += total;
    }
  }
}

template <class V, int R, int T, int D>
inline void dots(const void* const* w, const float* const* x, int64_t m, int64_t ahead, float* to, int64_t stride) {
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) to[t * stride + r] = 0.0f;
  }
  const int64_t chunk = V::chunk > 0 ? V::chunk : m;
  for (int64_t i = 0; i < m; i += chunk) add_dots<V, R, T, D>(w, x, i, least(i + chunk, m), ahead, to, stride);
}

// Rows of weights at a time: as many sums as the registers hold.
template <class V>
constexpr int dot_rows(int tokens) {
  return tokens == 1 ? 4 : tokens == 2 ? 4 : tokens == 4 && V::lanes == 16 ? 4 : V::lanes == 16 ? 2 : 1;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_DOTS_H_
