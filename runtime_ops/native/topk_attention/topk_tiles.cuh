// Attention over the k best keys of every query, for many queries: tiles of scores as in exact.cuh, but each
// row keeps a bounded list of candidates above a running threshold. A full list is cut back to about its k
// best, which raises the threshold, so that a row of t keys in no special order appends some k (1 + ln(t / k))
// candidates. At the end each list is cut to exactly k and its values are gathered: no other row of v is read.
#ifndef GRAFT_TOPK_ATTENTION_TOPK_TILES_CUH_
#define GRAFT_TOPK_ATTENTION_TOPK_TILES_CUH_

#include "select.cuh"
#include "tiles.cuh"

namespace graft::gpu {

// Candidate lists of a block: [64 rows][pitch] scores, then as many keys; in shared memory unless global is given.
struct Lists {
  char* global;
  int capacity, pitch;
  GRAFT_DEVICE Candidates row(char* block, int r) const {
    float* scores = reinterpret_cast<float*>(block) + static_cast<int64_t>(r) * pitch;
    return Candidates{scores, reinterpret_cast<int*>(scores + static_cast<int64_t>(16 * kWarps) * pitch)};
  }
};

constexpr int kOffered = 32;  // most candidates that one row can be offered at a time

// Softmax over the candidates and the weighted sum of their values, by one warp. Scores turn into weights.
template <class T>
GRAFT_DEVICE void warp_gather(const Problem& p, int b, int key_head, Candidates row, int n, T* out) {
  if (p.mean && n == 0) return warp_mean(p, b, key_head, out);
  float peak = -kInfinity, sum = 0.0f;
  for (int i = lane(); i < n; i += 32) peak = fmaxf(peak, row.scores[i]);
  peak = warp_max(peak);
  for (int i = lane(); i < n; i += 32) {
    row.scores[i] = power_of_two((row.scores[i] - peak) * kLog2e);
    sum += row.scores[i];
  }
  sum = warp_sum(sum);
  __syncwarp();

  const int lanes = lanes_per_row(p.e), column = lane() % lanes * 8, rows = 32 / lanes;
  const T* values = at<const T>(p.v, b, key_head, 0) + column;
  float acc[8] = {};
#pragma unroll 4
  for (int i = lane() / lanes; i < n; i += rows) {
    float x[8];
    load_eight(x, values + row.keys[i] * p.v.stride[2], p.e - column);
#pragma unroll
    for (int c = 0; c < 8; ++c) acc[c] = fmaf(row.scores[i], x[c], acc[c]);
  }
  for (int apart = lanes; apart < 32; apart *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) acc[c] += __shfl_xor_sync(kAll, acc[c], apart);
#pragma unroll
  for (int c = 0; c < 8; ++c) acc[c] = n > 0 ? acc[c] / sum : 0.0f;
  if (lane() < lanes) store_eight(out + column, acc, p.e - column);
}

// The lists of one warp's 16 rows. The four lanes that hold a row's scores hold its threshold and length too.
template <class Core>
struct TopkTile {
  float threshold[2];
  int length[2];
  Candidates mine[2];
  RowPair rows;
  Lists lists;
  char* block;

  GRAFT_DEVICE TopkTile(const Problem& p, const TileWork<Core>& work, const Lists& all, char* at_block)
      : lists(all), block(at_block) {
    rows = RowPair(p, work.b, work.key_head, work.first_row + warp() * 16);
    for (int half = 0; half < 2; ++half) {
      threshold[half] = -kInfinity;
      length[half] = 0;
      mine[half] = lists.row(block, warp() * 16 + acc_row(half));
    }
  }

  GRAFT_DEVICE int length_of(int r) const {  // r is the same in all lanes
    return __shfl_sync(kAll, r < 8 ? length[0] : length[1], r % 8 * 4);
  }

  GRAFT_DEVICE void cut_row(int r, int k, int slack) {
    const Candidates row = lists.row(block, warp() * 16 + r);
    const int n = length_of(r);
    __syncwarp();
    const Cut cut = warp_cut(row.scores, n, k, slack);
    const int kept = compact(row, n, cut);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (r != acc_row(half)) continue;
      threshold[half] = cut.threshold;
      length[half] = kept;
    }
  }

  // Cuts every row of this half whose list cannot take what is offered; says whether there was one.
  GRAFT_DEVICE bool make_room(int half, int offered, int k) {
    uint32_t full = __ballot_sync(kAll, length[half] + offered > lists.capacity) & 0x11111111u;
    const bool any = full != 0;
    const int slack = (lists.capacity - k - kOffered) / 2;
    for (; full != 0; full &= full - 1) cut_row(8 * half + (__ffs(full) - 1) / 4, k, slack);
    return any;
  }

  GRAFT_DEVICE int wanted(const float (&acc)[4][4], int half) const {
    int count = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int x = 2 * half; x < 2 * half + 2; ++x) count += acc[n][x] > threshold[half];
    return count;
  }

  GRAFT_DEVICE void append(const float (&acc)[4][4], int half, int to, int j) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int x = 2 * half; x < 2 * half + 2; ++x) {
        if (!(acc[n][x] > threshold[half])) continue;
        mine[half].scores[to] = acc[n][x];
        mine[half].keys[to] = j + 8 * n + acc_column() + x % 2;
        ++to;
      }
  }

  // Both halves travel in one integer: the second in the high 16 bits.
  GRAFT_DEVICE void offer(const float (&acc)[4][4], int j, int k) {
    int count, total, ahead;
    for (bool retry = true; retry;) {
      count = wanted(acc, 0) | wanted(acc, 1) << 16;
      if (!__any_sync(kAll, count != 0)) return;
      const int pair = count + __shfl_xor_sync(kAll, count, 1);
      const int other = __shfl_xor_sync(kAll, pair, 2);
      total = pair + other;
      ahead = (lane() & 1 ? pair - count : 0) + (lane() & 2 ? other : 0);
      const bool cut0 = make_room(0, total & 0xffff, k), cut1 = make_room(1, total >> 16, k);
      retry = cut0 || cut1;
    }
    append(acc, 0, length[0] + (ahead & 0xffff), j);
    append(acc, 1, length[1] + (ahead >> 16), j);
    length[0] += total & 0xffff;
    length[1] += total >> 16;
  }

  GRAFT_DEVICE void step(const Problem& p, const TileWork<Core>& work, const typename Core::Query& query,
                         const char* keys, int j) {
    const bool hide = p.key_mask || work.cuts(j);
#pragma unroll 1
    for (int part = 0; part < Core::kParts; ++part) {
      float acc[1][4][4];
      Core::products(acc, query, keys, part, p.d);
      const int from = j + 32 * part;
      make_scores(p, acc[0], rows, from);
      if (hide) hide_keys(acc[0], rows, from, shown_keys(p, work.b, from));
      offer(acc[0], from, p.top_k);
    }
  }

  GRAFT_DEVICE void save(const Problem& p, Candidates row, int n, int64_t flat) const {
    if (!p.saved_scores) return;
    for (int i = lane(); i < p.top_k; i += 32) {
      p.saved_scores[flat * p.top_k + i] = i < n ? row.scores[i] : -kInfinity;
      p.saved_keys[flat * p.top_k + i] = i < n ? row.keys[i] : -1;
    }
    __syncwarp();
  }

  GRAFT_DEVICE void finish(const Problem& p, const TileWork<Core>& work) {
    for (int r = 0; r < 16; ++r) {
      const int flat_r = work.first_row + warp() * 16 + r;
      if (flat_r >= p.rows) return;
      if (length_of(r) > p.top_k) cut_row(r, p.top_k, 0);
      const int n = length_of(r);
      __syncwarp();
      const Row row = row_of(p, work.key_head, flat_r);
      const Candidates list = lists.row(block, warp() * 16 + r);
      save(p, list, n, flat_row(p, work.b, row));
      warp_gather(p, work.b, work.key_head, list, n, at<typename Core::T>(p.out, work.b, row.head, row.i));
    }
  }
};

template <class Core>
GRAFT_ANYWHERE size_t topk_tile_bytes() {  // without the lists
  return Core::kQueryStays ? Core::kQueryBytes + Core::kStages * Core::kTileBytes
                           : (Core::kQueryBytes > Core::kStages * Core::kTileBytes ? Core::kQueryBytes
                                                                                   : Core::kStages * Core::kTileBytes);
}

// kShared says where the lists are: the compiler must know to address them cheaply.
template <class Core, bool kShared>
__global__ void __launch_bounds__(kThreads, Core::kBlocks) topk_kernel(Problem p, Lists lists, int64_t works) {
  static_assert(Core::kTall == 1, "a warp keeps the lists of 16 rows");
  char* const query_tile = shared_memory();
  char* const key_tiles = query_tile + (Core::kQueryStays ? Core::kQueryBytes : 0);
  const int64_t list_bytes = static_cast<int64_t>(16 * kWarps) * lists.pitch * 8;
  char* const block = kShared ? shared_memory() + topk_tile_bytes<Core>() : lists.global + blockIdx.x * list_bytes;
  for (int64_t i = blockIdx.x; i < works; i += gridDim.x) {
    const TileWork<Core> work(p, i);
    const int first = work.first_tile(), end = work.end_tile();
    const auto stage = [&](int tile) { return key_tiles + tile % Core::kStages * Core::kTileBytes; };
    typename Core::Stream keys = work.stream(p.k, p.d, first);
    const auto load = [&](int tile) { keys.load(stage(tile), p.t - tile * Core::kKeys); };

    TopkTile<Core> state(p, work, lists, block);
    typename Core::Query query;
    __syncthreads();  // the last round's tiles are still being read
    work.load_query(p, query_tile);
    Core::wait();
    __syncthreads();
    Core::take_query(query, query_tile);
    __syncthreads();  // the query's place may become a key tile
    if (Core::kStages == 2 && first < end) load(first);
    const bool idle = work.first_row + warp() * 16 >= p.rows;  // helps with loads only
    for (int tile = first; tile < end; ++tile) {
      if (Core::kStages == 1) load(tile);
      Core::wait();
      __syncthreads();
      if (Core::kStages == 2 && tile + 1 < end) load(tile + 1);
      if (!idle) state.step(p, work, query, stage(tile), tile * Core::kKeys);
      if (Core::kStages == 1) __syncthreads();
    }
    state.finish(p, work);
  }
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_TOPK_TILES_CUH_
