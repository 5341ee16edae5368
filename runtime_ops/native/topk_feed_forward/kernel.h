// The entry point of a TopKFeedForward kernel for one vector type. Tokens are worked on in chunks: their coefficients
// [chunk f] are made by tasks over neurons, then combined by tasks over tokens or over columns of the output.
#ifndef GRAFT_TOPK_FEED_FORWARD_KERNEL_H_
#define GRAFT_TOPK_FEED_FORWARD_KERNEL_H_

#include "combine.h"
#include "near.h"

namespace graft {
namespace {

// Below this share of active neurons, rows of w_out that are read one by one beat the matrix product.
constexpr int64_t kSparse = 8;

template <class V>
inline size_t task_bytes(const FeedForward& p) {
  Arena project(nullptr), pairs(nullptr), rows(nullptr), columns(nullptr), dense(nullptr);
  cut_project<V>(p, &project);
  cut_pairs<V>(p, &pairs);
  cut_terms(p, 1, &rows);
  rows.take<float>(p.e);
  rows.take<float>(p.e);
  columns.take<float>(kFew * kColumns);
  columns.take<float>(kFew * kColumns);
  dense.take<float>((kDepth + p.chunk) * panel_width<V>() + 16);
  const size_t first = most(project.bytes(), pairs.bytes()), second = most(columns.bytes(), dense.bytes());
  return most(most(first, second), rows.bytes());
}

// The chunk's inputs in fp32.
template <class V>
inline void load_rows(const Chunk& k, int64_t index, void*) {
  const graft_tensor& x = k.p->args.x;
  for (int64_t r = index * k.group(); r < least((index + 1) * k.group(), k.rows); ++r) {
    widen_row<V>(row_of(x, k.first + r), x.dtype, k.p->m, k.x + r * k.x_row);
  }
}

template <class V>
inline void make_coefficients(const Chunk& k) {
  const graft_topk_feed_forward& a = k.p->args;
  const bool raw = k.p->top_k > 0 && k.p->select_by == SelectBy::preactivation;
  const Then then = raw ? Then::store : Then::activate;
  const graft_tensor &w = k.p->gated ? a.w_gate : a.w_in, &bias = k.p->gated ? a.b_gate : a.b_in;
  if (!project_near<V>(k, w, bias)) project<V>(k, w, bias, k.c, then);
  if (!k.p->gated || late_up(k)) return;
  if (keeps_up(*k.p)) project<V>(k, a.w_in, a.b_in, k.up, Then::store);
  else project<V>(k, a.w_in, a.b_in, k.c, Then::times);
}

inline int64_t active_terms(const Chunk& k) {
  if (k.p->top_k > 0) return k.p->top_k * k.rows;
  int64_t active = 0;
  for (int64_t i = 0; i < neuron_tasks(*k.p); ++i) active += k.active[i];
  return active;
}

template <class V>
inline void combine_few(const Chunk& k, Terms terms, float* sums) {
  gather_active<V>(k, 0, k.rows, &terms);
  Parts job{&k, terms, most<int64_t>(1, least(kParts, ceil_div(terms.count, kPart))), sums};
  run_tasks(k.p->pool, job.count, part_task<V>, &job);
  if (k.spaces->error() != nullptr) return;
  run_tasks(k.p->pool, k.rows, add_parts<V>, &job);
}

template <class V>
inline void run_chunk(Chunk k, const Terms& terms, float* sums) {
  const FeedForward& p = *k.p;
  const int64_t groups = ceil_div(k.rows, k.group());
  run_tasks(p.pool, groups, chunk_task<load_rows<V>>, &k);
  if (k.spaces->error() != nullptr) return;
  make_coefficients<V>(k);
  if (k.spaces->error() != nullptr) return;
  const bool sparse = active_terms(k) * kSparse <= p.f * k.rows;
  if (!k.few() && sparse) return run_tasks(p.pool, groups, chunk_task<sparse_rows<V>>, &k);
  if (p.top_k > 0) run_tasks(p.pool, groups, chunk_task<mask_rows<V>>, &k);
  if (k.few()) return combine_few<V>(k, terms, sums);
  run_tasks(p.pool, ceil_div(p.e, panel_width<V>()), chunk_task<dense_columns<V>>, &k);
}

template <class V>
inline const char* run_kernel(const FeedForward& p) {
  Arena size(nullptr);
  cut_chunk(p, &size);
  cut_terms(p, least(kFew, p.chunk), &size);
  size.take<float>(kParts * least(kFew, p.chunk) * p.e);
  Workspaces memory(size.bytes()), spaces(task_bytes<V>(p));
  void* space = memory.take();
  if (space == nullptr) return memory.error();
  Arena arena(space);
  Chunk k = cut_chunk(p, &arena);
  const Terms terms = cut_terms(p, least(kFew, p.chunk), &arena);
  float* sums = arena.take<float>(kParts * least(kFew, p.chunk) * p.e);
  k.spaces = &spaces;
  int32_t* neurons = const_cast<int32_t*>(k.neurons);
  for (int64_t i = 0; i < k.f_row; ++i) neurons[i] = static_cast<int32_t>(i);
  for (k.first = 0; k.first < p.n && spaces.error() == nullptr; k.first += p.chunk) {
    k.rows = least(p.chunk, p.n - k.first);
    run_chunk<V>(k, terms, sums);
  }
  memory.give(space);
  return spaces.error();
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_KERNEL_H_
