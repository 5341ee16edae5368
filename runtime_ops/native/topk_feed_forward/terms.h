// Which neurons take part for a token, and with what coefficients: the k best, or all whose coefficient is not 0.
#ifndef GRAFT_TOPK_FEED_FORWARD_TERMS_H_
#define GRAFT_TOPK_FEED_FORWARD_TERMS_H_

#include "../vector/select.h"
#include "project.h"

namespace graft {
namespace {

// Neurons in rising order, and coefficients of one or a few tokens, `stride` apart.
struct Terms {
  float* ids;  // bits of int32, which move through float vectors unchanged
  float* coefficients;
  int64_t stride, count;
};

inline int32_t neuron_at(const Terms& t, int64_t i) {
  int32_t id;
  memcpy(&id, t.ids + i, sizeof id);
  return id;
}

// Room for `tokens` tokens with every neuron active, and a vector behind the last.
inline Terms cut_terms(const FeedForward& p, int64_t tokens, Arena* arena) {
  Terms t;
  t.stride = round_up(p.f, 64) + 64;
  t.ids = arena->take<float>(t.stride);
  t.coefficients = arena->take<float>(tokens * t.stride);
  t.count = 0;
  return t;
}

// The union of the neurons that are active for rows first .. first + rows - 1 of the chunk.
template <class V>
inline void gather_active(const Chunk& k, int64_t first, int64_t rows, Terms* terms) {
  using F = typename V::F;
  const F zero = V::set1(0.0f), one = V::set1(1.0f);
  const float* neurons = reinterpret_cast<const float*>(k.neurons);
  const float* c = k.c + first * k.f_row;
  terms->count = 0;
  for (int64_t i = 0; i < k.p->f; i += V::lanes) {
    F any = zero;
    for (int64_t t = 0; t < rows; ++t) any = V::add(any, V::clear_sign(V::load(c + t * k.f_row + i)));
    const typename V::M active = V::gt(V::blend(V::eq(any, zero), zero, one), zero);  // a NaN is active
    if (!V::any(active)) continue;
    V::compress(terms->ids + terms->count, active, V::load(neurons + i));
    for (int64_t t = 0; t < rows; ++t) {
      V::compress(terms->coefficients + t * terms->stride + terms->count, active, V::load(c + t * k.f_row + i));
    }
    terms->count += V::count(active);
  }
}

// What the selection goes by, in a row of its own; coefficients that it needs are there already.
template <class V>
inline void score_row(const Chunk& k, int64_t row, float* scores) {
  const FeedForward& p = *k.p;
  const float* c = k.c + row * k.f_row;
  if (p.select_by == SelectBy::preactivation) {
    memcpy(scores, c, static_cast<size_t>(p.f) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < p.f; i += V::lanes) V::store(scores + i, V::clear_sign(V::load(c + i)));
}

// One product of the chunk's row with a row of w, with its bias.
template <class V>
inline float linear_at(const Chunk& k, int64_t row, const graft_tensor& w, const graft_tensor& bias, int64_t neuron) {
  const void* weights[1] = {row_of(w, neuron)};
  const float* x[1] = {k.x + row * k.x_row};
  float z;
  if (w.dtype == GRAFT_F32) dots<V, 1, 1, GRAFT_F32>(weights, x, k.p->m, 0, &z, 1);
  else if (w.dtype == GRAFT_F16) dots<V, 1, 1, GRAFT_F16>(weights, x, k.p->m, 0, &z, 1);
  else dots<V, 1, 1, GRAFT_BF16>(weights, x, k.p->m, 0, &z, 1);
  return bias.data == nullptr ? z : z + widen1(bias.data, bias.dtype, neuron);
}

// Scores of the chosen neurons become their coefficients.
template <class V>
inline void weigh_terms(const Chunk& k, int64_t row, Terms* terms) {
  const FeedForward& p = *k.p;
  float* to = terms->coefficients;
  if (p.select_by == SelectBy::preactivation) {
    for (int64_t i = 0; i < terms->count; i += V::lanes) V::store(to + i, activate<V>(p.activation, V::load(to + i)));
  } else {
    for (int64_t i = 0; i < terms->count; ++i) to[i] = k.c[row * k.f_row + neuron_at(*terms, i)];
  }
  if (!keeps_up(p)) return;
  for (int64_t i = 0; i < terms->count; ++i) {
    const int32_t neuron = neuron_at(*terms, i);
    to[i] *= late_up(k) ? linear_at<V>(k, row, p.args.w_in, p.args.b_in, neuron) : k.up[row * k.f_row + neuron];
  }
}

// The k best neurons of one row. Scores that are NaN or -inf are never chosen; where nothing is, x was to blame, and
// the one coefficient is 0 or, if x has a NaN or an infinity, NaN.
template <class V>
inline void gather_best(const Chunk& k, int64_t row, Terms* terms) {
  const FeedForward& p = *k.p;
  memcpy(terms->ids, k.neurons, static_cast<size_t>(p.f) * sizeof(float));
  score_row<V>(k, row, terms->coefficients);
  Candidates best{terms->coefficients, terms->ids, p.f, -kInf};
  cut_back<V>({p.top_k, 0}, p.top_k / 2, &best);
  cut_back<V>({p.top_k, 0}, 0, &best);
  terms->count = best.count;
  if (best.count > 0) return weigh_terms<V>(k, row, terms);
  float poison = 0.0f;
  for (int64_t i = 0; i < p.m; ++i) poison += k.x[row * k.x_row + i] * 0.0f;
  terms->count = 1;
  memcpy(terms->ids, k.neurons, sizeof(float));
  terms->coefficients[0] = poison;
}

// The row of coefficients, 0 but for the chosen.
inline void write_row(const Chunk& k, int64_t row, const Terms& terms) {
  float* c = k.c + row * k.f_row;
  memset(c, 0, static_cast<size_t>(k.f_row) * sizeof(float));
  for (int64_t i = 0; i < terms.count; ++i) c[neuron_at(terms, i)] = terms.coefficients[i];
}

template <class V>
inline void mask_rows(const Chunk& k, int64_t index, void* space) {
  Arena arena(space);
  Terms terms = cut_terms(*k.p, 1, &arena);
  for (int64_t r = index * k.group(); r < least((index + 1) * k.group(), k.rows); ++r) {
    gather_best<V>(k, r, &terms);
    write_row(k, r, terms);
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_TERMS_H_
