// Norms of the keys, for the bound |q.k| <= |q| |k| that proves which biased keys cannot matter.
#ifndef GRAFT_BOUND_H_
#define GRAFT_BOUND_H_

#include "block.h"

namespace graft {
namespace {

struct NormJob {
  const Problem* p;
  Workspaces* spaces;
  float* norms;
};

// The largest norm among all keys of one (b, g), masked ones included: a bound may be loose.
template <class V>
inline void norm_task(void* state, int64_t index) {
  const NormJob& job = *static_cast<NormJob*>(state);
  const Problem& p = *job.p;
  void* space = job.spaces->take();
  if (space == nullptr) return;
  float largest = 0.0f;
  const Block k{index / p.g, index % p.g, 0, 0, 0};
  const graft_tensor& x = p.args.k;
  for (int64_t j = 0; j < p.t; ++j) {
    widen_row<V>(element(head_data(k, x), x.dtype, j * x.strides[2]), x.dtype, p.d, static_cast<float*>(space));
    const float norm = largest_norm<V>(static_cast<float*>(space), p.d, 1, p.d);
    largest = norm > largest || norm != norm ? norm : largest;
  }
  job.norms[index] = largest;
  job.spaces->give(space);
}

template <class V>
inline const char* find_norms(const Problem& p, float* norms) {
  Workspaces spaces(static_cast<size_t>(p.d) * sizeof(float));
  NormJob job{&p, &spaces, norms};
  run_tasks(p.pool, p.b * p.g, norm_task<V>, &job);
  return spaces.error();
}

// No |score| before bias of this block is larger; queries are scaled and in fp32.
template <class V>
inline float score_bound(const Problem& p, const Block& k, const float* queries, const float* norms) {
  const float product = largest_norm<V>(queries, p.d, k.rows, p.d) * norms[k.b * p.g + k.g];
  return p.args.softcap != 0.0f ? least(product, __builtin_fabsf(p.args.softcap)) : product;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_BOUND_H_
