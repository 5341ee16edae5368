// The first products of many tokens in bf16, where the processor multiplies pairs of it: twice as fast as fp32.
#ifndef GRAFT_TOPK_FEED_FORWARD_PAIRS_H_
#define GRAFT_TOPK_FEED_FORWARD_PAIRS_H_

#include "project.h"

namespace graft {
namespace {

// Whether the vector type has products of pairs: has_pairs<V>(0).
template <class V>
constexpr auto has_pairs(int) -> decltype(typename V::Pairs(), true) { return true; }
template <class V>
constexpr bool has_pairs(long) { return false; }

constexpr int64_t kPaired = 32;  // numbers that become pairs at a time

// From a sum of squares. Squares of the smallest numbers vanish, hence the rest.
inline float norm_of(float square) { return __builtin_sqrtf(square) + 1e-17f; }

// from[0 .. m - 1] as pairs, zeros up to a multiple of kPaired: what they lose, and their norm.
template <class V>
inline Near make_pairs(const float* from, int64_t m, float* to) {
  using F = typename V::F;
  F error = V::set1(0.0f), norm = error;
  for (int64_t i = 0; i < m; i += kPaired) {
    float tail[kPaired] = {};
    const float* at = from + i;
    if (i + kPaired > m) at = static_cast<float*>(memcpy(tail, at, static_cast<size_t>(m - i) * sizeof(float)));
    float* pairs = to + i / 2;
    V::store_pairs(pairs, V::load(at), V::load(at + V::lanes));
    for (int64_t j = 0; j < kPaired; j += V::lanes) {
      const F kept = V::load_bf16(reinterpret_cast<const uint16_t*>(pairs) + j), lost = V::sub(V::load(at + j), kept);
      error = V::fma(lost, lost, error);
      norm = V::fma(kept, kept, norm);
    }
  }
  return {{}, norm_of(V::reduce_add(error)), norm_of(V::reduce_add(norm))};
}

template <class V>
inline void pair_token(const Chunk& k, int64_t row, void*) {
  const Rounded& r = k.rounded;
  const Near x = make_pairs<V>(k.x + row * k.x_row, k.p->m, r.pairs + row * r.pair_row);
  r.missed[row] = x.error;
  r.length[row] = x.norm + x.error;
}

struct PairScratch {
  float *rows, *packed, *tile, *bias;
};

template <class V>
inline PairScratch cut_pairs(const FeedForward& p, Arena* arena) {
  const int64_t n = round_up(p.m, kPaired) / 2;
  PairScratch s;
  s.rows = arena->take<float>(kNeurons * n);
  s.packed = arena->take<float>(kNeurons * n);
  s.tile = arena->take<float>(kTile * kNeurons);
  s.bias = arena->take<float>(kNeurons + V::lanes);
  return s;
}

// Rows `first` .. of w as pairs, side by side; what they lose and their norms are kept for the task.
template <class V>
inline void pack_pairs(const Projection& job, int64_t index, int64_t count, const PairScratch& s) {
  const Chunk& k = *job.chunk;
  const int64_t n = round_up(k.p->m, kPaired) / 2;
  float error = 0.0f, norm = 0.0f;
  for (int64_t r = 0; r < count; ++r) {
    const float* row = static_cast<const float*>(row_of(*job.w, index * kNeurons + r));
    const Near w = make_pairs<V>(row, k.p->m, s.rows + r * n);
    error = higher(w.error, error);
    norm = higher(w.norm, norm);
  }
  k.rounded.w_error[index] = error;
  k.rounded.w_norm[index] = norm;
  pack_transposed<V>(s.rows, n, count, n, s.packed, kNeurons);
}

template <class V>
inline void pair_task(void* state, int64_t index) {
  static_assert(panel_width<V>() == kNeurons, "a task's neurons are one panel");
  const Projection& job = *static_cast<const Projection*>(state);
  const Chunk& k = *job.chunk;
  void* space = k.spaces->take();
  if (space == nullptr) return;
  Arena arena(space);
  const PairScratch s = cut_pairs<V>(*k.p, &arena);
  const int64_t first = index * kNeurons, count = least(kNeurons, k.p->f - first), row = k.rounded.pair_row;
  pack_pairs<V>(job, index, count, s);
  load_bias<V>(*job.bias, first, count, kNeurons, s.bias);
  for (int64_t r = 0; r < k.rows; r += kTile) {
    const int64_t rows = least(kTile, k.rows - r), n = round_up(k.p->m, kPaired) / 2;
    product<typename V::Pairs, V::panel, false>(rows, k.rounded.pairs + r * row, row, 1, s.packed, n, s.tile);
    finish_tile<V>(job, s.tile, rows, kNeurons, s.bias, job.out + r * k.f_row + first);
  }
  k.spaces->give(space);
}

template <class V>
inline void project_pairs(const Chunk& k, const graft_tensor& w, const graft_tensor& bias) {
  Projection job{&k, &w, &bias, k.c, Then::store};
  run_tasks(k.p->pool, neuron_tasks(*k.p), pair_task<V>, &job);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_PAIRS_H_
