// Attention over every visible key, in tiles with a running maximum (Milakov and Gimelshein 2018; Dao et al.
// 2022). Query rows lie in vector lanes and keys are broadcast: maxima and sums stay in their lane, neither K nor
// V needs packing, and leaving out a masked key costs nothing.
#ifndef GRAFT_EXACT_H_
#define GRAFT_EXACT_H_

#include "bound.h"
#include "mean.h"
#include "../vector/softmax.h"

namespace graft {
namespace {

// Rows that share a vector register file's width. Matrices are [d, key or e][width].
struct Panel {
  int64_t first, rows;
  Sights all;
  float *q, *o, *max, *sum;
  Sight* sights;
};

struct ExactScratch {
  float *rows, *k, *v, *scores, *bias, *mean;
  Tile* tile;
  Panel* panels;
};

struct ExactJob {
  const Problem* p;
  Workspaces* spaces;
  const float* key_norms;  // per (b, g), only where key_bias_wide
  int64_t block_rows;
  int64_t first;  // block
};

// Keys and values lie in the same place.
inline bool one_table(const Problem& p) {
  const graft_tensor &k = p.args.k, &v = p.args.v;
  bool same = k.data == v.data && p.d == p.e;
  for (int i = 0; i < 3; ++i) same = same && k.strides[i] == v.strides[i];
  return same;
}

// A line further apart than they are long, rows of 2^n numbers do not share one set of the cache.
inline int64_t spaced(int64_t length) { return length + kLine; }

template <class V>
inline ExactScratch cut_exact(const Problem& p, int64_t block_rows, Arena* arena) {
  constexpr int64_t width = panel_width<V>();
  const int64_t panels = ceil_div(block_rows, width);
  ExactScratch x;
  x.rows = arena->take<float>(most(block_rows * p.d, most(width * kTile, V::lanes * spaced(p.e))));
  x.k = arena->take<float>(kTile * p.d);
  x.v = arena->take<float>(one_table(p) ? 0 : kTile * p.e);
  x.scores = arena->take<float>(kTile * width);
  x.bias = arena->take<float>(p.row_bias ? kTile * width : 0);
  x.mean = take_mean(p, arena);
  x.tile = arena->take<Tile>(1);
  x.panels = arena->take<Panel>(panels);
  return x;
}

template <class V>
inline void cut_panels(const Problem& p, int64_t count, bool begin, Arena* arena, Panel* panels) {
  constexpr int64_t width = panel_width<V>();
  for (int64_t i = 0; i < count; ++i) {
    Panel a;
    a.q = arena->take<float>(width * p.d);
    a.o = arena->take<float>(width * p.e);
    a.max = arena->take<float>(width);
    a.sum = arena->take<float>(width);
    a.sights = arena->take<Sight>(width);
    if (begin) panels[i] = a;
  }
}

template <class V>
inline void begin_panel(const Problem& p, const Block& k, int64_t index, const float* queries, Panel* a) {
  constexpr int64_t full = panel_width<V>();
  a->first = index * full;
  a->rows = least(full, k.rows - a->first);
  a->all = no_sights(p);
  const int64_t width = vectors_for<V>(a->rows) * V::lanes;
  pack_transposed<V>(queries + a->first * p.d, p.d, a->rows, p.d, a->q, width);
  memset(a->o, 0, static_cast<size_t>(p.e * width) * sizeof(float));
  for (int64_t r = 0; r < width; ++r) {
    a->max[r] = -kInf;
    a->sum[r] = 0.0f;
    a->sights[r] = sight_of(p, k, a->first + least(r, a->rows - 1));
    include(a->sights[r], &a->all);
  }
}

template <class V>
inline typename V::F cap_score(typename V::F score, float softcap) {
  return V::mul(V::set1(softcap), vtanh<V>(V::div(score, V::set1(softcap))));
}

// Hides the keys that lie outside a lane's sight: in one pass those behind it, in another those before it.
template <class V>
inline void hide_unseen(const Tile& tile, const Panel& a, int64_t width, float* scores) {
  using F = typename V::F;
  float bound[V::panel * V::lanes];
  if (tile.ids[tile.count - 1] > a.all.last.least) {
    for (int64_t r = 0; r < width; ++r) bound[r] = static_cast<float>(keys_before(tile, a.sights[r].last + 1));
    for_scores<V>(tile.count, width, scores, [&](F s, int64_t j, int64_t r) {
      return V::blend(V::gt(V::load(bound + r), V::set1(static_cast<float>(j))), s, V::set1(-kInf));
    });
  }
  if (tile.ids[0] < a.all.first.most) {
    for (int64_t r = 0; r < width; ++r) bound[r] = static_cast<float>(keys_before(tile, a.sights[r].first));
    for_scores<V>(tile.count, width, scores, [&](F s, int64_t j, int64_t r) {
      return V::blend(V::gt(V::load(bound + r), V::set1(static_cast<float>(j))), V::set1(-kInf), s);
    });
  }
}

// Softcap, biases and what causality and window hide, each in its own pass and only where it applies.
template <class V>
inline void adjust(const Problem& p, const Tile& tile, const Panel& a, int64_t width, bool biased,
                   const ExactScratch& x) {
  using F = typename V::F;
  if (p.args.softcap != 0.0f) {
    for_scores<V>(tile.count, width, x.scores, [&](F s, int64_t, int64_t) { return cap_score<V>(s, p.args.softcap); });
  }
  if (biased) {
    for_scores<V>(tile.count, width, x.scores,
                  [&](F s, int64_t j, int64_t) { return V::add(s, V::set1(tile.bias[j])); });
  }
  if (p.row_bias) {
    for_scores<V>(tile.count, width, x.scores,
                  [&](F s, int64_t j, int64_t r) { return V::add(s, V::load(x.bias + j * width + r)); });
  }
  hide_unseen<V>(tile, a, width, x.scores);
}

// The panel's part of a bias that varies along s, keys by rows. False if it hides the whole tile.
template <class V>
inline bool load_bias(const Problem& p, const Block& k, const Panel& a, int64_t width, const ExactScratch& x) {
  float high = -kInf;
  for (int64_t r = 0; r < a.rows; ++r) {
    float* row = x.rows + r * kTile;
    load_row_bias<V>(p, k, *x.tile, a.first + r, 0, x.tile->count, row);
    for (int64_t j = 0; j < x.tile->count; ++j) high = row[j] <= high ? high : row[j];
  }
  if (high == -kInf) return false;
  pack_transposed<V>(x.rows, kTile, a.rows, x.tile->count, x.bias, width);
  return true;
}

template <class V, int RN>
inline void visit_panel(const Problem& p, const Block& k, Rows keys, Rows values, bool biased,
                        const ExactScratch& x, Panel* a) {
  const Tile& tile = *x.tile;
  if (tile.ids[0] > a->all.last.most || tile.ids[tile.count - 1] < a->all.first.least) return;
  if (p.row_bias && !load_bias<V>(p, k, *a, RN * V::lanes, x)) return;
  product<V, RN, false>(tile.count, keys.data, keys.stride, 1, a->q, p.d, x.scores);
  adjust<V>(p, tile, *a, RN * V::lanes, biased, x);
  exponentials<V, RN>(p.e, tile.count, x.scores, a);
  product<V, RN, true>(p.e, values.data, 1, values.stride, x.scores, tile.count, a->o);
}

// Chooses the instance of visit_panel for the panel's width.
template <class V, int RN = V::panel>
inline void visit(const Problem& p, const Block& k, Rows keys, Rows values, bool biased, const ExactScratch& x,
                  Panel* a) {
  if constexpr (RN > 1) {
    if (vectors_for<V>(a->rows) < RN) return visit<V, RN / 2>(p, k, keys, values, biased, x, a);
  }
  visit_panel<V, RN>(p, k, keys, values, biased, x, a);
}

// Rows leave the panel by as many as one transpose gives.
template <class V>
inline void end_panel(const Problem& p, const Block& k, const Panel& a, float* rows, Mean* mean) {
  const int64_t width = vectors_for<V>(a.rows) * V::lanes, stride = spaced(p.e);
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t lane = r % V::lanes;
    float* row = rows + lane * stride;
    if (lane == 0) unpack_transposed<V>(a.o + r, width, least<int64_t>(V::lanes, a.rows - r), p.e, rows, stride);
    if (a.sum[r] == 0.0f) store_unseeing<V>(p, k, a.first + r, mean);
    else store_adjacent<V>(p, k, a.first + r, row, a.sum[r] > 0.0f ? 1.0f / a.sum[r] : 0.0f);
  }
}

template <class V>
inline void exact_block(const ExactJob& job, const Block& k, void* space) {
  const Problem& p = *job.p;
  Arena arena(space);
  const ExactScratch x = cut_exact<V>(p, job.block_rows, &arena);
  const int64_t panels = ceil_div(k.rows, panel_width<V>());
  cut_panels<V>(p, panels, true, &arena, x.panels);
  load_queries<V>(p, k, x.rows);
  float bound = 0.0f;
  if (p.key_bias_wide) bound = score_bound<V>(p, k, x.rows, job.key_norms);
  for (int64_t i = 0; i < panels; ++i) begin_panel<V>(p, k, i, x.rows, &x.panels[i]);
  for (Walk walk = walk_keys(p, k, bound); next_tile(&walk, x.tile);) {
    const Rows keys = tile_rows<V>(k, p.args.k, *x.tile, p.d, x.k);
    const Rows values = one_table(p) ? keys : tile_rows<V>(k, p.args.v, *x.tile, p.e, x.v);
    for (int64_t i = 0; i < panels; ++i) visit<V>(p, k, keys, values, walk.bias != nullptr, x, &x.panels[i]);
  }
  Mean mean{x.mean, false};
  for (int64_t i = 0; i < panels; ++i) end_panel<V>(p, k, x.panels[i], x.rows, &mean);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_EXACT_H_
