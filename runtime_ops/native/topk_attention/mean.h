// What rows get that see no key: zeros, or the mean of all values, which is worked out once for a block, if at all.
#ifndef GRAFT_MEAN_H_
#define GRAFT_MEAN_H_

#include "block.h"

namespace graft {
namespace {

// The mean of the values of the block's key head.
struct Mean {
  float* space;  // [3][e], rounded up
  bool known;    // it is the first row
};

inline int64_t mean_stride(const Problem& p) { return round_up(p.e, 16); }

inline float* take_mean(const Problem& p, Arena* arena) {
  return arena->take<float>(p.args.no_key == GRAFT_NO_KEY_MEAN ? 3 * mean_stride(p) : 0);
}

template <class V>
inline void add_all(int64_t n, const float* from, float* to) {
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) V::store(to + i, V::add(V::load(to + i), V::load(from + i)));
  for (; i < n; ++i) to[i] += from[i];
}

// Sums of few values are summed, so that long sequences lose no digits.
template <class V>
inline void find_mean(const Problem& p, const Block& k, Mean* mean) {
  constexpr int64_t few = 64;
  const graft_tensor& v = p.args.v;
  float *sum = mean->space, *part = sum + mean_stride(p), *row = part + mean_stride(p);
  for (int64_t i = 0; i < p.e; ++i) sum[i] = 0.0f;
  for (int64_t first = 0; first < p.t; first += few) {
    for (int64_t i = 0; i < p.e; ++i) part[i] = 0.0f;
    for (int64_t j = first; j < least(first + few, p.t); ++j) {
      widen_row<V>(element(head_data(k, v), v.dtype, j * v.strides[2]), v.dtype, p.e, row);
      add_all<V>(p.e, row, part);
    }
    add_all<V>(p.e, part, sum);
  }
  if (p.t > 0) scale_all<V>(1.0f / static_cast<float>(p.t), p.e, sum);
  mean->known = true;
}

template <class V>
inline void store_unseeing(const Problem& p, const Block& k, int64_t r, Mean* mean) {
  const float zero = 0.0f;
  if (p.args.no_key != GRAFT_NO_KEY_MEAN) return store_row(p, k, r, &zero, 0, 0.0f);
  if (!mean->known) find_mean<V>(p, k, mean);
  store_row(p, k, r, mean->space, 1, 1.0f);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_MEAN_H_
