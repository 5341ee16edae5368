// What a task over a grid of tokens works on: one query head, in fp32, and the memory for what is made of it.
#ifndef GRAFT_COMBINER_ATTENTION_HEAD_H_
#define GRAFT_COMBINER_ATTENTION_HEAD_H_

#include "regions.h"

namespace graft {
namespace {

// Rows of floats.
struct Rows {
  const float* data;
  int64_t step;
  const float* at(int64_t i) const { return data + i * step; }
  Rows from(int64_t i) const { return {at(i), step}; }
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
  float* out;         // rows of e
  int64_t out_step;
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
  return most(p.rows.n, axial(p) ? p.grid.n * p.grid.m : 0);
}

constexpr int64_t kKeys = 128;  // of a tile

inline bool wide(const graft_tensor& x) { return x.dtype == GRAFT_F32; }

// Whether a head can be read where it lies: in fp32, and row after row. Rows that lie a whole token apart fall on
// few sets of the cache, which costs more than to copy them once.
inline bool in_place(const graft_tensor& x) {
  return wide(x) && (x.strides[2] == x.shape[3] || x.shape[2] == 1);
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
  x.wide_out = arena->take<float>(wide(p.args.out) ? 0 : p.t * p.e);
  x.mask = arena->take<float>(p.args.key_mask.data != nullptr ? p.t : 0);
  x.regions = cut_regions(p, regions, arena);
  x.state = {arena->take<float>(tokens * p.e), arena->take<float>(tokens), arena->take<float>(tokens)};
  x.panel = cut_panel(p, width, arena);
  x.scores = arena->take<float>(most(kKeys * width, 2 * p.d));
  return x;
}

template <class V>
inline Rows load_rows(const graft_tensor& x, int64_t b, int64_t head, float* wide) {
  const int64_t t = x.shape[2], width = x.shape[3];
  const Operand from = operand(x, b, head);
  if (in_place(x)) return {static_cast<const float*>(from.data), width};
  for (int64_t i = 0; i < t; ++i) read_row<V>(from, i, width, wide + i * width);
  return {wide, width};
}

template <class V>
inline void load_queries(int64_t b, int64_t head, Head* to) {
  const Combiner& p = *to->p;
  const Operand q = operand(p.args.q, b, head);
  for (int64_t i = 0; i < p.t; ++i) read_query<V>(p, q, i, to->queries + i * p.d);
  for (int64_t i = p.t * p.d; i < most_cells(p) * p.d; ++i) to->queries[i] = 0.0f;
  to->q = {to->queries, p.d};
}

template <class V>
inline void load_head(int64_t b, int64_t head, Head* x) {
  const Combiner& p = *x->p;
  load_queries<V>(b, head, x);
  x->k = load_rows<V>(p.args.k, b, shared_head(p, head), x->wide_k);
  x->v = load_rows<V>(p.args.v, b, shared_head(p, head), x->wide_v);
  x->bias = load_bias(p, b, x->mask);
  const Operand out = operand(p.args.out, b, head);
  x->out = wide(p.args.out) ? static_cast<float*>(const_cast<void*>(out.data)) : x->wide_out;
  x->out_step = wide(p.args.out) ? out.step : p.e;
}

inline void store_head(int64_t b, int64_t head, const Head& x) {
  const Combiner& p = *x.p;
  if (wide(p.args.out)) return;
  const Operand out = operand(p.args.out, b, head);
  for (int64_t i = 0; i < p.t; ++i) store_row(out, i, p.e, x.out + i * p.e);
}

inline bool shown(const Head& x, int64_t token) { return x.bias == nullptr || x.bias[token] == 0.0f; }

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_HEAD_H_
