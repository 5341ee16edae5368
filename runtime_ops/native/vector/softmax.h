// Softmax over tiles of keys with a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022). Query rows lie in
// vector lanes; a Panel of them has o [e][width], max [width] and sum [width]. Internal linkage: see scalar.h.
#ifndef GRAFT_VECTOR_SOFTMAX_H_
#define GRAFT_VECTOR_SOFTMAX_H_

#include "math.h"

namespace graft {
namespace {

template <class V>
constexpr int64_t panel_width() { return V::panel * V::lanes; }

// Vectors that a panel of so many rows needs: the whole width, or a half or quarter of it.
template <class V>
inline int vectors_for(int64_t rows) {
  int vectors = V::panel;
  while (vectors > 1 && rows <= vectors / 2 * V::lanes) vectors /= 2;
  return vectors;
}

template <class V, class Function>
inline void for_scores(int64_t count, int64_t width, float* scores, Function function) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t x = 0; x < width; x += V::lanes) {
      float* at = scores + j * width + x;
      V::store(at, function(V::load(at), j, x));
    }
  }
}

constexpr float kSlack = 8.0f;  // by which a maximum may be too low: weights up to e^8 are as exact as those up to 1

// Brings what was summed so far to the new maximum, unless the one that it has still serves: most tiles raise it by
// little, and o is long.
template <class V, int RN, class Panel>
inline void raise_max(int64_t e, const typename V::F* high, Panel* a) {
  using F = typename V::F;
  constexpr int64_t width = RN * V::lanes;
  bool raised = false;
  for (int x = 0; x < RN; ++x) {
    raised = raised || V::any(V::gt(high[x], V::add(V::load(a->max + x * V::lanes), V::set1(kSlack))));
  }
  if (!raised) return;
  F factor[RN];
  for (int x = 0; x < RN; ++x) {
    const F old = V::load(a->max + x * V::lanes);
    // Where both are -inf there is nothing to scale, and inf - inf must not make a NaN.
    factor[x] = V::blend(V::eq(high[x], old), V::set1(1.0f), vexp<V>(V::sub(old, high[x])));
    V::store(a->max + x * V::lanes, high[x]);
    V::store(a->sum + x * V::lanes, V::mul(V::load(a->sum + x * V::lanes), factor[x]));
  }
  for (int64_t i = 0; i < e; ++i) {
    for (int x = 0; x < RN; ++x) {
      float* at = a->o + i * width + x * V::lanes;
      V::store(at, V::mul(V::load(at), factor[x]));
    }
  }
}

// Scores become exp(score - maximum so far, or a little less); sums follow.
template <class V, int RN, class Panel>
inline void exponentials(int64_t e, int64_t count, float* scores, Panel* a) {
  using F = typename V::F;
  constexpr int64_t width = RN * V::lanes;
  F high[RN], sum[RN];
  for (int x = 0; x < RN; ++x) high[x] = V::load(a->max + x * V::lanes), sum[x] = V::set1(0.0f);
  for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 8
    for (int x = 0; x < RN; ++x) high[x] = V::max(V::load(scores + j * width + x * V::lanes), high[x]);
  }
  raise_max<V, RN>(e, high, a);
  for (int x = 0; x < RN; ++x) {
    const F max = V::load(a->max + x * V::lanes);
    high[x] = V::blend(V::eq(max, V::set1(-kInf)), V::set1(0.0f), max);
  }
  for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 8
    for (int x = 0; x < RN; ++x) {
      float* at = scores + j * width + x * V::lanes;
      const F weight = vexp<V>(V::sub(V::load(at), high[x]));
      V::store(at, weight);
      sum[x] = V::add(sum[x], weight);
    }
  }
  for (int x = 0; x < RN; ++x) {
    float* at = a->sum + x * V::lanes;
    V::store(at, V::add(V::load(at), sum[x]));
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_SOFTMAX_H_
