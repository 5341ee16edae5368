// What one task works on: one query head, in fp32, and the memory for what is made of it.
#ifndef GRAFT_COMBINER_ATTENTION_HEAD_H_
#define GRAFT_COMBINER_ATTENTION_HEAD_H_

#include <initializer_list>

#include "../vector/arena.h"
#include "../vector/softmax.h"
#include "problem.h"

namespace graft {
namespace {

// Rows of floats; with a negative step, backwards.
struct Rows {
  const float* data;
  int64_t step;
  const float* at(int64_t i) const { return data + i * step; }
  Rows from(int64_t i) const { return {at(i), step}; }
};

// Queries that share a vector register file's width. Matrices are [d, key or e][width].
struct Panel {
  float *q, *o, *max, *sum;
  int64_t rows;
};

// What is known of every region: its pooled query and key [d], the value [e] that its keys give together, how many
// keys it has, and what is added to its logit, -inf where it has none.
struct Regions {
  float *queries, *keys, *values, *size, *bias;
};

// A softmax that is not finished, for every token.
struct State {
  float *o, *max, *sum;
};

struct Head {
  const Combiner* p;
  float* queries;     // scaled; [cells][d], 0 where the grid has no token
  Rows q, k, v;
  const float* bias;  // per key 0, or -inf where it is hidden; NULL: none is
  float* out;         // [t e]
  float share;        // of the result that is being made, in out
  bool more;          // out already has another share
  Regions regions;
  State state;
  Panel panel;
  float *scores, *wide_k, *wide_v, *wide_out, *mask;
};

inline bool has(const Combiner& p, Variant variant) {
  const bool mixed = p.variant == Variant::mixture;
  return p.variant == variant || (mixed && (variant == Variant::fixed || variant == Variant::vertical));
}

inline bool axial(const Combiner& p) {
  return has(p, Variant::vertical) || p.variant == Variant::horizontal || p.variant == Variant::row_major;
}

inline int64_t most_cells(const Combiner& p) {
  return most(p.t, axial(p) ? p.grid.n * p.grid.m : 0);
}

inline int64_t most_regions(const Combiner& p) {
  if (axial(p)) return most(p.rows.n, p.grid.n * p.grid.m);
  if (p.variant == Variant::logsparse) return p.args.causal ? p.t : 2 * p.t;  // one set for each side
  return p.rows.n;
}

constexpr int64_t kKeys = 128;  // of a tile
constexpr int64_t kTerms = 96;  // a query of `logsparse` reads itself and one block for every bit, on both sides

// Whether a head can be worked on where it lies: in fp32, and row after row. Rows that lie a whole token apart fall on
// few sets of the cache, which costs more than to copy them once.
inline bool in_place(const graft_tensor& x) {
  return x.dtype == GRAFT_F32 && (x.strides[2] == x.shape[3] || x.shape[2] == 1);
}

template <class V>
inline Head cut_head(const Combiner& p, Arena* arena) {
  constexpr int64_t width = panel_width<V>();
  const int64_t cells = most_cells(p), regions = most_regions(p), tokens = axial(p) ? p.t : 0;
  Head x{};
  x.p = &p;
  x.queries = arena->take<float>(cells * p.d);
  x.wide_k = arena->take<float>(in_place(p.args.k) ? 0 : p.t * p.d);
  x.wide_v = arena->take<float>(in_place(p.args.v) ? 0 : p.t * p.e);
  x.wide_out = arena->take<float>(in_place(p.args.out) ? 0 : p.t * p.e);
  x.mask = arena->take<float>(p.args.key_mask.data != nullptr ? p.t : 0);
  x.regions.queries = arena->take<float>(regions * p.d);
  x.regions.keys = arena->take<float>(regions * p.d);
  x.regions.values = arena->take<float>(regions * p.e);
  x.regions.size = arena->take<float>(regions);
  x.regions.bias = arena->take<float>(regions);
  x.state = {arena->take<float>(tokens * p.e), arena->take<float>(tokens), arena->take<float>(tokens)};
  x.panel.q = arena->take<float>(width * p.d);
  x.panel.o = arena->take<float>(width * most(p.d, p.e));
  x.panel.max = arena->take<float>(width);
  x.panel.sum = arena->take<float>(width);
  const int64_t block = p.variant == Variant::logsparse ? p.t + V::lanes : 0;
  x.scores = arena->take<float>(most(most(kKeys * width, block), 2 * p.d));
  return x;
}

template <class V>
inline Rows load_rows(const graft_tensor& x, int64_t b, int64_t head, int64_t t, int64_t width, float* wide) {
  const void* from = element(x.data, x.dtype, b * x.strides[0] + head * x.strides[1]);
  if (in_place(x)) return {static_cast<const float*>(from), width};
  for (int64_t i = 0; i < t; ++i) {
    widen_row<V>(element(from, x.dtype, i * x.strides[2]), x.dtype, width, wide + i * width);
  }
  return {wide, width};
}

inline void load_mask(const graft_tensor& x, int64_t b, int64_t t, float* to) {
  const uint8_t* shown = static_cast<const uint8_t*>(x.data) + b * x.strides[0];
  for (int64_t i = 0; i < t; ++i) to[i] = shown[i * x.strides[1]] ? 0.0f : -kInf;
}

template <class V>
inline void load_queries(const graft_tensor& x, int64_t b, int64_t head, Head* to) {
  const Combiner& p = *to->p;
  const void* from = element(x.data, x.dtype, b * x.strides[0] + head * x.strides[1]);
  for (int64_t i = 0; i < p.t; ++i) {
    float* row = to->queries + i * p.d;
    widen_row<V>(element(from, x.dtype, i * x.strides[2]), x.dtype, p.d, row);
    for (int64_t c = 0; c < p.d; ++c) row[c] *= p.args.scale;
  }
  for (int64_t i = p.t * p.d; i < most_cells(p) * p.d; ++i) to->queries[i] = 0.0f;
  to->q = {to->queries, p.d};
}

inline void* out_row(const Combiner& p, int64_t b, int64_t head, int64_t i) {
  const graft_tensor& out = p.args.out;
  const int64_t at = b * out.strides[0] + head * out.strides[1] + i * out.strides[2];
  return const_cast<void*>(element(out.data, out.dtype, at));
}

template <class V>
inline void load_head(int64_t b, int64_t head, Head* x) {
  const Combiner& p = *x->p;
  const int64_t shared = head / (p.h / p.g);
  load_queries<V>(p.args.q, b, head, x);
  x->k = load_rows<V>(p.args.k, b, shared, p.t, p.d, x->wide_k);
  x->v = load_rows<V>(p.args.v, b, shared, p.t, p.e, x->wide_v);
  x->bias = nullptr;
  if (p.args.key_mask.data != nullptr) {
    load_mask(p.args.key_mask, b, p.t, x->mask);
    x->bias = x->mask;
  }
  x->out = in_place(p.args.out) ? static_cast<float*>(out_row(p, b, head, 0)) : x->wide_out;
}

inline void store_head(int64_t b, int64_t head, const Head& x) {
  const Combiner& p = *x.p;
  if (in_place(p.args.out)) return;
  for (int64_t i = 0; i < p.t; ++i) {
    void* to = out_row(p, b, head, i);
    for (int64_t c = 0; c < p.e; ++c) narrow1(to, p.args.out.dtype, c, x.out[i * p.e + c]);
  }
}

inline bool shown(const Head& x, int64_t token) { return x.bias == nullptr || x.bias[token] == 0.0f; }

inline void fill(float* to, int64_t n, float x) {
  for (int64_t i = 0; i < n; ++i) to[i] = x;
}

// How many tokens at the beginning see no key.
inline int64_t unseeing(const Head& x) {
  const Combiner& p = *x.p;
  int64_t first = 0;
  while (first < p.t && !shown(x, first)) ++first;
  return p.args.causal || first == p.t ? first : 0;
}

// The mean of all values [e], from sums of few, so that long sequences lose no digits.
inline void mean_value(const Head& x, float* part, float* mean) {
  constexpr int64_t few = 64;
  const Combiner& p = *x.p;
  fill(mean, p.e, 0.0f);
  for (int64_t first = 0; first < p.t; first += few) {
    fill(part, p.e, 0.0f);
    for (int64_t j = first; j < least(first + few, p.t); ++j) {
      for (int64_t c = 0; c < p.e; ++c) part[c] += x.v.at(j)[c];
    }
    for (int64_t c = 0; c < p.e; ++c) mean[c] += part[c];
  }
  for (int64_t c = 0; c < p.e; ++c) mean[c] /= static_cast<float>(p.t);
}

// What softmax gives tokens of which one finite number hides all keys.
inline void level_unseeing(const Head& x) {
  const Combiner& p = *x.p;
  const int64_t count = p.args.no_key == GRAFT_NO_KEY_MEAN ? unseeing(x) : 0;
  if (count == 0) return;
  float* const mean = x.panel.o;
  mean_value(x, mean + p.e, mean);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < p.e; ++c) x.out[i * p.e + c] = mean[c];
  }
}

// How pooled features are joined: sums are divided by the number of keys at the end.
inline void join(const Combiner& p, const float* a, const float* b, float* to) {
  if (p.mean) {
    for (int64_t c = 0; c < p.d; ++c) to[c] = a[c] + b[c];
  } else {
    for (int64_t c = 0; c < p.d; ++c) to[c] = a[c] > b[c] ? a[c] : b[c];
  }
}

inline float nothing(const Combiner& p) { return p.mean ? 0.0f : -kInf; }  // what joining starts from

// From joined features to those of `count` regions.
inline void settle(const Combiner& p, const Regions& x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float size = x.size[i];
    for (float* features : {x.queries + i * p.d, x.keys + i * p.d}) {
      if (size == 0.0f) fill(features, p.d, 0.0f);
      else if (p.mean) for (int64_t c = 0; c < p.d; ++c) features[c] /= size;
    }
    x.bias[i] = size == 0.0f ? -kInf : p.counted ? __builtin_logf(size) : 0.0f;
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_HEAD_H_
