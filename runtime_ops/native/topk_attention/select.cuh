// Exact selection of the k largest of n scores, by halving an interval of thresholds: fp32 numbers, read as
// ordered integers, are halved at most 32 times. One implementation for a warp and one for a block.
#ifndef GRAFT_TOPK_ATTENTION_SELECT_CUH_
#define GRAFT_TOPK_ATTENTION_SELECT_CUH_

#include "problem.cuh"

namespace graft::gpu {

// Integers in the order of the numbers; no NaN may come in.
GRAFT_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
GRAFT_DEVICE float from_ordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Keep every score above the threshold, and the first `ties` of those that equal it.
struct Cut {
  float threshold;
  int ties;
};

// At least k of n scores are >= low, none is above high. Keeps between k and k + slack scores; exactly k where
// equal scores forbid that. count(x) tells how many scores are >= x, to all threads alike.
template <class Count>
GRAFT_DEVICE Cut find_cut(uint32_t low, uint32_t high, int n, int k, int slack, const Count& count) {
  int at_low = n, at_high = 0;
  ++high;  // fewer than k are >= high
  while (at_low > k + slack && high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const int c = count(from_ordered(middle));
    if (c >= k) {
      low = middle;
      at_low = c;
    } else {
      high = middle;
      at_high = c;
    }
  }
  return Cut{from_ordered(low), at_low <= k + slack ? n : k - at_high};
}

// The candidates of one row: scores[i] belongs to key keys[i].
struct Candidates {
  float* scores;
  int* keys;
};

// For a whole warp, as the rest of this file. n > k.
GRAFT_DEVICE Cut warp_cut(const float* scores, int n, int k, int slack) {
  uint32_t low = kAll, high = 0;
  for (int i = lane(); i < n; i += 32) {
    low = min(low, ordered(scores[i]));
    high = max(high, ordered(scores[i]));
  }
  low = __reduce_min_sync(kAll, low);
  high = __reduce_max_sync(kAll, high);
  return find_cut(low, high, n, k, slack, [&](float x) {
    unsigned c = 0;
#pragma unroll 4
    for (int i = lane(); i < n; i += 32) c += scores[i] >= x;
    return static_cast<int>(__reduce_add_sync(kAll, c));
  });
}

// Moves what the cut keeps to the front, in order; returns how many.
GRAFT_DEVICE int compact(Candidates row, int n, Cut cut) {
  int kept = 0, ties = 0;
  const uint32_t before = (1u << lane()) - 1;
  for (int i = 0; i < n; i += 32) {
    const bool valid = i + lane() < n;
    const float score = valid ? row.scores[i + lane()] : -kInfinity;
    const int key = valid ? row.keys[i + lane()] : 0;
    const uint32_t tied = __ballot_sync(kAll, valid && score == cut.threshold);
    const bool tie = (tied >> lane() & 1) && ties + __popc(tied & before) < cut.ties;
    const bool keep = valid && (score > cut.threshold || tie);
    const uint32_t keeps = __ballot_sync(kAll, keep);
    const int to = kept + __popc(keeps & before);
    if (keep) {
      row.scores[to] = score;
      row.keys[to] = key;
    }
    kept += __popc(keeps);
    ties += __popc(tied);
  }
  __syncwarp();
  return kept;
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_SELECT_CUH_
