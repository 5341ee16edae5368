// Attention over the k best keys for at most 16 queries per key head, as in decoding. All scores go to memory
// (4 bytes per query and key, against 2 d bytes of the key itself), so that reading k is spread over the whole
// GPU and runs at the memory's speed; then one block per query selects, and reads k rows of v.
#ifndef GRAFT_TOPK_ATTENTION_DECODE_CUH_
#define GRAFT_TOPK_ATTENTION_DECODE_CUH_

#include "select.cuh"

namespace graft::gpu {

constexpr int kDecodeRows = 16;
constexpr int kScoreThreads = 128, kScoreWarps = 4, kStripsPerWarp = 4;
constexpr int kPickThreads = 1024, kPickWarps = 32;

// Scores of [b g][rows], pitch apart.
struct Scores {
  float* data;
  int64_t pitch;
};

// Keys that one block scores. strip: keys that one warp has in flight.
GRAFT_ANYWHERE int score_block_keys(int strip) { return kScoreWarps * kStripsPerWarp * strip; }

struct ScoreWork {
  int head, first_key;
  GRAFT_DEVICE ScoreWork(const Problem& p, int strip) {
    const int blocks = (p.t + score_block_keys(strip) - 1) / score_block_keys(strip);
    head = blockIdx.x / blocks;
    first_key = blockIdx.x % blocks * score_block_keys(strip) + warp() * strip;
  }
};

// Tensor cores straight from registers. A dot product does not mind the order of its terms, so lane c of four
// takes 16 consecutive bytes of a key for two steps of mma, and the query's fragments are permuted alike: no
// shared memory, 16-byte loads, and 8 KiB in flight per warp.
template <class T, int kDim>
struct DirectScores {
  static constexpr int kStrip = 4096 / kDim, kChunks = kDim / 32;
  uint32_t query[kDim / 16][4];
  RowPair rows;
  int b, key_head;

  GRAFT_DEVICE DirectScores(const Problem& p, int head) : b(head / p.g), key_head(head % p.g) {
    rows = RowPair(p, b, key_head, 0);
    for (int half = 0; half < 2; ++half) {
      const Row row = row_of(p, key_head, acc_row(half));
      const T* from = at<const T>(p.q, b, row.head, row.i);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const uint4 x = chunk(from, i, p.d);
        query[2 * i][half] = x.x;
        query[2 * i][half + 2] = x.y;
        query[2 * i + 1][half] = x.z;
        query[2 * i + 1][half + 2] = x.w;
      }
    }
  }

  GRAFT_DEVICE static uint4 chunk(const T* row, int i, int d) {
    const int column = 32 * i + lane() % 4 * 8;
    return column < d ? load_stream(row + column) : uint4{0, 0, 0, 0};
  }

  GRAFT_DEVICE void store(const Problem& p, const Scores& scores, const float (&acc)[4], int j) const {
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int r = acc_row(x / 2), key = j + acc_column() + x % 2;
      if (r >= p.rows || key >= p.t) continue;
      const bool visible = key < rows.limit[x / 2] && key_shown(p, b, key);
      const float score = visible ? score_of(p, acc[x], rows.bias(p, x / 2), key) : -kInfinity;
      scores.data[((static_cast<int64_t>(b) * p.g + key_head) * p.rows + r) * scores.pitch + key] = score;
    }
  }

  GRAFT_DEVICE void strip(const Problem& p, const Scores& scores, int j) const {
    uint4 keys[kStrip / 8][kChunks];
#pragma unroll
    for (int n = 0; n < kStrip / 8; ++n) {
      const T* row = at<const T>(p.k, b, key_head, min(j + 8 * n + lane() / 4, p.t - 1));
#pragma unroll
      for (int i = 0; i < kChunks; ++i) keys[n][i] = chunk(row, i, p.d);
    }
#pragma unroll
    for (int n = 0; n < kStrip / 8; ++n) {
      float acc[4] = {};
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        multiply(T{}, acc, query[2 * i], keys[n][i].x, keys[n][i].y);
        multiply(T{}, acc, query[2 * i + 1], keys[n][i].z, keys[n][i].w);
      }
      store(p, scores, acc, j + 8 * n);
    }
  }
};

template <class T, int kDim>
__global__ void __launch_bounds__(kScoreThreads) direct_scores_kernel(Problem p, Scores scores) {
  using Direct = DirectScores<T, kDim>;
  const ScoreWork work(p, Direct::kStrip);
  const Direct direct(p, work.head);
  for (int i = 0; i < kStripsPerWarp; ++i) {
    const int j = work.first_key + i * kScoreWarps * Direct::kStrip;
    if (j < p.t) direct.strip(p, scores, j);
  }
}

// Any storage, width and alignment: eight lanes per key, queries in shared memory.
constexpr int kPlainStrip = 4;
template <class T>
__global__ void __launch_bounds__(kScoreThreads) plain_scores_kernel(Problem p, Scores scores) {
  float* const queries = reinterpret_cast<float*>(shared_memory());  // [rows][kMaxWidth]
  const ScoreWork work(p, kPlainStrip);
  const int b = work.head / p.g, key_head = work.head % p.g, x = lane() % 8;
  for (int i = threadIdx.x; i < p.rows * kMaxWidth; i += kScoreThreads) {
    const Row row = row_of(p, key_head, i / kMaxWidth);
    const int column = i % kMaxWidth;
    queries[i] = column < p.d ? widen(at<const T>(p.q, b, row.head, row.i)[column]) : 0.0f;
  }
  __syncthreads();
  for (int i = 0; i < kStripsPerWarp; ++i) {
    const int j = work.first_key + i * kScoreWarps * kPlainStrip + lane() / 8;
    const T* row = at<const T>(p.k, b, key_head, min(j, p.t - 1));
    float key[kMaxWidth / 64][8];
#pragma unroll
    for (int n = 0; n < kMaxWidth / 64; ++n) load_eight(key[n], row + n * 64 + x * 8, p.d - n * 64 - x * 8);
    for (int r = 0; r < p.rows; ++r) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kMaxWidth / 64; ++n)
#pragma unroll
        for (int c = 0; c < 8; ++c) sum = fmaf(key[n][c], queries[r * kMaxWidth + n * 64 + x * 8 + c], sum);
      for (int apart = 1; apart < 8; apart *= 2) sum += __shfl_xor_sync(kAll, sum, apart);
      if (x != r % 8 || j >= p.t) continue;
      const Row at_row = row_of(p, key_head, r);
      const bool visible = j < key_limit(p, b, at_row.i) && key_shown(p, b, j);
      const int64_t bias = p.bias.data ? offset(p.bias, b, at_row.head, at_row.i) : 0;
      scores.data[(static_cast<int64_t>(work.head) * p.rows + r) * scores.pitch + j] =
          visible ? score_of(p, sum, bias, j) : -kInfinity;
    }
  }
}

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

#endif  // GRAFT_TOPK_ATTENTION_DECODE_CUH_
