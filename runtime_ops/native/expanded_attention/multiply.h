// Rows of every head times the weights of their head. Few rows, as in decoding, read weights once, where they lie: as
// dot products if these have a row for each result, else as sums of their rows. For more rows a panel of weights is
// packed, and all rows go through it.
#ifndef GRAFT_EXPANDED_MULTIPLY_H_
#define GRAFT_EXPANDED_MULTIPLY_H_

#include "../vector/arena.h"
#include "../vector/dots.h"
#include "../vector/softmax.h"
#include "problem.h"

namespace graft {
namespace {

constexpr int64_t kRows = 32;     // rows that go through a panel at a time
constexpr int64_t kFewRows = 8;   // up to so many, weights are used where they lie
constexpr int64_t kFewTasks = 8;  // below this many heads, each is cut into several tasks
constexpr int64_t kSums = 1024;   // results of a row that are summed at a time: few rows of them fit the first cache

struct ProductScratch {
  float *weights, *packed, *rows, *out;
};

struct ProductJob {
  const HeadProduct* p;
  Workspaces* spaces;
  int64_t parts;  // tasks for a head of the weights
};

struct Columns {
  int64_t head, first, end;  // of the weights; results
};

inline int64_t from_of(const HeadProduct& p) { return p.x.shape[3]; }
inline int64_t to_of(const HeadProduct& p) { return p.y.shape[3]; }
inline int64_t heads_of(const HeadProduct& p) { return p.w.shape[0]; }
inline int64_t rows_of(const HeadProduct& p) { return p.x.shape[0] * (p.x.shape[1] / heads_of(p)) * p.x.shape[2]; }
inline bool few(const HeadProduct& p) { return rows_of(p) <= kFewRows; }

template <class V>
inline ProductScratch cut_product(const HeadProduct& p, Arena* arena) {
  constexpr int64_t width = panel_width<V>();
  ProductScratch x;
  x.weights = arena->take<float>(p.rows_are_to && p.w.dtype != GRAFT_F32 ? width * from_of(p) : 0);
  x.packed = arena->take<float>(few(p) ? 0 : width * from_of(p));
  x.rows = arena->take<float>(kRows * from_of(p));
  x.out = arena->take<float>(few(p) && !p.rows_are_to ? kFewRows * kSums : kRows * width);
  return x;
}

// A row that a head of the weights multiplies, by its place among them.
struct Place {
  int64_t n, h, s;
};

inline Place place_of(const HeadProduct& p, int64_t head, int64_t r) {
  const int64_t share = p.x.shape[1] / heads_of(p), s = p.x.shape[2];
  return {r / (share * s), head * share + r / s % share, r % s};
}

inline const void* row_at(const graft_tensor& x, const Place& at) {
  return element(x.data, x.dtype, at.n * x.strides[0] + at.h * x.strides[1] + at.s * x.strides[2]);
}

template <class V>
inline void load_rows(const HeadProduct& p, int64_t head, int64_t first, int64_t count, float* to) {
  for (int64_t r = 0; r < count; ++r) {
    widen_row<V>(row_at(p.x, place_of(p, head, first + r)), p.x.dtype, from_of(p), to + r * from_of(p));
  }
}

// Results [count][width] of columns `first` .. `end`, to where they belong.
inline void store_rows(const HeadProduct& p, const Columns& c, int64_t row, int64_t count, int64_t width,
                       const float* from) {
  for (int64_t r = 0; r < count; ++r, from += width) {
    const Place at = place_of(p, c.head, row + r);
    const bool biased =
        p.bias != nullptr && (p.biased == nullptr || p.biased[(at.n * p.y.shape[1] + at.h) * p.y.shape[2] + at.s] != 0);
    void* to = const_cast<void*>(row_at(p.y, at));
    if (!biased && p.y.dtype == GRAFT_F32) {
      memcpy(static_cast<float*>(to) + c.first, from, static_cast<size_t>(c.end - c.first) * sizeof(float));
      continue;
    }
    for (int64_t i = c.first; i < c.end; ++i) {
      float value = from[i - c.first];
      if (biased) value += widen1(p.bias->data, p.bias->dtype, c.head * p.bias->strides[0] + i * p.bias->strides[1]);
      narrow1(to, p.y.dtype, i, value);
    }
  }
}

inline const void* weights_at(const HeadProduct& p, int64_t head, int64_t row) {
  return element(p.w.data, p.w.dtype, head * p.w.strides[0] + row * p.w.strides[1]);
}

// The panel [from][width] of columns `first` .. `end`, zeros behind them.
template <class V>
inline void pack_panel(const HeadProduct& p, const Columns& c, const ProductScratch& x) {
  constexpr int64_t width = panel_width<V>();
  const int64_t from = from_of(p), count = c.end - c.first;
  if (!p.rows_are_to) {
    for (int64_t i = 0; i < from; ++i) {
      float* to = x.packed + i * width;
      widen_row<V>(element(weights_at(p, c.head, i), p.w.dtype, c.first), p.w.dtype, count, to);
      for (int64_t j = count; j < width; ++j) to[j] = 0.0f;
    }
    return;
  }
  if (p.w.dtype == GRAFT_F32) {
    const float* rows = static_cast<const float*>(weights_at(p, c.head, c.first));
    pack_transposed<V>(rows, p.w.strides[1], count, from, x.packed, width);
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    widen_row<V>(weights_at(p, c.head, c.first + j), p.w.dtype, from, x.weights + j * from);
  }
  pack_transposed<V>(x.weights, from, count, from, x.packed, width);
}

template <class V>
inline void multiply_panel(const HeadProduct& p, const Columns& c, const ProductScratch& x) {
  constexpr int64_t width = panel_width<V>();
  pack_panel<V>(p, c, x);
  for (int64_t r = 0; r < rows_of(p); r += kRows) {
    const int64_t count = least(kRows, rows_of(p) - r);
    load_rows<V>(p, c.head, r, count, x.rows);
    product<V, V::panel, false>(count, x.rows, from_of(p), 1, x.packed, from_of(p), x.out);
    store_rows(p, c, r, count, width, x.out);
  }
}

// out [T][kSums] += columns `first` .. `end` of the R rows of weights that channels `from` on of the rows meet; the next
// R are asked for.
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
inline void sum_few(const HeadProduct& p, const Columns& c, const float* const* rows, const ProductScratch& x) {
  constexpr int R = 4;
  const int64_t from = from_of(p);
  for (int64_t first = c.first; first < c.end; first += kSums) {
    const Columns part{c.head, first, least(first + kSums, c.end)};
    memset(x.out, 0, static_cast<size_t>(T * kSums) * sizeof(float));
    int64_t i = 0;
    for (; i + R <= from; i += R) add_weights<V, R, T, D>(p, part, i, rows, x.out);
    for (; i < from; ++i) add_weights<V, 1, T, D>(p, part, i, rows, x.out);
    store_rows(p, part, 0, rows_of(p), kSums, x.out);
  }
}

template <class V, int T, int D>
inline void dot_few(const HeadProduct& p, const Columns& c, const float* const* rows, const ProductScratch& x) {
  constexpr int64_t width = panel_width<V>();
  constexpr int R = dot_rows<V>(T);
  const int64_t from = from_of(p), count = rows_of(p);
  for (int64_t first = c.first; first < c.end; first += width) {
    const Columns part{c.head, first, least(first + width, c.end)};
    for (int64_t j = first; j < part.end; j += R) {
      const void* weights[R];
      for (int64_t r = 0; r < R; ++r) weights[r] = weights_at(p, c.head, least(j + r, part.end - 1));
      float sums[T * R];
      dots<V, R, T, D>(weights, rows, from, R * p.w.strides[1], sums, R);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t r = 0; r < least<int64_t>(R, part.end - j); ++r) x.out[i * width + j - first + r] = sums[i * R + r];
      }
    }
    store_rows(p, part, 0, count, width, x.out);
  }
}

// T rows, the last of them repeated where there are fewer.
template <class V, int T, int D>
inline void multiply_few(const HeadProduct& p, const Columns& c, const ProductScratch& x) {
  const float* rows[T];
  for (int64_t i = 0; i < T; ++i) rows[i] = x.rows + least(i, rows_of(p) - 1) * from_of(p);
  if (p.rows_are_to) dot_few<V, T, D>(p, c, rows, x);
  else sum_few<V, T, D>(p, c, rows, x);
}

template <class V, int D>
inline void multiply_some(const HeadProduct& p, const Columns& c, const ProductScratch& x) {
  load_rows<V>(p, c.head, 0, rows_of(p), x.rows);
  if (rows_of(p) == 1) multiply_few<V, 1, D>(p, c, x);
  else if (rows_of(p) == 2) multiply_few<V, 2, D>(p, c, x);
  else if (rows_of(p) <= 4) multiply_few<V, 4, D>(p, c, x);
  else multiply_few<V, 8, D>(p, c, x);
}

template <class V>
inline void multiply(const HeadProduct& p, const Columns& c, const ProductScratch& x) {
  constexpr int64_t width = panel_width<V>();
  if (few(p)) {
    if (p.w.dtype == GRAFT_F32) multiply_some<V, GRAFT_F32>(p, c, x);
    else if (p.w.dtype == GRAFT_F16) multiply_some<V, GRAFT_F16>(p, c, x);
    else multiply_some<V, GRAFT_BF16>(p, c, x);
    return;
  }
  for (int64_t i = c.first; i < c.end; i += width) multiply_panel<V>(p, {c.head, i, least(i + width, c.end)}, x);
}

template <class V>
inline void product_task(void* state, int64_t index) {
  const ProductJob& job = *static_cast<ProductJob*>(state);
  void* space = job.spaces->take();
  if (space == nullptr) return;
  Arena arena(space);
  const ProductScratch x = cut_product<V>(*job.p, &arena);
  const int64_t share = round_up(ceil_div(to_of(*job.p), job.parts), panel_width<V>());
  const int64_t first = index % job.parts * share;
  const Columns c{index / job.parts, first, least(first + share, to_of(*job.p))};
  if (c.first < c.end) multiply<V>(*job.p, c, x);
  job.spaces->give(space);
}

template <class V>
inline const char* run_product(const HeadProduct& p) {
  const int64_t panels = ceil_div(to_of(p), panel_width<V>());
  Arena size(nullptr);
  cut_product<V>(p, &size);
  Workspaces spaces(size.bytes());
  ProductJob job{&p, &spaces, least(panels, ceil_div(kFewTasks, heads_of(p)))};
  run_tasks(p.pool, heads_of(p) * job.parts, product_task<V>, &job);
  return spaces.error();
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_EXPANDED_MULTIPLY_H_
