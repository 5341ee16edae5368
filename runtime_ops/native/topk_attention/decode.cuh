// Attention over the k best keys for at most 16 queries per key head, as in decoding. All scores go to memory
// (4 bytes per query and key, against 2 d bytes of the key itself), so that reading k is spread over the whole
// GPU and runs at the memory's speed; then one block per query selects, and reads k rows of v.
#ifndef GRAFT_TOPK_ATTENTION_DECODE_CUH_
#define GRAFT_TOPK_ATTENTION_DECODE_CUH_

#include "problem.cuh"

namespace graft::gpu {

constexpr int kDecodeRows = 16;
constexpr int kScoreThreads = 128, kScoreWarps = 4, kStripsPerWarp = 4;

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
      const bool visible = key >= rows.start[x / 2] && key < rows.limit[x / 2] && key_shown(p, b, key);
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
      const bool near = j >= key_start(p, b, at_row.i) && j < key_limit(p, b, at_row.i);
      const bool visible = near && key_shown(p, b, j);
      const int64_t bias = p.bias.data ? offset(p.bias, b, at_row.head, at_row.i) : 0;
      scores.data[(static_cast<int64_t>(work.head) * p.rows + r) * scores.pitch + j] =
          visible ? score_of(p, sum, bias, j) : -kInfinity;
    }
  }
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_DECODE_CUH_
