// The first products: x times rows of w_in or w_gate, with bias and activation, into [tokens f].
#ifndef GRAFT_TOPK_FEED_FORWARD_PROJECT_H_
#define GRAFT_TOPK_FEED_FORWARD_PROJECT_H_

#include "../vector/dots.h"
#include "activate.h"
#include "chunk.h"

namespace graft {
namespace {

// What becomes of z = x·w + b: stored, activated, or multiplied to what is there.
enum class Then { store, activate, times };

struct Projection {
  const Chunk* chunk;
  const graft_tensor *w, *bias;
  float* out;
  Then then;
};

template <class V>
constexpr int64_t panel_width() { return V::panel * V::lanes; }

constexpr int64_t kTile = 48;  // tokens whose results stay in the nearest cache

struct ProjectScratch {
  float *rows, *packed, *tile, *bias;
};

template <class V>
inline ProjectScratch cut_project(const FeedForward& p, Arena* arena) {
  constexpr int64_t width = panel_width<V>();
  ProjectScratch s;
  s.rows = arena->take<float>(p.args.x.dtype == GRAFT_F32 ? 0 : width * p.m);
  s.packed = arena->take<float>(width * p.m);
  s.tile = arena->take<float>(kTile * most(width, kNeurons));
  s.bias = arena->take<float>(kNeurons + V::lanes);
  return s;
}

// `count` biases from neuron `first` on, and zeros up to `width`.
template <class V>
inline void load_bias(const graft_tensor& bias, int64_t first, int64_t count, int64_t width, float* to) {
  for (int64_t i = 0; i < width; ++i) to[i] = 0.0f;
  if (bias.data != nullptr) widen_row<V>(element(bias.data, bias.dtype, first), bias.dtype, count, to);
}

// From z without bias, `width` apart, to the chunk's rows; returns how many coefficients are not 0.
template <class V>
inline int64_t finish_tile(const Projection& job, const float* z, int64_t rows, int64_t width, const float* bias,
                           float* out) {
  using F = typename V::F;
  const F zero = V::set1(0.0f);
  int64_t active = 0;
  for (int64_t r = 0; r < rows; ++r, z += width, out += job.chunk->f_row) {
    for (int64_t x = 0; x < width; x += V::lanes) {
      F y = V::add(V::load(z + x), V::load(bias + x));
      if (job.then == Then::activate) y = activate<V>(job.chunk->p->activation, y);
      if (job.then == Then::times) y = V::mul(V::load(out + x), y);
      V::store(out + x, y);
      active += V::lanes - V::count(V::eq(y, zero));
    }
  }
  return active;
}

// Rows `first` .. of w, in vectors side by side: to[i][neuron].
template <class V>
inline void pack_weights(const graft_tensor& w, int64_t first, int64_t count, int64_t m, const ProjectScratch& s) {
  if (w.dtype == GRAFT_F32) {
    const float* rows = static_cast<const float*>(row_of(w, first));
    pack_transposed<V>(rows, w.strides[0], count, m, s.packed, panel_width<V>());
    return;
  }
  for (int64_t r = 0; r < count; ++r) widen_row<V>(row_of(w, first + r), w.dtype, m, s.rows + r * m);
  pack_transposed<V>(s.rows, m, count, m, s.packed, panel_width<V>());
}

template <class V>
inline int64_t project_panel(const Projection& job, int64_t first, int64_t count, const ProjectScratch& s) {
  constexpr int64_t width = panel_width<V>();
  const Chunk& k = *job.chunk;
  pack_weights<V>(*job.w, first, count, k.p->m, s);
  load_bias<V>(*job.bias, first, count, width, s.bias);
  int64_t active = 0;
  for (int64_t r = 0; r < k.rows; r += kTile) {
    const int64_t rows = least(kTile, k.rows - r);
    product<V, V::panel, false>(rows, k.x + r * k.x_row, k.x_row, 1, s.packed, k.p->m, s.tile);
    active += finish_tile<V>(job, s.tile, rows, width, s.bias, job.out + r * k.f_row + first);
  }
  return active;
}

// ---- few tokens: one pass over the weights, which are used where they lie ----

template <class V, int T, int D>
inline void project_rows(const Projection& job, int64_t first, int64_t count, const float* const* x, float* tile) {
  constexpr int R = dot_rows<V>(T);
  const graft_tensor& w = *job.w;
  const int64_t m = job.chunk->p->m;
  for (int64_t n = 0; n < count; n += R) {
    const void* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = row_of(w, first + least(n + r, count - 1));
    dots<V, R, T, D>(rows, x, m, R == 1 ? kStreamAhead<D> : R * w.strides[0], tile + n, kNeurons);
  }
}

template <class V, int D>
inline void project_tokens(const Projection& job, int64_t first, int64_t count, float* tile) {
  const Chunk& k = *job.chunk;
  const float* x[kFew];
  for (int64_t t = 0; t < kFew; ++t) x[t] = k.x + least(t, k.rows - 1) * k.x_row;
  if (k.rows == 1) project_rows<V, 1, D>(job, first, count, x, tile);
  else if (k.rows == 2) project_rows<V, 2, D>(job, first, count, x, tile);
  else if (k.rows <= 4) project_rows<V, 4, D>(job, first, count, x, tile);
  else project_rows<V, 8, D>(job, first, count, x, tile);
}

template <class V>
inline int64_t project_few(const Projection& job, int64_t first, int64_t count, const ProjectScratch& s) {
  load_bias<V>(*job.bias, first, count, kNeurons, s.bias);
  if (job.w->dtype == GRAFT_F32) project_tokens<V, GRAFT_F32>(job, first, count, s.tile);
  else if (job.w->dtype == GRAFT_F16) project_tokens<V, GRAFT_F16>(job, first, count, s.tile);
  else project_tokens<V, GRAFT_BF16>(job, first, count, s.tile);
  const int64_t rows = job.chunk->rows;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = count; i < kNeurons; ++i) s.tile[t * kNeurons + i] = 0.0f;
  }
  return finish_tile<V>(job, s.tile, rows, kNeurons, s.bias, job.out + first);
}

template <class V>
inline void project_task(void* state, int64_t index) {
  const Projection& job = *static_cast<const Projection*>(state);
  const Chunk& k = *job.chunk;
  void* space = k.spaces->take();
  if (space == nullptr) return;
  Arena arena(space);
  const ProjectScratch s = cut_project<V>(*k.p, &arena);
  const int64_t first = index * kNeurons, end = least(first + kNeurons, k.p->f);
  int64_t active = 0;
  if (k.few()) {
    active = project_few<V>(job, first, end - first, s);
  } else {
    constexpr int64_t width = panel_width<V>();
    for (int64_t i = first; i < end; i += width) active += project_panel<V>(job, i, least(width, end - i), s);
  }
  k.active[index] = active;
  k.spaces->give(space);
}

template <class V>
inline void project(const Chunk& k, const graft_tensor& w, const graft_tensor& bias, float* out, Then then) {
  Projection job{&k, &w, &bias, out, then};
  run_tasks(k.p->pool, neuron_tasks(*k.p), project_task<V>, &job);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_PROJECT_H_
