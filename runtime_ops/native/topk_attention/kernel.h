// The entry point of a TopKAttention kernel for one vector type.
#ifndef GRAFT_KERNEL_H_
#define GRAFT_KERNEL_H_

#include <new>

#include "copied.h"
#include "topk.h"

namespace graft {
namespace {

// Rows of a task: enough to use each tile of keys well, few enough that every thread has several tasks.
template <class V>
inline int64_t exact_rows(const Problem& p) {
  constexpr int64_t width = panel_width<V>();
  const int64_t most_rows = round_up(64, width);
  const int64_t tasks = most<int64_t>(1, 8 / (p.b * p.units));
  return least(most_rows, round_up(ceil_div(p.rows, tasks), V::lanes));
}

template <class V, class Job, void (*Run)(const Job&, const Block&, void*)>
inline void block_task(void* state, int64_t index) {
  const Job& job = *static_cast<Job*>(state);
  void* space = job.spaces->take();
  if (space == nullptr) return;
  Run(job, block_at(*job.p, job.block_rows, job.first + index), space);
  job.spaces->give(space);
}

template <class V>
inline size_t exact_bytes(const Problem& p, int64_t rows) {
  Arena size(nullptr);
  cut_exact<V>(p, rows, &size);
  cut_panels<V>(p, ceil_div(rows, panel_width<V>()), false, &size, nullptr);
  return size.bytes();
}

template <class V>
inline const char* run_exact_heads(const Problem& p, const float* norms, Heads heads, int64_t rows,
                                   Workspaces* spaces) {
  const int64_t blocks = p.units / p.g * ceil_div(p.rows, rows);  // of a key head
  ExactJob job{&p, spaces, norms, rows, heads.first * blocks};
  run_tasks(p.pool, (heads.end - heads.first) * blocks, block_task<V, ExactJob, exact_block<V>>, &job);
  return spaces->error();
}

// One head after another where it is copied: copies of all would be as large as K and V.
template <class V>
inline const char* run_exact(const Problem& p, const float* norms) {
  const int64_t heads = p.b * p.g, rows = p.block_rows > 0 ? p.block_rows : exact_rows<V>(p);
  Workspaces spaces(exact_bytes<V>(p, rows));
  if (!copies(p)) return run_exact_heads<V>(p, norms, {0, heads}, rows, &spaces);
  Arena size(nullptr);
  take_heads(p, {0, 1}, &size);
  Workspaces memory(size.bytes());
  void* space = memory.take();
  if (space == nullptr) return memory.error();
  const char* error = nullptr;
  for (int64_t i = 0; i < heads && error == nullptr; ++i) {
    Arena arena(space);
    const Problem copied = take_heads(p, {i, i + 1}, &arena);
    copy_heads(p, copied, {i, i + 1});
    error = run_exact_heads<V>(copied, norms, {i, i + 1}, rows, &spaces);
  }
  memory.give(space);
  return error;
}

template <class V>
inline const char* run_selection(const Problem& p, const float* norms, const Selection& selection,
                                 const BlockSums& sums) {
  const int64_t rows = topk_rows(p, selection);
  Arena size(nullptr);
  cut_topk<V>(p, selection, rows, &size);
  Workspaces spaces(size.bytes());
  TopkJob job{&p, &spaces, norms, rows, selection, sums};
  run_tasks(p.pool, block_count(p, rows), block_task<V, TopkJob, topk_block<V>>, &job);
  return spaces.error();
}

template <class V>
inline const char* run_topk(const Problem& p, const float* norms) {
  const Selection selection{p.top_k, capacity_for(p.top_k)};
  if (p.args.remainder == GRAFT_REMAINDER_NONE) return run_selection<V>(p, norms, selection, {});
  Arena size(nullptr);
  cut_sums(p, &size);
  Workspaces memory(size.bytes());
  void* space = memory.take();
  if (space == nullptr) return memory.error();
  Arena arena(space);
  SumsJob job{&p, cut_sums(p, &arena)};
  run_tasks(p.pool, p.b * heads_with_sums(p), sums_task<V>, &job);
  const char* error = run_selection<V>(p, norms, selection, job.sums);
  memory.give(space);
  return error;
}

// Few rows, as in decoding, would leave most lanes of a panel idle: there all scores of a row fit into memory, and
// "the t best" is a selection that never cuts.
template <class V>
inline const char* run_every_key(const Problem& p, const float* norms) {
  if (p.rows * 4 > V::lanes) return run_exact<V>(p, norms);
  return run_selection<V>(p, norms, {p.t, round_up(p.t, 64) + kTile}, {});
}

// Calls run(p, norms of the keys), NULL where they are not needed.
template <class V>
inline const char* with_norms(const Problem& p, const char* (*run)(const Problem&, const float*)) {
  if (!p.key_bias_wide) return run(p, nullptr);
  float* norms = new (std::nothrow) float[static_cast<size_t>(p.b * p.g)];
  if (norms == nullptr) return "out of memory for scratch space";
  const char* error = find_norms<V>(p, norms);
  if (error == nullptr) error = run(p, norms);
  delete[] norms;
  return error;
}

template <class V>
inline const char* run_kernel(const Problem& p) {
  return with_norms<V>(p, p.top_k > 0 ? run_topk<V> : run_every_key<V>);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_KERNEL_H_
