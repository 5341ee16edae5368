// TopKAttention for AVX-512 with VNNI: top-k only, scored in 8-bit integers first.
#include "kernels.h"
#include "../vector/avx512.h"
#include "kernel.h"
#include "topk8.h"

namespace graft {
namespace {

// Key heads first .. end - 1.
struct Heads {
  int64_t first, end;
};

struct Topk8Task {
  Topk8Job job;
  int64_t first;  // block
};

inline void topk8_task(void* state, int64_t index) {
  const Topk8Task& task = *static_cast<Topk8Task*>(state);
  const Topk8Job& job = task.job;
  void* space = job.exact.spaces->take();
  if (space == nullptr) return;
  topk8_block(job, block_at(*job.exact.p, job.block_rows, task.first + index), space);
  job.exact.spaces->give(space);
}

const char* quantise(const Problem& p, Heads heads, Keys8* keys) {
  Arena size(nullptr);
  cut_quantise(p, &size);
  Workspaces spaces(size.bytes());
  QuantiseJob job{&p, &spaces, heads.first, keys};
  run_tasks(p.pool, heads.end - heads.first, quantise_task<Avx512>, &job);
  return spaces.error();
}

const char* run_quantised(const Problem& p, const float* norms, Heads heads, const Keys8* keys, Workspaces* spaces) {
  const Selection in_fp32{p.top_k, capacity_for(p.top_k)};
  const int64_t rows = topk8_rows(p), blocks = p.units / p.g * ceil_div(p.rows, rows);  // of a key head
  Topk8Task task{{{&p, spaces, norms, rows, in_fp32}, keys, heads.first, rows, selection8(p)},
                 heads.first * blocks};
  run_tasks(p.pool, (heads.end - heads.first) * blocks, topk8_task, &task);
  return spaces->error();
}

size_t scratch_bytes(const Problem& p) {
  const int64_t rows = topk8_rows(p);
  Arena fp32(nullptr), in_8(nullptr);
  cut_topk<Avx512>(p, {p.top_k, capacity_for(p.top_k)}, rows, &fp32);
  cut_topk8(p, selection8(p), rows, &in_8);
  return most(fp32.bytes(), in_8.bytes());
}

// A key head's bytes are made once, and used by all tasks of its queries. Few heads at a time: all of them would
// take a quarter of K's memory, and threads need no more than enough tasks to share.
int64_t heads_at_once(const Problem& p, int64_t bytes) {
  constexpr int64_t enough = int64_t{3} << 20;
  return least(p.b * p.g, most<int64_t>(1, enough / bytes));
}

const char* run_topk8(const Problem& p, const float* norms) {
  Arena size(nullptr);
  take_keys8(p, &size);
  const int64_t heads = p.b * p.g, bytes = static_cast<int64_t>(size.bytes()), at_once = heads_at_once(p, bytes);
  Arena all(nullptr);
  all.take<Keys8>(at_once);
  for (int64_t i = 0; i < at_once; ++i) take_keys8(p, &all);
  Workspaces memory(all.bytes()), spaces(scratch_bytes(p));
  void* space = memory.take();
  if (space == nullptr) return memory.error();
  const char* error = nullptr;
  for (int64_t i = 0; i < heads && error == nullptr; i += at_once) {
    const Heads some{i, least(i + at_once, heads)};
    Arena arena(space);
    Keys8* keys = arena.take<Keys8>(at_once);
    for (int64_t j = 0; j < at_once; ++j) keys[j] = take_keys8(p, &arena);
    error = quantise(p, some, keys);
    if (error == nullptr) error = run_quantised(p, norms, some, keys, &spaces);
  }
  memory.give(space);
  return error;
}

}  // namespace

const char* topk_attention_avx512vnni(const Problem& p) { return with_norms<Avx512>(p, run_topk8); }

}  // namespace graft
