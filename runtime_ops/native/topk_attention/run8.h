// The entry point of a TopKAttention kernel that scores in 8-bit integers first; L: see search8.h. Top-k only.
#ifndef GRAFT_RUN8_H_
#define GRAFT_RUN8_H_

#include "kernel.h"
#include "topk8.h"

namespace graft {
namespace {

// Tasks are some blocks of a unit each: what is learnt from one is of use for the next.
struct Topk8Task {
  Topk8Job job;
  int64_t unit, blocks, tasks;  // the first unit; blocks and tasks of a unit
};

template <class L>
inline void topk8_task(void* state, int64_t index) {
  const Topk8Task& task = *static_cast<Topk8Task*>(state);
  void* space = task.job.exact.spaces->take();
  if (space == nullptr) return;
  const int64_t unit = (task.unit + index / task.tasks) * task.blocks, part = index % task.tasks;
  topk8_blocks<L>(task.job, unit + part * task.blocks / task.tasks, unit + (part + 1) * task.blocks / task.tasks, space);
  task.job.exact.spaces->give(space);
}

// Of a unit: enough for many threads, of at most sixteen blocks, and the same however many heads are worked on at a time.
inline int64_t tasks_of(const Problem& p, int64_t blocks) {
  const int64_t together = most<int64_t>(1, least<int64_t>(16, p.b * p.units * blocks / 32));
  return ceil_div(blocks, together);
}

template <class L>
inline const char* quantise(const Problem& p, Heads heads, Keys8* keys) {
  Arena size(nullptr);
  cut_quantise(p, &size);
  Workspaces spaces(size.bytes());
  QuantiseJob job{&p, &spaces, heads.first, keys};
  run_tasks(p.pool, heads.end - heads.first, quantise_task<typename L::V>, &job);
  return spaces.error();
}

template <class L>
inline const char* run_quantised(const Problem& p, const float* norms, Heads heads, const Keys8* keys, Workspaces* spaces) {
  const Selection in_fp32{p.top_k, capacity_for(p.top_k)};
  const int64_t rows = topk8_rows(p), share = p.units / p.g, blocks = ceil_div(p.rows, rows), tasks = tasks_of(p, blocks);
  Topk8Task task{{{&p, spaces, norms, rows, in_fp32}, keys, heads.first, rows, selection8(p)},
                 heads.first * share, blocks, tasks};
  run_tasks(p.pool, (heads.end - heads.first) * share * tasks, topk8_task<L>, &task);
  return spaces->error();
}

template <class L>
inline size_t scratch_bytes(const Problem& p) {
  const int64_t rows = topk8_rows(p);
  Arena fp32(nullptr), in_8(nullptr);
  cut_topk<typename L::V>(p, {p.top_k, capacity_for(p.top_k)}, rows, &fp32);
  cut_topk8<L>(p, selection8(p), rows, &in_8);
  return most(fp32.bytes(), in_8.bytes());
}

// What is made of some key heads before their queries are looked at.
struct Prepared {
  Problem copied;
  Keys8* keys;
};

inline Prepared prepare(const Problem& p, Heads heads, bool begin, Arena* arena) {
  Keys8* all = arena->take<Keys8>(heads.end - heads.first);
  const Prepared x{take_heads(p, heads, arena), all};
  for (int64_t i = 0; i < heads.end - heads.first; ++i) {
    const Keys8 keys = take_keys8(p, arena);
    if (begin) x.keys[i] = keys;
  }
  return x;
}

inline size_t bytes_of(const Problem& p, int64_t heads) {
  Arena size(nullptr);
  prepare(p, {0, heads}, false, &size);
  return size.bytes();
}

// A key head is prepared once, and used by all tasks of its queries. Few heads at a time: all of them would take a
// quarter of K's memory or, copied, as much as K and V, and threads need no more than enough tasks to share.
inline int64_t heads_at_once(const Problem& p) {
  const int64_t enough = int64_t{copies(p) ? 10 : 4} << 20;
  return least(p.b * p.g, most<int64_t>(1, enough / static_cast<int64_t>(bytes_of(p, 1))));
}

template <class L>
inline const char* run_heads(const Problem& p, const float* norms, Heads heads, void* space, Workspaces* spaces) {
  Arena arena(space);
  const Prepared x = prepare(p, heads, true, &arena);
  copy_heads(p, x.copied, heads);
  const char* error = quantise<L>(x.copied, heads, x.keys);
  return error != nullptr ? error : run_quantised<L>(x.copied, norms, heads, x.keys, spaces);
}

template <class L>
inline const char* run_topk8(const Problem& p, const float* norms) {
  const int64_t heads = p.b * p.g, at_once = heads_at_once(p);
  Workspaces memory(bytes_of(p, at_once)), spaces(scratch_bytes<L>(p));
  void* space = memory.take();
  if (space == nullptr) return memory.error();
  const char* error = nullptr;
  for (int64_t i = 0; i < heads && error == nullptr; i += at_once) {
    error = run_heads<L>(p, norms, {i, least(i + at_once, heads)}, space, &spaces);
  }
  memory.give(space);
  return error;
}

template <class L>
inline const char* run_kernel8(const Problem& p) {
  return with_norms<typename L::V>(p, run_topk8<L>);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_RUN8_H_
