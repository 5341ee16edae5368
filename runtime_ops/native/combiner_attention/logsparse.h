// The two readings of `logsparse`: regions read their tokens, then queries read tokens and regions. Both are done for a
// panel of neighbours at a time, which have most of what they read in common.
#ifndef GRAFT_COMBINER_ATTENTION_LOGSPARSE_H_
#define GRAFT_COMBINER_ATTENTION_LOGSPARSE_H_

#include "levels.h"

namespace graft {
namespace {

// Copied, because rows that lie a whole token apart fall on few sets of the cache.
template <class V>
inline void add_token(const Combiner& p, const Side& s, int64_t place, Keys* to) {
  const int64_t j = to->count++;
  read_row<V>(s.k, place, p.d, to->keys + j * p.d);
  read_row<V>(s.v, place, p.e, to->values + j * p.e);
  to->bias[j] = bias_at(s, place);
}

template <class V>
inline void add_region(const Combiner& p, const Side& s, int64_t region, Keys* to) {
  const int64_t j = to->count++;
  widen_row<V>(s.regions.keys + region * p.d, GRAFT_F32, p.d, to->keys + j * p.d);
  widen_row<V>(s.regions.values + region * p.e, GRAFT_F32, p.e, to->values + j * p.e);
  to->bias[j] = s.regions.bias[region];
}

// Regions that end in a block of keys. The last one may begin before it, and is then read_above's, which comes later.
template <class V>
inline void read_inside(const Side& s, int64_t block, Levels* x) {
  using F = typename V::F;
  constexpr int64_t width = block_width<V>();
  const Combiner& p = *x->p;
  const int64_t first = block * width + 1, rows = least(width, s.count - first);
  float begin[width], end[width];
  for (int64_t r = 0; r < width; ++r) {
    end[r] = static_cast<float>(2 * (r + 1));
    begin[r] = end[r] - static_cast<float>(2 * low(r + 1));
  }
  pack_transposed<V>(s.regions.queries + first * p.d, p.d, rows, p.d, x->panel.q, width);
  clear_panel(width, p.e, &x->panel);
  const F hidden = V::set1(-kInf);
  read_keys<V>(*x, [&](F score, int64_t j, int64_t r) {
    const F place = V::set1(static_cast<float>(j)), begun = V::blend(V::gt(V::load(begin + r), place), hidden, score);
    return V::blend(V::gt(V::load(end + r), place), begun, hidden);
  }, &x->panel);
  store_panel<V>(p.e, x->panel, rows, s.regions.values + first * p.e);
}

// The panel's query at `place` becomes that of a region.
template <class V>
inline void begin_region(const Combiner& p, const Regions& from, int64_t region, int64_t place, const Panel& a) {
  constexpr int64_t width = block_width<V>();
  for (int64_t c = 0; c < p.d; ++c) a.q[c * width + place] = from.queries[region * p.d + c];
  for (int64_t c = 0; c < p.e; ++c) a.o[c * width + place] = 0.0f;
  a.max[place] = -kInf, a.sum[place] = 0.0f;
}

template <class V>
inline void end_region(const Combiner& p, const Regions& to, int64_t region, int64_t place, const Panel& a) {
  constexpr int64_t width = block_width<V>();
  const float factor = a.sum[place] > 0.0f ? 1.0f / a.sum[place] : 0.0f;
  for (int64_t c = 0; c < p.e; ++c) to.values[region * p.e + c] = a.o[c * width + place] * factor;
}

// Regions of whole blocks of keys: at most one of every level, that is 1, 2, 4 … blocks long. What a level's place in
// the panel reads between two of its regions goes nowhere.
template <class V>
inline void read_above(const Side& s, int64_t block, int64_t level, Levels* x) {
  constexpr int64_t width = block_width<V>();
  const Combiner& p = *x->p;
  for (int64_t i = 0; i < width; ++i) {
    const int64_t length = int64_t{1} << (level + i), end = (block + length) * width;
    if (block % length != 0 || end >= s.count) break;
    if ((block & length) == 0) begin_region<V>(p, s.regions, end, i, x->above);
  }
  read_keys<V>(*x, [](typename V::F score, int64_t, int64_t) { return score; }, &x->above);
  const int64_t end = (block + 1) * width, place = __builtin_ctzll(static_cast<uint64_t>(block + 1)) - level;
  if (end < s.count && place >= 0 && place < width) end_region<V>(p, s.regions, end, place, x->above);
}

// What every region reads of its tokens. A panel has as many levels as it is wide: all, but for very long sequences.
template <class V>
inline void summarise_blocks(const Side& s, Levels* x) {
  constexpr int64_t width = block_width<V>();
  const Combiner& p = *x->p;
  pool_blocks<V>(*x, s);
  for (int64_t level = 0; level == 0 || width << level < s.count; level += width) {
    fill(x->above.q, p.d * width, 0.0f);
    clear_panel(width, p.e, &x->above);
    for (int64_t block = 0; block * width + 1 < s.count; ++block) {
      const int64_t first = 2 * width * block, end = least(first + 2 * width, p.t);
      x->keys.count = 0;
      for (int64_t place = first; place < end; ++place) add_token<V>(p, s, place, &x->keys);
      if (level == 0) read_inside<V>(s, block, x);
      if (width << level < s.count) read_above<V>(s, block, level, x);
    }
  }
}

// The blocks that a side's places from `place` on read; not those of one token among these places. Block n is seen from
// place n up to the end of the next block of its length.
template <class V>
inline void add_blocks(const Combiner& p, const Side& s, int64_t place, int64_t rows, bool mirrored, Keys* to) {
  const auto add = [&](int64_t n) {
    const int64_t first = n - place, last = first + low(n) - 1;
    to->first[to->count] = static_cast<float>(mirrored ? rows - 1 - last : first);
    to->last[to->count] = static_cast<float>(mirrored ? rows - 1 - first : last);
    if (n & 1) add_token<V>(p, s, n - 1, to);
    else add_region<V>(p, s, n / 2, to);
  };
  for (int64_t n = place; n > 0; n -= low(n)) add(n);
  for (int64_t n = round_up(place + 1, 2); n < place + rows; n += 2) add(n);
}

// Tokens: each is read by itself and, as a block of one token, by its neighbours on one side, on both or on none.
template <class V>
inline void add_tokens(const Combiner& p, const Side& s, int64_t place, int64_t rows, Keys* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const bool right = (place + r) % 2 == 0, left = !p.args.causal && (p.t - 1 - place - r) % 2 == 0;
    to->first[to->count] = static_cast<float>(r - left), to->last[to->count] = static_cast<float>(r + right);
    add_token<V>(p, s, place + r, to);
  }
}

// What the queries of some tokens read, where each key is seen by some of them.
template <class V>
inline void read_seen(const Levels& x, Panel* a) {
  using F = typename V::F;
  float places[block_width<V>()];
  for (int64_t r = 0; r < block_width<V>(); ++r) places[r] = static_cast<float>(r);
  const F hidden = V::set1(-kInf);
  read_keys<V>(x, [&](F score, int64_t j, int64_t r) {
    const F place = V::load(places + r), begun = V::blend(V::gt(V::set1(x.keys.first[j]), place), hidden, score);
    return V::blend(V::gt(place, V::set1(x.keys.last[j])), hidden, begun);
  }, a);
}

template <class V>
inline void read_queries(int64_t first, int64_t rows, Levels* x) {
  constexpr int64_t width = block_width<V>();
  const Combiner& p = *x->p;
  x->keys.count = 0;
  add_tokens<V>(p, x->before, first, rows, &x->keys);
  add_blocks<V>(p, x->before, first, rows, false, &x->keys);
  if (!p.args.causal) add_blocks<V>(p, x->after, p.t - first - rows, rows, true, &x->keys);
  for (int64_t r = 0; r < rows; ++r) read_query<V>(p, x->before.q, first + r, x->rows + r * p.d);
  pack_transposed<V>(x->rows, p.d, rows, p.d, x->panel.q, width);
  clear_panel(width, p.e, &x->panel);
  read_seen<V>(*x, &x->panel);
  store_panel<V>(p.e, x->panel, rows, x->rows);
  for (int64_t r = 0; r < rows; ++r) store_row(x->out, first + r, p.e, x->rows + r * p.e);
}

template <class V>
inline void logsparse(Levels* x) {
  constexpr int64_t width = block_width<V>();
  const int64_t t = x->p->t;
  summarise_blocks<V>(x->before, x);
  if (!x->p->args.causal) summarise_blocks<V>(x->after, x);
  for (int64_t first = 0; first < t; first += width) read_queries<V>(first, least(width, t - first), x);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_LOGSPARSE_H_
