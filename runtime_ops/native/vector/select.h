// The k largest scores of a row, exactly: a threshold is looked for in an interval, by counting in vectors.
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

// Order-preserving integers, so that an interval of floats can be halved until nothing is left of it, whatever is in it.
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

constexpr int kLevels = 3;  // counted at a time: a search waits for few counts, each of which reads all numbers

// A level, and how many numbers lie above it.
struct Count {
  int64_t level, above;
};

// Where to look: around `level`, `step` apart.
struct Guess {
  int64_t level, step;
};

// The next levels to look at: where the line between two counts has k; now and then quarters, which need no luck.
inline Guess next_guess(Count low, Count top, int64_t k, int tries) {
  const int64_t width = top.level - low.level;
  if (tries % 4 == 3 || low.above <= top.above) return {low.level + width / 2, most<int64_t>(1, width / 4)};
  const double share = static_cast<double>(low.above - k) / static_cast<double>(low.above - top.above);
  const int64_t ahead = static_cast<int64_t>(share * static_cast<double>(width));
  return {low.level + ahead, most<int64_t>(1, width / most<int64_t>(4, low.above - top.above))};
}

// Looks for a level with k .. k + slack numbers above it, where more lie above `low` and fewer than k above `top`;
// where ties forbid that, finds the lowest with fewer than k. above(levels, counts) counts for kLevels ascending ones.
template <class Above>
inline Count search_level(Above above, int64_t k, int64_t slack, Count low, Count top, Guess guess) {
  for (int tries = 0; top.level - low.level > 1; ++tries) {
    int64_t levels[kLevels], counts[kLevels];
    for (int x = 0; x < kLevels; ++x) {
      const int64_t level = guess.level + (x - kLevels / 2) * guess.step;
      levels[x] = most(low.level + 1, least(level, top.level - 1));
    }
    above(levels, counts);
    for (int x = 0; x < kLevels; ++x) {
      if (counts[x] >= k && counts[x] <= k + slack) return {levels[x], counts[x]};
      if (counts[x] > k) {
        low = {levels[x], counts[x]};
        continue;
      }
      top = {levels[x], counts[x]};
      break;
    }
    guess = next_guess(low, top, k + slack / 2, tries + 1);
  }
  return top;
}

template <class V>
inline void count_above(const float* scores, int64_t n, const int64_t* levels, int64_t* counts) {
  typename V::F at[kLevels];
  for (int x = 0; x < kLevels; ++x) at[x] = V::set1(from_order(levels[x])), counts[x] = 0;
  for (int64_t i = 0; i < n; i += V::lanes) {
    const typename V::F score = V::load(scores + i);
    for (int x = 0; x < kLevels; ++x) counts[x] += V::count(V::gt(score, at[x]));
  }
}

struct Cut {
  float level;
  int64_t above;
};

// A level with k .. k + slack scores above it; or, where ties forbid that, the k-th score itself, with fewer than k
// above it. Needs more than k + slack candidates. None lies below the threshold; a few may equal it, the first of many
// that did when it was found. `guess` is where to look first, in steps of `step`, if that is known.
template <class V>
inline Cut find_cut(const Candidates& c, int64_t k, int64_t slack, float guess = kInf, float step = 0.0f) {
  const auto above = [&](const int64_t* levels, int64_t* counts) { count_above<V>(c.scores, c.count, levels, counts); };
  const Count low{to_order(c.threshold) - 1, c.count}, top{to_order(highest<V>(c)), 0};
  Guess first = next_guess(low, top, k, 3);
  if (guess < kInf) first = {to_order(guess), to_order(guess + step) - to_order(guess)};
  const Count found = search_level(above, k, slack, low, top, first);
  return {from_order(found.level), found.above};
}

// Keeps the candidates for whose scores stays(a vector of them) is set.
template <class V, class Stays>
inline void keep_where(Stays stays, Candidates* c) {
  int64_t kept = 0;
  for (int64_t i = 0; i < c->count; i += V::lanes) {
    const typename V::F score = V::load(c->scores + i), id = V::load(c->ids + i);
    const typename V::M some = stays(score);
    V::compress(c->scores + kept, some, score);
    V::compress(c->ids + kept, some, id);
    kept += V::count(some);
  }
  c->count = kept;
  pad<V>(c);
}

// Keeps the scores above `level`, and of those equal to it the first `ties`.
template <class V>
inline void keep_above(float level, int64_t ties, Candidates* c) {
  if (ties <= 0) return keep_where<V>([&](typename V::F score) { return V::gt(score, V::set1(level)); }, c);
  int64_t kept = 0;
  for (int64_t i = 0; i < c->count; ++i) {
    const float score = c->scores[i], id = c->ids[i];
    if (score > level || (score == level && ties-- > 0)) {
      c->scores[kept] = score;
      memcpy(c->ids + kept++, &id, sizeof id);
    }
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
