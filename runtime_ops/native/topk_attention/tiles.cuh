// Tiles of q, k and v in shared memory and the two products on them: q kᵀ and weights · v. Two cores with
// one interface: tensor cores for 16-bit storage, fp32 arithmetic for everything else. A block has 4 warps.
#ifndef GRAFT_TOPK_ATTENTION_TILES_CUH_
#define GRAFT_TOPK_ATTENTION_TILES_CUH_

#include "problem.cuh"

namespace graft::gpu {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

// Tensor cores. Needs d and e in multiples of 8 and 16-byte aligned rows. A row of a tile is kDim numbers;
// its 16-byte chunks are permuted by the row number, which keeps ldmatrix free of bank conflicts.
template <class T_, int kDim_, int kTall_>
struct TensorCore {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kTall = kTall_;            // 16-row tiles per warp
  static constexpr int kRows = 16 * kTall * kWarps;
  static constexpr int kParts = kDim > 128 ? 1 : 2;
  static constexpr int kKeys = 32 * kParts;       // keys per tile
  static constexpr int kStages = 2;
  static constexpr int kBlocks = kDim == 64 && kTall == 1 ? 3 : 2;  // per multiprocessor: bounds the registers
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kTileBytes = kKeys * kDim * 2;
  static constexpr int kScratchBytes = 0;
  // Up to 128 wide, queries live in registers, and their place in shared memory is free for keys.
  static constexpr bool kQueryStays = kDim > 128;

  struct Query {
    uint32_t a[kQueryStays ? 1 : kTall][kQueryStays ? 1 : kDim / 16][4];
    const char* tile;
  };

  GRAFT_DEVICE static const char* chunk(const char* tile, int row, int at) {
    return tile + row * kDim * 2 + ((at ^ (row & 7)) * 16);
  }

  static constexpr int kChunks = kDim / 8, kStep = kThreads / kChunks;  // a thread copies every kStep-th row

  template <class Source>
  GRAFT_DEVICE static void load_query(char* tile, int width, const Source& row_at) {
    const int column = threadIdx.x % kChunks;
    for (int i = 0; i < kRows / kStep; ++i) {
      const int row = threadIdx.x / kChunks + i * kStep;
      copy_async(const_cast<char*>(chunk(tile, row, column)), row_at(row) + column * 8, column * 8 < width);
    }
  }

  // Where this thread reads in k or v: moves on with every tile, so that little arithmetic is left per copy.
  struct Stream {
    const T* from;
    int64_t stride;
    bool inside;
    GRAFT_DEVICE Stream(const T* rows, int64_t row_stride, int width)
        : from(rows + threadIdx.x / kChunks * row_stride + threadIdx.x % kChunks * 8),
          stride(row_stride),
          inside(static_cast<int>(threadIdx.x % kChunks * 8) < width) {}

    // The next tile, of which `left` rows exist; the rest are zeros.
    GRAFT_DEVICE void load(char* tile, int left) {
      const int row = threadIdx.x / kChunks;
#pragma unroll
      for (int i = 0; i < kKeys / kStep; ++i) {
        char* to = const_cast<char*>(chunk(tile, row + i * kStep, threadIdx.x % kChunks));
        copy_async(to, from + i * kStep * stride, inside && row + i * kStep < left);
      }
      from += kKeys * stride;
    }
  };
  GRAFT_DEVICE static void wait() { wait_copies(); }

  GRAFT_DEVICE static void query_part(uint32_t (&a)[4], const char* tile, int tall, int step) {
    const int row = (warp() * kTall + tall) * 16 + lane() % 16;
    load_matrices(a, chunk(tile, row, 2 * step + lane() / 16));
  }
  GRAFT_DEVICE static void take_query(Query& query, const char* tile) {
    query.tile = tile;
    if constexpr (!kQueryStays) {
#pragma unroll
      for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) query_part(query.a[tall][step], tile, tall, step);
    }
  }

  // acc = q kᵀ for keys 32 part ... 32 part + 31 of the tile.
  GRAFT_DEVICE static void products(float (&acc)[kTall][4][4], const Query& query, const char* keys, int part, int) {
#pragma unroll
    for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int x = 0; x < 4; ++x) acc[tall][n][x] = 0.0f;
    const int row = part * 32 + lane() / 16 * 8 + lane() % 8;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t b[2][4], a[4];
      load_matrices(b[0], chunk(keys, row, 2 * step + lane() / 8 % 2));
      load_matrices(b[1], chunk(keys, row + 16, 2 * step + lane() / 8 % 2));
#pragma unroll
      for (int tall = 0; tall < kTall; ++tall) {
        if constexpr (kQueryStays) {
          query_part(a, query.tile, tall, step);
        } else {
#pragma unroll
          for (int x = 0; x < 4; ++x) a[x] = query.a[tall][step][x];
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) multiply(T{}, acc[tall][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }

  // out += weights · v for the 32 values of one part.
  GRAFT_DEVICE static void accumulate(float (&out)[kTall][kDim / 8][4], const float (&weights)[kTall][4][4],
                                      const char* values, int part, int, char*) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t a[kTall][4];
#pragma unroll
      for (int tall = 0; tall < kTall; ++tall)
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const float* pair = &weights[tall][2 * step + x / 2][x % 2 * 2];
          a[tall][x] = pack(T{}, pair[0], pair[1]);
        }
      const int row = part * 32 + step * 16 + lane() % 16;
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, chunk(values, row, 2 * n + lane() / 16));
#pragma unroll
        for (int tall = 0; tall < kTall; ++tall) {
          multiply(T{}, out[tall][2 * n], a[tall], b[0], b[1]);
          multiply(T{}, out[tall][2 * n + 1], a[tall], b[2], b[3]);
        }
      }
    }
  }
};

// fp32 arithmetic for any storage, width and alignment; accumulators lie where TensorCore has them.
template <class T_, int kDim_>
struct PlainCore {
  using T = T_;
  static constexpr int kDim = kDim_, kTall = 1, kRows = 16 * kWarps, kParts = 1, kKeys = 32, kStages = 1;
  static constexpr int kBlocks = kDim == 64 ? 3 : 2;
  static constexpr int kPitch = kDim + 4;  // numbers; rows start 4 banks apart
  static constexpr int kQueryBytes = kRows * kPitch * 4, kTileBytes = kKeys * kPitch * 4;
  static constexpr int kWeightPitch = 36;
  static constexpr int kScratchBytes = kRows * kWeightPitch * 4;
  static constexpr bool kQueryStays = true;

  struct Query {
    const float* tile;
  };

  template <int rows, class Source>
  GRAFT_DEVICE static void load_rows(char* tile, int width, int left, const Source& row_at) {
    constexpr int kChunks = kDim / 8;
    for (int i = threadIdx.x; i < rows * kChunks; i += kThreads) {
      const int row = i / kChunks, column = i % kChunks * 8;
      float x[8];
      load_eight(x, row_at(row < left ? row : 0) + column, row < left ? width - column : 0);
      float4* to = reinterpret_cast<float4*>(reinterpret_cast<float*>(tile) + row * kPitch + column);
      to[0] = float4{x[0], x[1], x[2], x[3]};
      to[1] = float4{x[4], x[5], x[6], x[7]};
    }
  }

  template <class Source>
  GRAFT_DEVICE static void load_query(char* tile, int width, const Source& row_at) {
    load_rows<kRows>(tile, width, kRows, row_at);
  }

  struct Stream {
    const T* from;
    int64_t stride;
    int width;
    GRAFT_DEVICE Stream(const T* rows, int64_t row_stride, int row_width)
        : from(rows), stride(row_stride), width(row_width) {}
    GRAFT_DEVICE void load(char* tile, int left) {
      load_rows<kKeys>(tile, width, left, [&](int row) { return from + row * stride; });
      from += kKeys * stride;
    }
  };
  GRAFT_DEVICE static void wait() {}

  GRAFT_DEVICE static void take_query(Query& query, const char* tile) {
    query.tile = reinterpret_cast<const float*>(tile) + warp() * 16 * kPitch;
  }

  GRAFT_DEVICE static float4 four(const float* at) { return *reinterpret_cast<const float4*>(at); }
  GRAFT_DEVICE static void add_dot(float& sum, float4 x, float4 y) {
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
    sum = fmaf(x.z, y.z, sum);
    sum = fmaf(x.w, y.w, sum);
  }

  GRAFT_DEVICE static void products(float (&acc)[1][4][4], const Query& query, const char* keys, int, int d) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int x = 0; x < 4; ++x) acc[0][n][x] = 0.0f;
    const float* k = reinterpret_cast<const float*>(keys) + acc_column() * kPitch;
#pragma unroll 2
    for (int i = 0; i < d; i += 4) {
      const float4 q[2] = {four(query.tile + acc_row(0) * kPitch + i), four(query.tile + acc_row(1) * kPitch + i)};
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int x = 0; x < 4; ++x) add_dot(acc[0][n][x], q[x / 2], four(k + (8 * n + x % 2) * kPitch + i));
    }
  }

  // A row's weights lie in four lanes, and every lane needs all of them: they pass through shared memory.
  GRAFT_DEVICE static void accumulate(float (&out)[1][kDim / 8][4], const float (&weights)[1][4][4],
                                      const char* values, int, int e, char* scratch) {
    float* w = reinterpret_cast<float*>(scratch) + warp() * 16 * kWeightPitch;
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int x = 0; x < 4; ++x)
        w[acc_row(x / 2) * kWeightPitch + 8 * n + acc_column() + x % 2] = weights[0][n][x];
    __syncwarp();
    const float* v = reinterpret_cast<const float*>(values) + acc_column();
    for (int j = 0; j < kKeys; ++j) {
      const float w0 = w[acc_row(0) * kWeightPitch + j], w1 = w[acc_row(1) * kWeightPitch + j];
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        if (8 * n >= e) break;
        const float2 x = *reinterpret_cast<const float2*>(v + j * kPitch + 8 * n);
        out[0][n][0] = fmaf(w0, x.x, out[0][n][0]);
        out[0][n][1] = fmaf(w0, x.y, out[0][n][1]);
        out[0][n][2] = fmaf(w1, x.x, out[0][n][2]);
        out[0][n][3] = fmaf(w1, x.y, out[0][n][3]);
      }
    }
    __syncwarp();
  }
};

// Which tile of queries a block works on, and which keys any of its rows can see.
template <class Core>
struct TileWork {
  int b, key_head, first_row, last_limit, first_limit, first_start, last_start;

  GRAFT_DEVICE TileWork(const Problem& p, int64_t work) {
    const int tiles = (p.rows + Core::kRows - 1) / Core::kRows;
    const int tile = static_cast<int>(work % tiles);
    const int head = static_cast<int>(work / tiles);
    first_row = (p.causal ? tiles - 1 - tile : tile) * Core::kRows;  // the longest tiles go first
    b = head / p.g;
    key_head = head % p.g;
    first_limit = key_limit(p, b, row_of(p, key_head, first_row).i);
    last_limit = key_limit(p, b, row_of(p, key_head, first_row + Core::kRows - 1).i);
    first_start = key_start(p, b, row_of(p, key_head, first_row).i);
    last_start = key_start(p, b, row_of(p, key_head, first_row + Core::kRows - 1).i);
  }

  // Whether not every row sees every key of the tile that begins at key j, as far as places go.
  GRAFT_DEVICE bool cuts(int j) const { return j < last_start || j + Core::kKeys > first_limit; }
  GRAFT_DEVICE int first_tile() const { return first_start / Core::kKeys; }
  GRAFT_DEVICE int end_tile() const { return max(first_tile(), (last_limit + Core::kKeys - 1) / Core::kKeys); }

  GRAFT_DEVICE void load_query(const Problem& p, char* tile) const {
    using T = typename Core::T;
    Core::load_query(tile, p.d, [&](int r) {
      const Row row = row_of(p, key_head, first_row + r);
      return at<const T>(p.q, b, row.head, row.i);
    });
  }
  // Keys or values from tile `tile` on; x is k or v.
  GRAFT_DEVICE typename Core::Stream stream(const View& x, int width, int tile) const {
    return typename Core::Stream(at<const typename Core::T>(x, b, key_head, tile * Core::kKeys), x.stride[2], width);
  }
};

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_TILES_CUH_
