// A chunk of tokens: what its tasks share, and where it lies in memory.
#ifndef GRAFT_TOPK_FEED_FORWARD_CHUNK_H_
#define GRAFT_TOPK_FEED_FORWARD_CHUNK_H_

#include "../vector/arena.h"
#include "problem.h"

namespace graft {
namespace {

constexpr int64_t kNeurons = 64;  // of a task

// Rows are a cache line longer than they need: lengths that are powers of two would all fall into one set.
inline int64_t row_stride(int64_t n) { return round_up(n, kNeurons) + 16; }

// What products of rounded numbers need: see near.h.
struct Rounded {
  float* pairs;             // [rows][pair_row]: tokens, two bf16 numbers in each
  int64_t pair_row;
  float *length, *missed;   // [rows]: norms of tokens, and of what their pairs have lost
  float* reach;             // [rows]: no product is further off
  float* least;             // [rows]: rounded products from here on may matter
  float *w_error, *w_norm;  // by task: what its weights have lost, and their norm, at most
};

struct Chunk {
  const FeedForward* p;
  Workspaces* spaces;       // of the tasks
  int64_t first, rows;      // tokens
  float *x, *c, *up;        // [rows m] inputs, [rows f] coefficients, [rows f] of a gated block's second factor
  int64_t x_row, f_row;     // strides of x, and of c and up
  int64_t* active;          // coefficients that are not 0, counted by task
  Rounded rounded;
  const int32_t* neurons;   // 0, 1, 2, …
  bool few() const { return rows <= kFew; }
  int64_t group() const { return few() ? 1 : 8; }  // tokens of a task that works token by token
};

// Neurons of one task.
inline int64_t neuron_tasks(const FeedForward& p) { return ceil_div(p.f, kNeurons); }

// A gated block whose selection needs the gate alone can leave the other product to the chosen neurons: worth it
// where few are chosen, as these products read scattered rows.
inline bool late_up(const Chunk& k) {
  const FeedForward& p = *k.p;
  if (!p.gated || p.top_k == 0 || p.select_by == SelectBy::contribution) return false;
  return p.top_k * (k.few() ? 2 : 8) <= p.f;
}

// Whether the second factor needs a place of its own, instead of being multiplied in at once.
inline bool keeps_up(const FeedForward& p) {
  return p.gated && p.top_k > 0 && p.select_by != SelectBy::contribution;
}

inline Rounded cut_rounded(const FeedForward& p, Arena* arena) {
  Rounded r{};
  r.pair_row = row_stride(p.m) / 2;
  r.pairs = arena->take<float>(p.near_many ? p.chunk * r.pair_row : 0);
  r.length = arena->take<float>(p.chunk);
  r.missed = arena->take<float>(p.chunk);
  r.reach = arena->take<float>(p.chunk);
  r.least = arena->take<float>(p.chunk);
  r.w_error = arena->take<float>(neuron_tasks(p));
  r.w_norm = arena->take<float>(neuron_tasks(p));
  return r;
}

inline Chunk cut_chunk(const FeedForward& p, Arena* arena) {
  Chunk k{};
  k.p = &p;
  k.x_row = row_stride(p.m), k.f_row = row_stride(p.f);
  k.x = arena->take<float>(p.chunk * k.x_row);
  k.c = arena->take<float>(p.chunk * k.f_row);
  k.up = arena->take<float>(keeps_up(p) ? p.chunk * k.f_row : 0);
  k.active = arena->take<int64_t>(neuron_tasks(p));
  k.neurons = arena->take<int32_t>(k.f_row);
  k.rounded = cut_rounded(p, arena);
  return k;
}

inline const void* row_of(const graft_tensor& x, int64_t row) { return element(x.data, x.dtype, row * x.strides[0]); }

// Runs Work(chunk, index, scratch) as a task with scratch memory.
template <void (*Work)(const Chunk&, int64_t, void*)>
inline void chunk_task(void* state, int64_t index) {
  const Chunk& k = *static_cast<const Chunk*>(state);
  void* space = k.spaces->take();
  if (space == nullptr) return;
  Work(k, index, space);
  k.spaces->give(space);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_CHUNK_H_
