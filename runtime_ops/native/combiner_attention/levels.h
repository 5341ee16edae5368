// The factorisation `logsparse` (Ren et al. 2021, section 4.2): query i reads itself and, for every set bit of i, one
// block of as many keys before it; mirrored for the keys after it.
#ifndef GRAFT_COMBINER_ATTENTION_LEVELS_H_
#define GRAFT_COMBINER_ATTENTION_LEVELS_H_

#include "head.h"

namespace graft {
namespace {

// The tokens from one end, and their blocks of 2, 4, 8 … as regions, level after level.
struct Side {
  const Combiner* p;
  Rows q, k, v;
  const float* bias;
  int64_t bias_step;
  Regions regions;
  float* scores;
};

inline Side side_of(const Head& x, bool mirrored) {
  const Combiner& p = *x.p;
  const int64_t end = mirrored ? p.t - 1 : 0, sign = mirrored ? -1 : 1, skip = mirrored ? p.t : 0;
  Side s;
  s.p = &p;
  s.q = {x.q.at(end), sign * x.q.step};
  s.k = {x.k.at(end), sign * x.k.step};
  s.v = {x.v.at(end), sign * x.v.step};
  s.bias = x.bias == nullptr ? nullptr : x.bias + end, s.bias_step = sign;
  const Regions& all = x.regions;
  s.regions = {all.queries + skip * p.d, all.keys + skip * p.d, all.values + skip * p.e, all.size + skip,
               all.bias + skip};
  s.scores = x.scores;
  return s;
}

inline float bias_at(const Side& s, int64_t i) { return s.bias == nullptr ? 0.0f : s.bias[i * s.bias_step]; }

template <class V>
inline float dot(const float* a, const float* b, int64_t n) {
  typename V::F sum = V::set1(0.0f);
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) sum = V::fma(V::load(a + i), V::load(b + i), sum);
  float total = V::reduce_add(sum);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// Turns n logits into weights that sum to 1, or to 0 where all are hidden. Writes up to a vector's end.
template <class V>
inline void weigh(float* logits, int64_t n) {
  float high = -kInf;
  for (int64_t i = 0; i < n; ++i) high = logits[i] > high ? logits[i] : high;
  for (int64_t i = n; i < round_up(n, V::lanes); ++i) logits[i] = -kInf;
  const typename V::F peak = V::set1(high == -kInf ? 0.0f : high);
  typename V::F sum = V::set1(0.0f);
  for (int64_t i = 0; i < n; i += V::lanes) {
    const typename V::F one = vexp<V>(V::sub(V::load(logits + i), peak));
    V::store(logits + i, one);
    sum = V::add(sum, one);
  }
  const float total = V::reduce_add(sum), factor = total > 0.0f ? 1.0f / total : 0.0f;
  for (int64_t i = 0; i < n; ++i) logits[i] *= factor;
}

// to = the sum of n rows, each times its weight.
template <class V, class At>
inline void add_rows(const float* shares, int64_t n, int64_t width, At at, float* to) {
  using F = typename V::F;
  int64_t c = 0;
  for (; c + 4 * V::lanes <= width; c += 4 * V::lanes) {
    F sum[4] = {V::set1(0.0f), V::set1(0.0f), V::set1(0.0f), V::set1(0.0f)};
    for (int64_t i = 0; i < n; ++i) {
      const F share = V::set1(shares[i]);
      const float* row = at(i) + c;
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) sum[x] = V::fma(share, V::load(row + x * V::lanes), sum[x]);
    }
    for (int x = 0; x < 4; ++x) V::store(to + c + x * V::lanes, sum[x]);
  }
  for (; c < width; ++c) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) sum += shares[i] * at(i)[c];
    to[c] = sum;
  }
}

// Regions of blocks of two tokens, then of two blocks each.
inline void join_pair(const Side& s, int64_t region, int64_t first, bool tokens) {
  const Combiner& p = *s.p;
  float *key = s.regions.keys + region * p.d, *query = s.regions.queries + region * p.d;
  fill(key, p.d, nothing(p));
  fill(query, p.d, nothing(p));
  s.regions.size[region] = 0.0f;
  for (int64_t i = first; i < first + 2; ++i) {
    if (tokens && bias_at(s, i) != 0.0f) continue;
    join(p, key, tokens ? s.k.at(i) : s.regions.keys + i * p.d, key);
    join(p, query, tokens ? s.q.at(i) : s.regions.queries + i * p.d, query);
    s.regions.size[region] += tokens ? 1.0f : s.regions.size[i];
  }
}

// Returns how many regions there are.
inline int64_t pool_blocks(const Side& s) {
  int64_t below = 0, next = 0;
  for (int64_t count = s.p->t / 2; count > 0; count /= 2) {
    const bool tokens = next == 0;
    for (int64_t i = 0; i < count; ++i) join_pair(s, next + i, tokens ? 2 * i : below + 2 * i, tokens);
    below = next;
    next += count;
  }
  settle(*s.p, s.regions, next);
  return next;
}

template <class V>
inline void read_block(const Side& s, int64_t region, int64_t first, int64_t length) {
  const Combiner& p = *s.p;
  const float* query = s.regions.queries + region * p.d;
  for (int64_t j = 0; j < length; ++j) {
    const float bias = bias_at(s, first + j);
    s.scores[j] = bias == 0.0f ? dot<V>(query, s.k.at(first + j), p.d) : bias;
  }
  weigh<V>(s.scores, length);
  add_rows<V>(s.scores, length, p.e, [&](int64_t j) { return s.v.at(first + j); }, s.regions.values + region * p.e);
}

template <class V>
inline void summarise_blocks(const Side& s) {
  pool_blocks(s);
  int64_t region = 0;
  for (int64_t length = 2; length <= s.p->t; length *= 2) {
    for (int64_t i = 0; i < s.p->t / length; ++i) read_block<V>(s, region++, i * length, length);
  }
}

// What a query reads.
struct Terms {
  float logits[kTerms];
  const float* values[kTerms];
  int64_t count;
};

// The blocks before place i of a side.
template <class V>
inline void add_terms(const Side& s, const float* query, int64_t i, Terms* to) {
  const Combiner& p = *s.p;
  if (i & 1) {
    const float bias = bias_at(s, i - 1);
    to->logits[to->count] = bias == 0.0f ? dot<V>(query, s.k.at(i - 1), p.d) : bias;
    to->values[to->count++] = s.v.at(i - 1);
  }
  int64_t level = 0;  // where its regions begin
  for (int bit = 1; i >> bit; level += p.t >> bit++) {
    if (!(i >> bit & 1)) continue;
    const int64_t region = level + (i >> bit) - 1;
    const float bias = s.regions.bias[region];
    to->logits[to->count] = bias == -kInf ? bias : dot<V>(query, s.regions.keys + region * p.d, p.d) + bias;
    to->values[to->count++] = s.regions.values + region * p.e;
  }
}

template <class V>
inline void logsparse(const Head& x) {
  const Combiner& p = *x.p;
  const bool both = !p.args.causal;
  const Side before = side_of(x, false), after = side_of(x, both);
  summarise_blocks<V>(before);
  if (both) summarise_blocks<V>(after);
  Terms terms;
  for (int64_t i = 0; i < p.t; ++i) {
    const float* query = x.q.at(i);
    const float bias = bias_at(before, i);
    terms.logits[0] = bias == 0.0f ? dot<V>(query, x.k.at(i), p.d) : bias;
    terms.values[0] = x.v.at(i), terms.count = 1;
    add_terms<V>(before, query, i, &terms);
    if (both) add_terms<V>(after, query, p.t - 1 - i, &terms);
    weigh<V>(terms.logits, terms.count);
    add_rows<V>(terms.logits, terms.count, p.e, [&](int64_t n) { return terms.values[n]; }, x.out + i * p.e);
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_LEVELS_H_
