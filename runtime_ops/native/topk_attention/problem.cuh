// The arguments of one run as kernels see them, and the parts of the definition that all kernels share:
// which row is which query, which keys it sees, and how q.k becomes a score.
#ifndef GRAFT_TOPK_ATTENTION_PROBLEM_CUH_
#define GRAFT_TOPK_ATTENTION_PROBLEM_CUH_

#include <string.h>

#include "device.cuh"

namespace graft::gpu {

constexpr int kMaxWidth = 256;  // of d and e

// A tensor [b, heads, rows, width] whose last stride is 1 (bias: stride[3]).
struct View {
  char* data;
  int64_t stride[4];
};

// A key head is read by h / g query heads; their queries are cut into tiles together, so that every key is
// read once for all of them: row r of key head n is query r / group of head n * group + r % group.
struct Problem {
  View q, k, v, bias, out;
  const uint8_t* key_mask;
  const int64_t* past;
  int64_t mask_stride[2], past_stride;
  int b, h, g, s, t, d, e, group, rows;
  int top_k;  // 0: every key
  int causal, bias_dtype, mean;  // mean: what rows get that see no key, else 0
  int64_t window;
  float scale, softcap;
  float* saved_scores;  // [b h s top_k], or NULL
  int32_t* saved_keys;
};

struct Row {
  int head, i;
};

GRAFT_DEVICE Row row_of(const Problem& p, int key_head, int r) {
  r = min(r, p.rows - 1);  // rows past the end repeat the last one and are not stored
  const int i = r / p.group;
  return Row{key_head * p.group + (r - i * p.group), i};
}

GRAFT_DEVICE int64_t offset(const View& x, int b, int head, int i) {
  return b * x.stride[0] + head * x.stride[1] + i * x.stride[2];
}
template <class T>
GRAFT_DEVICE T* at(const View& x, int b, int head, int i) {
  return reinterpret_cast<T*>(x.data) + offset(x, b, head, i);
}
GRAFT_DEVICE int64_t flat_row(const Problem& p, int b, Row row) {
  return (static_cast<int64_t>(b) * p.h + row.head) * p.s + row.i;
}

constexpr int64_t kFar = int64_t{1} << 60;  // beyond it nothing changes, and up to it nothing overflows

// The place of query i among the keys.
GRAFT_DEVICE int64_t place_of(const Problem& p, int b, int i) {
  return i + (p.past ? max(-kFar, min(p.past[b * p.past_stride], kFar)) : 0);
}
GRAFT_DEVICE int key_at(const Problem& p, int64_t key) {
  return static_cast<int>(max(static_cast<int64_t>(0), min(key, static_cast<int64_t>(p.t))));
}
// Keys from here on are invisible to query i.
GRAFT_DEVICE int key_limit(const Problem& p, int b, int i) {
  if (p.causal) return key_at(p, place_of(p, b, i) + 1);
  return p.window ? key_at(p, place_of(p, b, i) + p.window) : p.t;
}
// So are those before this one.
GRAFT_DEVICE int key_start(const Problem& p, int b, int i) {
  return p.window ? key_at(p, place_of(p, b, i) - p.window + 1) : 0;
}

GRAFT_DEVICE bool key_shown(const Problem& p, int b, int j) {
  return !p.key_mask || (j < p.t && p.key_mask[b * p.mask_stride[0] + j * p.mask_stride[1]] != 0);
}
// Bit i: key j + i is shown by the mask. For all lanes together.
GRAFT_DEVICE uint32_t shown_keys(const Problem& p, int b, int j) {
  return p.key_mask ? __ballot_sync(kAll, key_shown(p, b, j + lane())) : kAll;
}

GRAFT_DEVICE float bias_at(const Problem& p, int64_t at) {
  if (p.bias_dtype == 1) return reinterpret_cast<const float*>(p.bias.data)[at];
  if (p.bias_dtype == 10) return widen(reinterpret_cast<const F16*>(p.bias.data)[at]);
  return widen(reinterpret_cast<const BF16*>(p.bias.data)[at]);
}

// The score of a visible key; bias is the offset of its row.
GRAFT_DEVICE float score_of(const Problem& p, float product, int64_t bias, int j) {
  float score = product * p.scale;
  if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
  if (p.bias.data) score += bias_at(p, bias + j * p.bias.stride[3]);
  return score;
}

// Where a lane's accumulators lie in a tile: the layout of mma.m16n8k16, which the fp32 tiles use as well.
// acc[n][x] belongs to row lane / 4 + 8 * (x / 2) and key 8 n + 2 (lane % 4) + x % 2.
GRAFT_DEVICE int acc_row(int half) { return lane() / 4 + 8 * half; }
GRAFT_DEVICE int acc_column() { return 2 * (lane() % 4); }

// What a lane knows of its two rows of a 16-row tile.
struct RowPair {
  int b, key_head, first_row;
  int start[2], limit[2];

  RowPair() = default;
  GRAFT_DEVICE RowPair(const Problem& p, int b_, int key_head_, int first_row_)
      : b(b_), key_head(key_head_), first_row(first_row_) {
    for (int half = 0; half < 2; ++half) {
      start[half] = key_start(p, b, row(p, half).i);
      limit[half] = key_limit(p, b, row(p, half).i);
    }
  }
  GRAFT_DEVICE Row row(const Problem& p, int half) const { return row_of(p, key_head, first_row + acc_row(half)); }
  GRAFT_DEVICE int64_t bias(const Problem& p, int half) const {
    if (!p.bias.data) return 0;
    const Row at = row(p, half);
    return offset(p.bias, b, at.head, at.i);
  }
};

// Products of 16 rows and 32 keys from j on become scores.
GRAFT_DEVICE void make_scores(const Problem& p, float (&acc)[4][4], const RowPair& rows, int j) {
  if (p.softcap <= 0.0f && !p.bias.data) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int x = 0; x < 4; ++x) acc[n][x] *= p.scale;
    return;
  }
  const int64_t bias[2] = {rows.bias(p, 0), rows.bias(p, 1)};
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int key = j + 8 * n + acc_column() + x % 2;
      if (key < rows.limit[x / 2]) acc[n][x] = score_of(p, acc[n][x], bias[x / 2], key);
    }
  }
}

// Invisible keys get -inf. `shown` holds the mask's bits of the 32 keys.
GRAFT_DEVICE void hide_keys(float (&acc)[4][4], const RowPair& rows, int j, uint32_t shown) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int key = 8 * n + acc_column() + x % 2;
      const bool seen = j + key >= rows.start[x / 2] && j + key < rows.limit[x / 2];
      if (!seen || !(shown >> key & 1)) acc[n][x] = -kInfinity;
    }
  }
}

// Eight numbers of a row, of which `left` exist; the rest are 0.
template <class T>
GRAFT_DEVICE void load_eight(float (&x)[8], const T* from, int left) {
  constexpr int kPerVector = 16 / sizeof(T);
  if (left >= 8 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < 8; i += kPerVector) {
      const uint4 raw = *reinterpret_cast<const uint4*>(from + i);
      T part[kPerVector];
      memcpy(part, &raw, sizeof(part));
#pragma unroll
      for (int n = 0; n < kPerVector; ++n) x[i + n] = widen(part[n]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = i < left ? widen(from[i]) : 0.0f;
}

template <class T>
GRAFT_DEVICE void store_eight(T* to, const float (&x)[8], int left) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) to[i] = narrow<T>(x[i]);
}

// Lanes that share a row of `width` numbers, eight each: a power of two.
GRAFT_DEVICE int lanes_per_row(int width) {
  int lanes = 1;
  while (lanes * 8 < width) lanes *= 2;
  return lanes;
}

// The mean of all values of a key head, by one warp; 0 where there are none. Sums of few are summed.
template <class T>
GRAFT_DEVICE void warp_mean(const Problem& p, int b, int key_head, T* out) {
  const int lanes = lanes_per_row(p.e), column = lane() % lanes * 8, rows = 32 / lanes, few = 64 * rows;
  const T* values = at<const T>(p.v, b, key_head, 0) + column;
  float sum[8] = {};
  for (int first = 0; first < p.t; first += few) {
    float part[8] = {};
    for (int i = first + lane() / lanes; i < min(first + few, p.t); i += rows) {
      float x[8];
      load_eight(x, values + i * p.v.stride[2], p.e - column);
#pragma unroll
      for (int c = 0; c < 8; ++c) part[c] += x[c];
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] += part[c];
  }
  for (int apart = lanes; apart < 32; apart *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] += __shfl_xor_sync(kAll, sum[c], apart);
#pragma unroll
  for (int c = 0; c < 8; ++c) sum[c] = p.t > 0 ? sum[c] / p.t : 0.0f;
  if (lane() < lanes) store_eight(out + column, sum, p.e - column);
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_PROBLEM_CUH_
