// The k largest scores of a row, exactly, out of a stream: candidates above a running threshold are collected
// side by side, and whenever the buffer is full it is cut back and the threshold rises.
#ifndef GRAFT_SELECT_H_
#define GRAFT_SELECT_H_

#include "../vector/select.h"
#include "block.h"

namespace graft {
namespace {

// Room for a threshold to pay: with less slack, cuts come too often; with more, the buffer leaves the cache. A cut
// leaves at most 1.5 k, so that a tile always fits.
inline int64_t capacity_for(int64_t k) { return round_up(2 * k + 256, 64); }

// Adds the scores above the threshold out of one panel's width, and makes room for the next tile.
template <class V>
inline void offer(const Selection& s, const float* scores, const int32_t* ids, Candidates* c) {
  const typename V::F threshold = V::set1(c->threshold);
  const float* id = reinterpret_cast<const float*>(ids);
  typename V::M above[V::panel];
  int found = 0;
#pragma GCC unroll 8
  for (int x = 0; x < V::panel; ++x) {
    above[x] = V::gt(V::load(scores + x * V::lanes), threshold);
    found += V::count(above[x]);
  }
  if (found == 0) return;  // one branch a panel: one a vector would be mispredicted too often
#pragma GCC unroll 8
  for (int x = 0; x < V::panel; ++x) {
    V::compress(c->scores + c->count, above[x], V::load(scores + x * V::lanes));
    V::compress(c->ids + c->count, above[x], V::load(id + x * V::lanes));
    c->count += V::count(above[x]);
  }
  if (c->count + kTile > s.capacity) cut_back<V>(s, s.k / 2, c);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_SELECT_H_
