// The blocks of `logsparse` (Ren et al. 2021, section 4.2): query i reads itself and, for every set bit of i, one block
// of as many keys before it; mirrored for the keys after it.
//
// A block has the number of the place where it ends: block n is the low(n) keys before place n, as in Fenwick's trees
// (1994), and query i reads the blocks i, i - low(i) and so on down to 0. A block of one key is a token; region m is
// block 2m. So neighbours in memory are neighbours in the sequence, and nothing is made that no query reads.
#ifndef GRAFT_COMBINER_ATTENTION_LEVELS_H_
#define GRAFT_COMBINER_ATTENTION_LEVELS_H_

#include "regions.h"

namespace graft {
namespace {

// The lowest set bit.
inline int64_t low(int64_t n) { return n & -n; }

// The tokens from one end, and the regions 1 … count - 1 that are read from places further on.
struct Side {
  Operand q, k, v;
  const float* bias;
  int64_t bias_step, count;
  Regions regions;
};

inline int64_t side_regions(const Combiner& p) { return (p.t + 1) / 2; }

// Keys that a panel reads, row after row, with their values, what is added to their scores, -inf where hidden, and the
// first and the last query of the panel that sees them.
struct Keys {
  float *keys, *values, *bias, *first, *last;
  int64_t count;
};

// Few vectors, because many of a panel's queries do not see a given key.
template <class V>
constexpr int block_vectors() { return least(V::panel, most(1, 16 / V::lanes)); }
template <class V>
constexpr int64_t block_width() { return block_vectors<V>() * V::lanes; }

// A panel reads two keys for each of its regions, or its own tokens and, on both sides, the regions that end among them
// and one block for every bit of a place.
template <class V>
constexpr int64_t most_keys() { return 2 * block_width<V>() + 64; }

// What one task of `logsparse` works on: one query head.
struct Levels {
  const Combiner* p;
  Operand out;
  const float* bias;   // by token; NULL: none is hidden
  Side before, after;
  Panel panel, above;  // above: of regions of whole blocks, one of every level
  Keys keys;
  float *scores, *rows, *mask;
};

template <class V>
inline Levels cut_levels(const Combiner& p, Arena* arena) {
  constexpr int64_t width = block_width<V>(), keys = most_keys<V>();
  Levels x{};
  x.p = &p;
  x.before.count = x.after.count = side_regions(p);
  x.before.regions = cut_regions(p, side_regions(p), arena);
  x.after.regions = cut_regions(p, p.args.causal ? 0 : side_regions(p), arena);
  x.panel = cut_panel(p, width, arena);
  x.above = cut_panel(p, width, arena);
  x.keys.keys = arena->take<float>(keys * p.d);
  x.keys.values = arena->take<float>(keys * p.e);
  for (float** one : {&x.keys.bias, &x.keys.first, &x.keys.last}) *one = arena->take<float>(keys);
  x.scores = arena->take<float>(keys * width);
  x.rows = arena->take<float>(width * most(p.d, p.e));
  x.mask = arena->take<float>(p.args.key_mask.data != nullptr ? p.t : 0);
  return x;
}

inline Operand backwards(const Operand& x, int64_t t) { return {x.at(t - 1), x.dtype, -x.step}; }

inline void load_levels(int64_t b, int64_t head, Levels* x) {
  const Combiner& p = *x->p;
  const int64_t shared = shared_head(p, head);
  Side &before = x->before, &after = x->after;
  x->out = operand(p.args.out, b, head);
  x->bias = load_bias(p, b, x->mask);
  before.q = operand(p.args.q, b, head), after.q = backwards(before.q, p.t);
  before.k = operand(p.args.k, b, shared), after.k = backwards(before.k, p.t);
  before.v = operand(p.args.v, b, shared), after.v = backwards(before.v, p.t);
  before.bias = x->bias, before.bias_step = 1;
  after.bias = x->bias == nullptr ? nullptr : x->bias + p.t - 1, after.bias_step = -1;
}

inline float bias_at(const Side& s, int64_t place) { return s.bias == nullptr ? 0.0f : s.bias[place * s.bias_step]; }

template <class V>
inline void pool_token(const Levels& x, const Side& s, int64_t place, int64_t region) {
  const Combiner& p = *x.p;
  float *query = x.rows, *key = x.rows + p.d;
  if (bias_at(s, place) != 0.0f) return;
  read_query<V>(p, s.q, place, query);
  read_row<V>(s.k, place, p.d, key);
  join_token<V>(p, query, key, region, region, s.regions);
}

// A region is joined of its last two tokens and of the regions before these, of 2, 4, 8 … tokens. None of them is
// needed again; what is left over at the end is what a place behind the last region would read.
template <class V>
inline void pool_blocks(const Levels& x, const Side& s) {
  const Combiner& p = *x.p;
  for (int64_t m = 1; m < s.count; ++m) {
    clear_region(p, s.regions, m);
    pool_token<V>(x, s, 2 * m - 2, m);
    pool_token<V>(x, s, 2 * m - 1, m);
    for (int64_t below = 1; below < low(m); below *= 2) {
      join_region<V>(p, m - below, m, s.regions);
      settle<V>(p, m - below, s.regions);
    }
  }
  for (int64_t m = s.count - 1; m > 0; m -= low(m)) settle<V>(p, m, s.regions);
}

// `hide` takes a vector of scores, the key, and the first of these queries' places in the panel.
template <class V, class Hide>
inline void read_keys(const Levels& x, Hide hide, Panel* a) {
  constexpr int RN = block_vectors<V>();
  const Combiner& p = *x.p;
  const Keys& from = x.keys;
  product<V, RN, false>(from.count, from.keys, p.d, 1, a->q, p.d, x.scores);
  add_bias<V>(from.bias, 1, from.count, block_width<V>(), x.scores);
  for_scores<V>(from.count, block_width<V>(), x.scores, hide);
  exponentials<V, RN>(p.e, from.count, x.scores, a);
  product<V, RN, true>(p.e, from.values, 1, p.e, x.scores, from.count, a->o);
}

// Finishes the softmax, and stores the panel's columns as rows.
template <class V>
inline void store_panel(int64_t e, const Panel& a, int64_t rows, float* to) {
  constexpr int64_t width = block_width<V>();
  const typename V::F zero = V::set1(0.0f), one = V::set1(1.0f);
  for (int64_t r = 0; r < width; r += V::lanes) {
    const typename V::F sum = V::load(a.sum + r);
    V::store(a.sum + r, V::blend(V::gt(sum, zero), V::div(one, sum), zero));
  }
  for_scores<V>(e, width, a.o, [&](typename V::F o, int64_t, int64_t r) { return V::mul(o, V::load(a.sum + r)); });
  unpack_transposed<V>(a.o, width, rows, e, to, e);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_LEVELS_H_
