// The k largest scores of a row, exactly: a threshold is found by halving an interval and counting in vectors.
// Internal linkage: see scalar.h.
#ifndef GRAFT_VECTOR_SELECT_H_
#define GRAFT_VECTOR_SELECT_H_

#include "math.h"

namespace graft {
namespace {

// One row's candidates. ids lie behind scores and hold int32 bits, which move through float vectors unchanged.
struct Candidates {
  float* scores;
  float* ids;
  int64_t count;
  float threshold;  // what comes from now on and does not exceed it cannot be among the k largest
};

struct Selection {
  int64_t k, capacity;
};

// Order-preserving integers, to halve an interval of floats in at most 32 steps whatever is in it.
inline int64_t to_order(float x) {
  const int32_t bits = static_cast<int32_t>(to_bits(x));
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}
inline float from_order(int64_t order) {
  const int32_t bits = static_cast<int32_t>(order);
  return from_bits(static_cast<uint32_t>(bits < 0 ? bits ^ 0x7fffffff : bits));
}

// The number before x; before either zero, one that is no denormal, which a session may have set to count as 0.
inline float below(float x) { return x == 0.0f ? -0x1p-126f : from_order(to_order(x) - 1); }

template <class V>
inline int64_t count_above(const float* scores, int64_t n, float level) {
  const typename V::F at = V::set1(level);
  int64_t above = 0;
  for (int64_t i = 0; i < n; i += V::lanes) above += V::count(V::gt(V::load(scores + i), at));
  return above;
}

// Buffers are read in whole vectors, so what lies behind the last score must never be chosen.
template <class V>
inline void pad(Candidates* c) {
  V::store(c->scores + c->count, V::set1(-kInf));
}

template <class V>
inline float highest(const Candidates& c) {
  typename V::F high = V::set1(-kInf);
  for (int64_t i = 0; i < c.count; i += V::lanes) high = V::max(V::load(c.scores + i), high);
  return V::reduce_max(high);
}

struct Cut {
  float level;
  int64_t above;
};

// A level with k .. k + slack scores above it; or, where ties forbid that, the k-th score itself, with fewer than k
// above it. Needs more than k + slack candidates. None lies below the threshold; a few may equal it, the first of many
// that did when it was found. Starts at `guess`, in growing steps.
template <class V>
inline Cut find_cut(const Candidates& c, int64_t k, int64_t slack, float guess = -kInf, float step = 0.0f) {
  const int64_t bottom = to_order(c.threshold) - 1, most_order = to_order(highest<V>(c));
  int64_t low = bottom, top = most_order, at = to_order(guess), above_top = 0;
  for (; top - low > 1; step *= 2.0f) {
    if (at <= low || at >= top) at = low + (top - low) / 2;
    const float level = from_order(at);
    const int64_t above = count_above<V>(c.scores, c.count, level);
    if (above >= k && above <= k + slack) return {level, above};
    if (above > k) low = at, at = top < most_order ? low : to_order(level + step);
    else top = at, above_top = above, at = low > bottom ? top : to_order(level - step);
  }
  return {from_order(top), above_top};
}

// Keeps the scores above `level`, and of those equal to it the first `ties`.
template <class V>
inline void keep_above(float level, int64_t ties, Candidates* c) {
  const typename V::F at = V::set1(level);
  int64_t kept = 0;
  for (int64_t i = 0; i < c->count; i += V::lanes) {
    const typename V::F score = V::load(c->scores + i), id = V::load(c->ids + i);
    const typename V::M above = V::gt(score, at);
    if (ties > 0) {
      for (int64_t x = i; x < least(i + V::lanes, c->count); ++x) {
        const float one = c->scores[x], its = c->ids[x];
        if (one > level || (one == level && ties-- > 0)) {
          c->scores[kept] = one;
          memcpy(c->ids + kept++, &its, sizeof its);
        }
      }
      continue;
    }
    V::compress(c->scores + kept, above, score);
    V::compress(c->ids + kept, above, id);
    kept += V::count(above);
  }
  c->count = kept;
  pad<V>(c);
}

// Cuts the buffer back. Left are at least the k largest; exactly k of them where slack is 0.
template <class V>
inline void cut_back(const Selection& s, int64_t slack, Candidates* c) {
  pad<V>(c);
  if (c->count <= s.k + slack) return;
  const Cut cut = find_cut<V>(*c, s.k, slack);
  c->threshold = cut.level;
  keep_above<V>(cut.level, most<int64_t>(0, s.k - cut.above), c);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_SELECT_H_
