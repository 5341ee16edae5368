// TopKAttention for AVX-512 with VNNI: top-k only, scored in 8-bit integers first.
#include "kernels.h"
#include "../vector/avx512.h"
#include "kernel.h"
#include "topk8.h"

namespace graft {
namespace {

inline void topk8_task(void* state, int64_t index) {
  const Topk8Job& job = *static_cast<Topk8Job*>(state);
  void* space = job.exact.spaces->take();
  if (space == nullptr) return;
  topk8_block(job, block_at(*job.exact.p, job.block_rows, index), space);
  job.exact.spaces->give(space);
}

const char* quantise(const Problem& p, Keys8* keys) {
  Arena size(nullptr);
  cut_quantise(p, &size);
  Workspaces spaces(size.bytes());
  QuantiseJob job{&p, &spaces, keys};
  run_tasks(p.pool, p.b * p.g, quantise_task<Avx512>, &job);
  return spaces.error();
}

const char* run_quantised(const Problem& p, const float* norms, const Keys8* keys) {
  const Selection in_fp32{p.top_k, capacity_for(p.top_k)}, in_8 = selection8(p);
  const int64_t rows = topk8_rows(p);
  Arena size_fp32(nullptr), size_8(nullptr);
  cut_topk<Avx512>(p, in_fp32, rows, &size_fp32);
  cut_topk8(p, in_8, rows, &size_8);
  Workspaces spaces(most(size_fp32.bytes(), size_8.bytes()));
  Topk8Job job{{&p, &spaces, norms, rows, in_fp32}, keys, rows, in_8};
  run_tasks(p.pool, block_count(p, rows), topk8_task, &job);
  return spaces.error();
}

// All keys in 8 bits take a quarter of K's memory, and are made once rather than by every task.
const char* run_topk8(const Problem& p, const float* norms) {
  const int64_t heads = p.b * p.g;
  Arena size(nullptr);
  size.take<Keys8>(heads);
  for (int64_t i = 0; i < heads; ++i) take_keys8(p, &size);
  Workspaces memory(size.bytes());
  void* space = memory.take();
  if (space == nullptr) return memory.error();
  Arena arena(space);
  Keys8* keys = arena.take<Keys8>(heads);
  for (int64_t i = 0; i < heads; ++i) keys[i] = take_keys8(p, &arena);
  const char* error = quantise(p, keys);
  if (error == nullptr) error = run_quantised(p, norms, keys);
  memory.give(space);
  return error;
}

}  // namespace

const char* topk_attention_avx512vnni(const Problem& p) { return with_norms<Avx512>(p, run_topk8); }

}  // namespace graft
