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

// One row with one vector: four sums instead of four rows, because one row after the other is what processors foresee.
template <class V, int D>
inline float dot_row(const void* w, const float* x, int64_t first, int64_t end, int64_t ahead) {
  using F = typename V::F;
  F sum[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) sum[j] = V::set1(0.0f);
  int64_t i = first;
  for (; i + 4 * V::lanes <= end; i += 4 * V::lanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if (ahead > 0) __builtin_prefetch(element(w, D, ahead + i + j * V::lanes));
      sum[j] = V::fma(widen<V>(w, D, i + j * V::lanes), V::load(x + i + j * V::lanes), sum[j]);
    }
  }
  for (; i + V::lanes <= end; i += V::lanes) sum[0] = V::fma(widen<V>(w, D, i), V::load(x + i), sum[0]);
  float total = V::reduce_add(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
  for (; i < end; ++i) total += widen1(w, D, i) * x[i];
  return total;
}

template <class V, int R, int T, int D>
inline void dots(const void* const* w, const float* const* x, int64_t m, int64_t ahead, float* to, int64_t stride) {
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) to[t * stride + r] = 0.0f;
  }
  constexpr int64_t part = int64_t{V::chain} * V::lanes;  // every lane makes a sum of its own
  for (int64_t i = 0; i < m; i += part) {
    if constexpr (R == 1 && T == 1) *to += dot_row<V, D>(*w, *x, i, least(i + part, m), ahead);
    else add_dots<V, R, T, D>(w, x, i, least(i + part, m), ahead, to, stride);
  }
}

// How far ahead of its use a row is asked for, where rows follow each other and are read one by one.
template <int D>
constexpr int64_t kStreamAhead = D == GRAFT_F32 ? 512 : 1024;

// Rows of weights at a time: as many sums as the registers hold, but one row where one vector reads it.
template <class V>
constexpr int dot_rows(int tokens) {
  return tokens == 1 ? 1 : tokens == 2 ? 4 : tokens == 4 && V::lanes == 16 ? 4 : V::lanes == 16 ? 2 : 1;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_DOTS_H_
