// Few rows, as in decoding, times the weights of their head, which are read once and where they lie: as dot products if
// they have a row for each result, else as sums of their rows.
#ifndef GRAFT_EXPANDED_FEW_H_
#define GRAFT_EXPANDED_FEW_H_

#include "../vector/arena.h"
#include "../vector/dots.h"
#include "../vector/softmax.h"
#include "rows.h"

namespace graft {
namespace {

constexpr int64_t kFewRows = 8;  // up to so many
constexpr int64_t kSums = 1024;  // results of a row that are summed at a time: few rows of them fit the first cache

struct FewScratch {
  float *rows, *out;
};

template <class V>
inline FewScratch cut_few(const HeadProduct& p, Arena* arena) {
  FewScratch x;
  x.rows = arena->take<float>(kFewRows * from_of(p));
  x.out = arena->take<float>(kFewRows * (p.rows_are_to ? panel_width<V>() : kSums));
  return x;
}

// out [T][kSums] += columns `first` .. `end` of the R rows of weights that channels `from` on of the rows meet; the
// next R are asked for.
template <class V, int R, int T, int D>
inline void add_weights(const HeadProduct& p, const Columns& c, int64_t from, const float* const* rows, float* out) {
  using F = typename V::F;
  const int64_t count = c.end - c.first;
  const void* weights[R];
  F shares[R][T];
  for (int r = 0; r < R; ++r) {
    weights[r] = element(weights_at(p, c.head, from + r), D, c.first);
    for (int i = 0; i < T; ++i) shares[r][i] = V::set1(rows[i][from + r]);
  }
  int64_t j = 0;
  for (; j + V::lanes <= count; j += V::lanes) {
    F sums[T];
#pragma GCC unroll 8
    for (int i = 0; i < T; ++i) sums[i] = V::load(out + i * kSums + j);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(element(weights[r], D, R * p.w.strides[1] + j));
      const F one = widen<V>(weights[r], D, j);
#pragma GCC unroll 8
      for (int i = 0; i < T; ++i) sums[i] = V::fma(one, shares[r][i], sums[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < T; ++i) V::store(out + i * kSums + j, sums[i]);
  }
  for (; j < count; ++j) {
    for (int r = 0; r < R; ++r) {
      const float one = widen1(weights[r], D, j);
      for (int i = 0; i < T; ++i) out[i * kSums + j] += one * rows[i][from + r];
    }
  }
}

template <class V, int T, int D>
inline void sum_few(const HeadProduct& p, const Columns& c, const Group& group, const float* const* rows, float* out) {
  constexpr int R = 4;
  const int64_t from = from_of(p);
  for (int64_t first = c.first; first < c.end; first += kSums) {
    const Columns part{c.head, first, least(first + kSums, c.end)};
    memset(out, 0, static_cast<size_t>(T * kSums) * sizeof(float));
    int64_t i = 0;
    for (; i + R <= from; i += R) add_weights<V, R, T, D>(p, part, i, rows, out);
    for (; i < from; ++i) add_weights<V, 1, T, D>(p, part, i, rows, out);
    store_rows(p, part, group, kSums, out);
  }
}

template <class V, int T, int D>
inline void dot_few(const HeadProduct& p, const Columns& c, const Group& group, const float* const* rows, float* out) {
  constexpr int64_t width = panel_width<V>();
  constexpr int R = dot_rows<V>(T);
  const int64_t from = from_of(p);
  for (int64_t first = c.first; first < c.end; first += width) {
    const Columns part{c.head, first, least(first + width, c.end)};
    for (int64_t j = first; j < part.end; j += R) {
      const void* weights[R];
      for (int64_t r = 0; r < R; ++r) weights[r] = weights_at(p, c.head, least(j + r, part.end - 1));
      float sums[T * R];
      dots<V, R, T, D>(weights, rows, from, R * p.w.strides[1], sums, R);
      for (int64_t i = 0; i < group.count; ++i) {
        for (int64_t r = 0; r < least<int64_t>(R, part.end - j); ++r) out[i * width + j - first + r] = sums[i * R + r];
      }
    }
    store_rows(p, part, group, width, out);
  }
}

// T rows, the last of them repeated where there are fewer.
template <class V, int T, int D>
inline void multiply_rows(const HeadProduct& p, const Columns& c, const Group& group, const FewScratch& x) {
  const Rows given = rows_of_x<V>(p, group, x.rows);
  const float* rows[T];
  for (int64_t i = 0; i < T; ++i) rows[i] = given.data + least(i, group.count - 1) * given.stride;
  if (p.rows_are_to) dot_few<V, T, D>(p, c, group, rows, x.out);
  else sum_few<V, T, D>(p, c, group, rows, x.out);
}

template <class V, int D>
inline void multiply_group(const HeadProduct& p, const Columns& c, const FewScratch& x) {
  const Group group = group_of(p, c.head, 0);
  if (group.count == 1) multiply_rows<V, 1, D>(p, c, group, x);
  else if (group.count == 2) multiply_rows<V, 2, D>(p, c, group, x);
  else if (group.count <= 4) multiply_rows<V, 4, D>(p, c, group, x);
  else multiply_rows<V, 8, D>(p, c, group, x);
}

template <class V>
inline void multiply_few(const HeadProduct& p, const Columns& c, const FewScratch& x) {
  if (p.w.dtype == GRAFT_F32) multiply_group<V, GRAFT_F32>(p, c, x);
  else if (p.w.dtype == GRAFT_F16) multiply_group<V, GRAFT_F16>(p, c, x);
  else multiply_group<V, GRAFT_BF16>(p, c, x);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_EXPANDED_FEW_H_
