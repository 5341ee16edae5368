// The second half of decode.cuh: one block per query selects the k best of all scores, exactly, and gathers.
#ifndef GRAFT_TOPK_ATTENTION_PICK_CUH_
#define GRAFT_TOPK_ATTENTION_PICK_CUH_

#include "decode.cuh"
#include "select.cuh"

namespace graft::gpu {

constexpr int kPickThreads = 1024, kPickWarps = 32;

// What a block that selects for one query keeps in shared memory.
struct PickMemory {
  float scores[kPickThreads], kept_scores[kPickThreads];
  int keys[kPickThreads], kept_keys[kPickThreads];
  float values[kPickWarps][kMaxWidth];
  float floats[kPickWarps];
  int ints[kPickWarps];
  int count;
};

struct BlockMax { GRAFT_DEVICE static float of(float x, float y) { return fmaxf(x, y); } };
struct BlockSum { GRAFT_DEVICE static float of(float x, float y) { return x + y; } };

// The same value in every thread, combined in a fixed order.
template <class Combine>
GRAFT_DEVICE float block_reduce(PickMemory& memory, float x) {
  for (int i = 16; i > 0; i /= 2) x = Combine::of(x, __shfl_xor_sync(kAll, x, i));
  if (lane() == 0) memory.floats[warp()] = x;
  __syncthreads();
  x = memory.floats[lane()];
  for (int i = 16; i > 0; i /= 2) x = Combine::of(x, __shfl_xor_sync(kAll, x, i));
  __syncthreads();
  return x;
}

// How many flags are set in earlier threads; total counts them all.
GRAFT_DEVICE int block_rank(PickMemory& memory, bool flag, int* total) {
  const uint32_t flags = __ballot_sync(kAll, flag);
  if (lane() == 0) memory.ints[warp()] = __popc(flags);
  __syncthreads();
  const unsigned of_warp = memory.ints[lane()];
  *total = static_cast<int>(__reduce_add_sync(kAll, of_warp));
  const unsigned earlier = __reduce_add_sync(kAll, lane() < warp() ? of_warp : 0u);
  __syncthreads();
  return static_cast<int>(earlier) + __popc(flags & ((1u << lane()) - 1));
}

struct PickRow {
  const float* scores;
  int t, k;

  // Calls f(score, key) for this thread's share.
  template <class F>
  GRAFT_DEVICE void each(const F& f) const {
#pragma unroll 8
    for (int j = threadIdx.x; j < t; j += kPickThreads) f(scores[j], j);
  }

  // The k best of each thread's best bound the k best of all from below, and few scores lie above that bound.
  // Returns how many are kept, sorted, or -1: too many candidates.
  GRAFT_DEVICE int pick_quickly(PickMemory& memory, Candidates kept) const {
    float best = -kInfinity;
    each([&](float x, int) { best = fmaxf(best, x); });
    if (threadIdx.x == 0) memory.count = 0;
    const int seen = __syncthreads_count(best > -kInfinity);
    float bound = -kInfinity;
    if (seen >= k) {
      const float high = block_reduce<BlockMax>(memory, best);
      const float low = -block_reduce<BlockMax>(memory, best > -kInfinity ? -best : -kInfinity);
      bound = find_cut(ordered(low), ordered(high), seen, k, k / 4, [&](float x) {
                return __syncthreads_count(best >= x);
              }).threshold;
    }
    each([&](float x, int j) {
      if (!(x >= bound) || x == -kInfinity) return;
      const int slot = atomicAdd(&memory.count, 1);
      if (slot >= kPickThreads) return;
      memory.scores[slot] = x;
      memory.keys[slot] = j;
    });
    __syncthreads();
    const int n = memory.count;
    if (n > kPickThreads) return -1;
    keep_best(memory, n, kept);
    return min(n, k);
  }

  // Candidates came in any order; their ranks sort them, so that results repeat bit for bit.
  GRAFT_DEVICE void keep_best(const PickMemory& memory, int n, Candidates kept) const {
    if (static_cast<int>(threadIdx.x) < n) {
      const float score = memory.scores[threadIdx.x];
      const int key = memory.keys[threadIdx.x];
      int rank = 0;
#pragma unroll 4
      for (int i = 0; i < n; ++i)
        rank += memory.scores[i] > score || (memory.scores[i] == score && memory.keys[i] < key);
      if (rank < k) {
        kept.scores[rank] = score;
        kept.keys[rank] = key;
      }
    }
    __syncthreads();
  }

  GRAFT_DEVICE Cut exact_cut(PickMemory& memory) const {
    const auto count = [&](auto test) {
      float c = 0.0f;  // exact: t is below 2^24 here
      each([&](float x, int) { c += test(x) ? 1.0f : 0.0f; });
      return static_cast<int>(block_reduce<BlockSum>(memory, c));
    };
    const int visible = count([](float x) { return x > -kInfinity; });
    if (visible <= k) return Cut{-kInfinity, 0};
    float high = -kInfinity, below = -kInfinity;
    each([&](float x, int) {
      high = fmaxf(high, x);
      if (x > -kInfinity) below = fmaxf(below, -x);
    });
    high = block_reduce<BlockMax>(memory, high);
    below = block_reduce<BlockMax>(memory, below);
    return find_cut(ordered(-below), ordered(high), visible, k, 0, [&](float at_least) {
      return count([&](float x) { return x >= at_least; });
    });
  }

  // For many candidates: halving over all scores, then the kept ones in the order of their keys.
  GRAFT_DEVICE int pick_exhaustively(PickMemory& memory, Candidates kept) const {
    const Cut cut = exact_cut(memory);
    int n = 0, ties = 0;
    for (int first = 0; first < t; first += kPickThreads) {
      const int j = first + threadIdx.x;
      const float score = j < t ? scores[j] : -kInfinity;
      int tied, kept_here;
      const bool tie = score == cut.threshold;
      const int tie_rank = ties + block_rank(memory, tie, &tied);
      const bool keep = score > cut.threshold || (tie && tie_rank < cut.ties);
      const int to = n + block_rank(memory, keep, &kept_here);
      if (keep) {
        kept.scores[to] = score;
        kept.keys[to] = j;
      }
      n += kept_here;
      ties += tied;
    }
    __syncthreads();
    return n;
  }
};

// Softmax over the kept scores and the weighted sum of their values, by the whole block.
template <class T>
GRAFT_DEVICE void block_gather(const Problem& p, PickMemory& memory, int b, int key_head, Candidates kept, int n,
                               T* out) {
  if (p.mean && n == 0) {
    if (warp() == 0) warp_mean(p, b, key_head, out);
    return;
  }
  float peak = -kInfinity, sum = 0.0f, acc[8] = {};
  for (int i = threadIdx.x; i < n; i += kPickThreads) peak = fmaxf(peak, kept.scores[i]);
  peak = block_reduce<BlockMax>(memory, peak);
  for (int i = threadIdx.x; i < n; i += kPickThreads) {
    kept.scores[i] = power_of_two((kept.scores[i] - peak) * kLog2e);
    sum += kept.scores[i];
  }
  sum = block_reduce<BlockSum>(memory, sum);  // its barriers also publish the weights

  const int lanes = lanes_per_row(p.e), column = threadIdx.x % lanes * 8;
  const T* values = at<const T>(p.v, b, key_head, 0) + column;
#pragma unroll 2
  for (int i = threadIdx.x / lanes; i < n; i += kPickThreads / lanes) {
    float x[8];
    load_eight(x, values + kept.keys[i] * p.v.stride[2], p.e - column);
#pragma unroll
    for (int c = 0; c < 8; ++c) acc[c] = fmaf(kept.scores[i], x[c], acc[c]);
  }
  for (int apart = lanes; apart < 32; apart *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) acc[c] += __shfl_xor_sync(kAll, acc[c], apart);
  if (lane() < lanes)
#pragma unroll
    for (int c = 0; c < 8; ++c) memory.values[warp()][column + c] = acc[c];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= p.e) return;
  float total = 0.0f;
  for (int i = 0; i < kPickWarps; ++i) total += memory.values[i][threadIdx.x];
  out[threadIdx.x] = narrow<T>(n > 0 ? total / sum : 0.0f);
}

// spill: room for top_k candidates per query, where they do not fit in shared memory.
template <class T>
__global__ void __launch_bounds__(kPickThreads) pick_kernel(Problem p, Scores scores, Candidates spill) {
  PickMemory& memory = *reinterpret_cast<PickMemory*>(shared_memory());
  const int head = blockIdx.x / p.rows, r = blockIdx.x % p.rows, b = head / p.g, key_head = head % p.g;
  const bool small = p.top_k <= kPickThreads;
  const int64_t spilled = static_cast<int64_t>(blockIdx.x) * p.top_k;
  const Candidates kept = small ? Candidates{memory.kept_scores, memory.kept_keys}
                                : Candidates{spill.scores + spilled, spill.keys + spilled};
  const PickRow row{scores.data + blockIdx.x * scores.pitch, p.t, p.top_k};
  int n = small ? row.pick_quickly(memory, kept) : -1;
  if (n < 0) n = row.pick_exhaustively(memory, kept);

  const Row at_row = row_of(p, key_head, r);
  if (p.saved_scores) {
    const int64_t flat = flat_row(p, b, at_row) * p.top_k;
    for (int i = threadIdx.x; i < p.top_k; i += kPickThreads) {
      p.saved_scores[flat + i] = i < n ? kept.scores[i] : -kInfinity;
      p.saved_keys[flat + i] = i < n ? kept.keys[i] : -1;
    }
    __syncthreads();
  }
  block_gather(p, memory, b, key_head, kept, n, at<T>(p.out, b, at_row.head, at_row.i));
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_PICK_CUH_
