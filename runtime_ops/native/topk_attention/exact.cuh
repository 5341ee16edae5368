// Attention over every visible key: one pass with a running maximum and sum (the online softmax of Milakov
// and Gimelshein, 2018), tile by tile, nothing of size s t in memory. With few queries the keys are split
// over blocks, and a second kernel merges the parts.
#ifndef GRAFT_TOPK_ATTENTION_EXACT_CUH_
#define GRAFT_TOPK_ATTENTION_EXACT_CUH_

#include "tiles.cuh"

namespace graft::gpu {

// Parts of a split run, each [splits][b g][rows]: unnormalised results (e wide), maxima and sums.
struct Parts {
  float *out, *peak, *sum;
  int splits;
};

template <class Core>
struct ExactTile {
  static constexpr int kTall = Core::kTall, kDim = Core::kDim;
  float out[kTall][kDim / 8][4];
  float peak[kTall][2], sum[kTall][2];
  RowPair rows[kTall];
  float to_log2;  // scores times this are exponents of 2
  bool plain;     // scores stay bare products; the scale is in to_log2

  GRAFT_DEVICE ExactTile(const Problem& p, const TileWork<Core>& work) {
    plain = p.scale > 0.0f && p.softcap <= 0.0f && !p.bias.data;
    to_log2 = plain ? p.scale * kLog2e : kLog2e;
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall) {
      rows[tall] = RowPair(p, work.b, work.key_head, work.first_row + (warp() * kTall + tall) * 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        peak[tall][half] = -kInfinity;
        sum[tall][half] = 0.0f;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
        for (int x = 0; x < 4; ++x) out[tall][n][x] = 0.0f;
    }
  }

  // The maxima take in the scores of one tile; earlier results are rescaled where a maximum moved.
  GRAFT_DEVICE void raise_peaks(const float (&acc)[Core::kParts][kTall][4][4]) {
    float factor[kTall][2];
    bool moved = false;
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = peak[tall][half];
#pragma unroll
        for (int part = 0; part < Core::kParts; ++part)
#pragma unroll
          for (int n = 0; n < 4; ++n)
            high = fmaxf(high, fmaxf(acc[part][tall][n][2 * half], acc[part][tall][n][2 * half + 1]));
        high = fmaxf(high, __shfl_xor_sync(kAll, high, 1));
        high = fmaxf(high, __shfl_xor_sync(kAll, high, 2));
        moved |= high > peak[tall][half];
        factor[tall][half] = peak[tall][half] == -kInfinity ? 0.0f : power_of_two((peak[tall][half] - high) * to_log2);
        peak[tall][half] = high;
      }
    }
    if (!__any_sync(kAll, moved)) return;
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
        for (int x = 0; x < 4; ++x) out[tall][n][x] *= factor[tall][x / 2];
      sum[tall][0] *= factor[tall][0];
      sum[tall][1] *= factor[tall][1];
    }
  }

  // The difference is taken before scaling: huge scores cancel exactly. Rows still without a key give 0.
  GRAFT_DEVICE void exponentiate(float (&acc)[Core::kParts][kTall][4][4]) {
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float high = peak[tall][half] == -kInfinity ? 0.0f : peak[tall][half];
#pragma unroll
        for (int part = 0; part < Core::kParts; ++part)
#pragma unroll
          for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int x = 2 * half; x < 2 * half + 2; ++x) {
              acc[part][tall][n][x] = power_of_two((acc[part][tall][n][x] - high) * to_log2);
              sum[tall][half] += acc[part][tall][n][x];
            }
      }
  }

  GRAFT_DEVICE void step(const Problem& p, const TileWork<Core>& work, const typename Core::Query& query,
                         const char* keys, const char* values, char* scratch, int j) {
    float acc[Core::kParts][kTall][4][4];
    const bool hide = p.key_mask || work.cuts(j);
#pragma unroll
    for (int part = 0; part < Core::kParts; ++part) {
      Core::products(acc[part], query, keys, part, p.d);
      const int from = j + 32 * part;
      if (!plain) {
#pragma unroll
        for (int tall = 0; tall < kTall; ++tall) make_scores(p, acc[part][tall], rows[tall], from);
      }
      if (hide) {
        const uint32_t shown = shown_keys(p, work.b, from);
#pragma unroll
        for (int tall = 0; tall < kTall; ++tall) hide_keys(acc[part][tall], rows[tall], from, shown);
      }
    }
    raise_peaks(acc);
    exponentiate(acc);
#pragma unroll
    for (int part = 0; part < Core::kParts; ++part) Core::accumulate(out, acc[part], values, part, p.e, scratch);
  }

  // Each lane summed its own columns.
  GRAFT_DEVICE void close_sums() {
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[tall][half] += __shfl_xor_sync(kAll, sum[tall][half], 1);
        sum[tall][half] += __shfl_xor_sync(kAll, sum[tall][half], 2);
      }
  }

  template <class To>
  GRAFT_DEVICE static void store_row(To* to, const float (&out)[kDim / 8][4], int half, float factor, int e) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int column = 8 * n + acc_column() + x;
        if (column < e) to[column] = narrow<To>(out[n][2 * half + x] * factor);
      }
  }

  GRAFT_DEVICE void store(const Problem& p, const TileWork<Core>& work, const Parts& parts, int split) {
    close_sums();
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = work.first_row + (warp() * kTall + tall) * 16 + acc_row(half);
        if (r >= p.rows) continue;
        if (parts.splits == 1) {
          const Row row = row_of(p, work.key_head, r);
          const float factor = sum[tall][half] > 0.0f ? 1.0f / sum[tall][half] : 0.0f;
          store_row(at<typename Core::T>(p.out, work.b, row.head, row.i), out[tall], half, factor, p.e);
          continue;
        }
        const int64_t head = static_cast<int64_t>(split) * p.b * p.g + work.b * p.g + work.key_head;
        const int64_t flat = head * p.rows + r;
        store_row(parts.out + flat * p.e, out[tall], half, 1.0f, p.e);
        parts.peak[flat] = peak[tall][half];
        parts.sum[flat] = sum[tall][half];
      }
    if (p.mean && parts.splits == 1) store_means(p, work);
  }

  // Rows that saw no key, one by one; each is known to the four lanes that hold its sum.
  GRAFT_DEVICE void store_means(const Problem& p, const TileWork<Core>& work) const {
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 8; ++i) {
          const float total = __shfl_sync(kAll, sum[tall][half], 4 * i);
          const int r = work.first_row + (warp() * kTall + tall) * 16 + 8 * half + i;
          if (total != 0.0f || r >= p.rows) continue;
          const Row row = row_of(p, work.key_head, r);
          warp_mean(p, work.b, work.key_head, at<typename Core::T>(p.out, work.b, row.head, row.i));
        }
  }
};

template <class Core>
constexpr size_t exact_shared_bytes() {
  return Core::kQueryBytes + 2 * Core::kStages * Core::kTileBytes + Core::kScratchBytes;
}

template <class Core>
__global__ void __launch_bounds__(kThreads, Core::kBlocks) exact_kernel(Problem p, Parts parts) {
  char* const query_tile = shared_memory();
  char* const key_tiles = query_tile + Core::kQueryBytes;
  char* const value_tiles = key_tiles + Core::kStages * Core::kTileBytes;
  char* const scratch = value_tiles + Core::kStages * Core::kTileBytes;
  const int split = blockIdx.x % parts.splits;
  const TileWork<Core> work(p, blockIdx.x / parts.splits);
  const int first = work.first_tile(), tiles = work.end_tile() - first;
  const int begin = first + static_cast<int>(static_cast<int64_t>(tiles) * split / parts.splits);
  const int end = first + static_cast<int>(static_cast<int64_t>(tiles) * (split + 1) / parts.splits);
  typename Core::Stream keys = work.stream(p.k, p.d, begin), values = work.stream(p.v, p.e, begin);
  const auto load = [&](int tile) {
    const int stage = tile % Core::kStages * Core::kTileBytes;
    keys.load(key_tiles + stage, p.t - tile * Core::kKeys);
    values.load(value_tiles + stage, p.t - tile * Core::kKeys);
  };

  ExactTile<Core> state(p, work);
  typename Core::Query query;
  work.load_query(p, query_tile);
  if (Core::kStages == 2 && begin < end) load(begin);
  Core::wait();
  __syncthreads();
  Core::take_query(query, query_tile);
  const bool idle = work.first_row + warp() * 16 * Core::kTall >= p.rows;  // helps with loads only
  for (int tile = begin; tile < end; ++tile) {
    if (Core::kStages == 1) load(tile);
    Core::wait();
    __syncthreads();
    if (Core::kStages == 2 && tile + 1 < end) load(tile + 1);
    const int stage = tile % Core::kStages * Core::kTileBytes;
    if (!idle) state.step(p, work, query, key_tiles + stage, value_tiles + stage, scratch, tile * Core::kKeys);
    if (Core::kStages == 1) __syncthreads();
  }
  state.store(p, work, parts, split);
}

// One warp per row: parts are weighed by their maxima.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(Problem p, Parts parts) {
  const int64_t all_rows = static_cast<int64_t>(p.b) * p.g * p.rows;
  const int64_t flat = static_cast<int64_t>(blockIdx.x) * kWarps + warp();
  if (flat >= all_rows) return;
  const bool plain = p.scale > 0.0f && p.softcap <= 0.0f && !p.bias.data;
  const float to_log2 = plain ? p.scale * kLog2e : kLog2e;
  float peak = -kInfinity, sum = 0.0f, out[kMaxWidth / 32] = {};
  for (int i = 0; i < parts.splits; ++i) peak = fmaxf(peak, parts.peak[i * all_rows + flat]);
  for (int i = 0; i < parts.splits; ++i) {
    const int64_t at = i * all_rows + flat;
    if (parts.peak[at] == -kInfinity) continue;
    const float weight = power_of_two((parts.peak[at] - peak) * to_log2);
    sum += weight * parts.sum[at];
#pragma unroll
    for (int n = 0; n < kMaxWidth / 32; ++n)
      if (n * 32 + lane() < p.e) out[n] += weight * parts.out[at * p.e + n * 32 + lane()];
  }
  const int head = static_cast<int>(flat / p.rows);
  const Row row = row_of(p, head % p.g, static_cast<int>(flat % p.rows));
  T* to = at<T>(p.out, head / p.g, row.head, row.i);
  if (p.mean && sum == 0.0f) return warp_mean(p, head / p.g, head % p.g, to);
#pragma unroll
  for (int n = 0; n < kMaxWidth / 32; ++n)
    if (n * 32 + lane() < p.e) to[n * 32 + lane()] = narrow<T>(sum > 0.0f ? out[n] / sum : 0.0f);
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_EXACT_CUH_
