// What is known of regions of tokens, and how it is joined of tokens and of other regions.
#ifndef GRAFT_COMBINER_ATTENTION_REGIONS_H_
#define GRAFT_COMBINER_ATTENTION_REGIONS_H_

#include <initializer_list>

#include "operands.h"

namespace graft {
namespace {

// Of every region: its pooled query and key [d], the value [e] that its keys give together, how many keys it has, and
// what is added to its logit, -inf where it has none.
struct Regions {
  float *queries, *keys, *values, *size, *bias;
};

inline Regions cut_regions(const Combiner& p, int64_t count, Arena* arena) {
  Regions x;
  x.queries = arena->take<float>(count * p.d);
  x.keys = arena->take<float>(count * p.d);
  x.values = arena->take<float>(count * p.e);
  x.size = arena->take<float>(count);
  x.bias = arena->take<float>(count);
  return x;
}

// How pooled features are joined: sums are divided by the number of keys at the end.
template <class V>
inline void join(const Combiner& p, const float* a, const float* b, float* to) {
  int64_t c = 0;
  for (; c + V::lanes <= p.d; c += V::lanes) {
    const typename V::F x = V::load(a + c), y = V::load(b + c);
    V::store(to + c, p.mean ? V::add(x, y) : V::max(x, y));
  }
  for (; c < p.d; ++c) to[c] = p.mean ? a[c] + b[c] : a[c] > b[c] ? a[c] : b[c];
}

inline float nothing(const Combiner& p) { return p.mean ? 0.0f : -kInf; }  // what joining starts from

inline void clear_region(const Combiner& p, const Regions& x, int64_t i) {
  fill(x.keys + i * p.d, p.d, nothing(p));
  fill(x.queries + i * p.d, p.d, nothing(p));
  x.size[i] = 0.0f;
}

// A region becomes what the region `from` is, itself or another, joined with a token.
template <class V>
inline void join_token(const Combiner& p, const float* query, const float* key, int64_t from, int64_t region,
                       const Regions& x) {
  join<V>(p, x.queries + from * p.d, query, x.queries + region * p.d);
  join<V>(p, x.keys + from * p.d, key, x.keys + region * p.d);
  x.size[region] = x.size[from] + 1.0f;
}

// Joins another region to one.
template <class V>
inline void join_region(const Combiner& p, int64_t other, int64_t region, const Regions& x) {
  join<V>(p, x.queries + region * p.d, x.queries + other * p.d, x.queries + region * p.d);
  join<V>(p, x.keys + region * p.d, x.keys + other * p.d, x.keys + region * p.d);
  x.size[region] += x.size[other];
}

// From joined features to those of a region.
template <class V>
inline void settle(const Combiner& p, int64_t i, const Regions& x) {
  const float size = x.size[i];
  for (float* features : {x.queries + i * p.d, x.keys + i * p.d}) {
    if (size == 0.0f) fill(features, p.d, 0.0f);
    else if (p.mean) multiply<V>(features, p.d, 1.0f / size);
  }
  x.bias[i] = size == 0.0f ? -kInf : p.counted ? __builtin_logf(size) : 0.0f;
}

template <class V>
inline void settle_all(const Combiner& p, int64_t count, const Regions& x) {
  for (int64_t i = 0; i < count; ++i) settle<V>(p, i, x);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_REGIONS_H_
