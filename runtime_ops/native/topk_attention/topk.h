// Top-k attention: scores of a block of rows tile by tile, each row's k best kept by select.h, then a softmax over
// the survivors and k rows of V. Here keys lie in vector lanes, so that a row's scores are adjacent.
#ifndef GRAFT_TOPK_H_
#define GRAFT_TOPK_H_

#include "exact.h"
#include "remainder.h"
#include "select.h"

namespace graft {
namespace {

struct TopkScratch {
  float *queries, *k, *packed, *scores, *bias, *out, *pool, *mean;
  Sight* sights;
  Tile* tile;
  Candidates* rows;
  Rest rest;
};

struct TopkJob {
  const Problem* p;
  Workspaces* spaces;
  const float* key_norms;
  int64_t block_rows;
  Selection selection;
  BlockSums sums{nullptr, nullptr};  // only where there is a remainder
  int64_t first = 0;  // block
};

// As many rows as share a packed tile of keys well, while their candidates stay within a core's cache, and their scores
// too where they are kept.
inline int64_t topk_rows(const Problem& p, const Selection& s) {
  const int64_t kept = p.args.remainder == GRAFT_REMAINDER_NONE ? 0 : p.t;
  const int64_t fit = least(49152 / s.capacity, 131072 / most<int64_t>(kept, 1));
  return least(p.rows, most<int64_t>(12, least<int64_t>(96, fit)));
}

// Floats between one row's candidates and the next: scores and ids, each with room for a vector behind the last.
inline int64_t pool_stride(const Selection& s) { return 2 * (s.capacity + 64); }

template <class V>
inline TopkScratch cut_topk(const Problem& p, const Selection& s, int64_t rows, Arena* arena) {
  TopkScratch x;
  x.queries = arena->take<float>(rows * p.d);
  x.k = arena->take<float>(kTile * p.d);
  x.packed = arena->take<float>(panel_width<V>() * p.d);
  x.scores = arena->take<float>(rows * panel_width<V>());
  x.bias = arena->take<float>(kTile + V::lanes);
  x.out = arena->take<float>(p.e);
  x.pool = arena->take<float>(rows * pool_stride(s));
  x.mean = take_mean(p, arena);
  x.sights = arena->take<Sight>(rows);
  x.tile = arena->take<Tile>(1);
  x.rows = arena->take<Candidates>(rows);
  x.rest = cut_rest(p, rows, arena);
  return x;
}

inline void begin_rows(const Problem& p, const Block& k, const Selection& s, const TopkScratch& x) {
  for (int64_t r = 0; r < k.rows; ++r) {
    float* scores = x.pool + r * pool_stride(s);
    x.rows[r] = {scores, scores + s.capacity + 64, 0, -kInf};
    x.sights[r] = sight_of(p, k, r);
  }
  begin_rest(p, k.rows, x.rest);
}

// Softcap and biases of one row's `n` scores, which belong to the tile's keys from `first` on; row_bias begins there
// too. Lanes past the tile's last key get -inf from its bias.
template <class V>
inline void adjust_row(const Problem& p, const Tile& tile, int64_t first, int64_t n, const float* row_bias,
                       float* scores) {
  for (int64_t x = 0; x < n; x += V::lanes) {
    typename V::F score = V::load(scores + x);
    if (p.args.softcap != 0.0f) score = cap_score<V>(score, p.args.softcap);
    if (row_bias != nullptr) score = V::add(score, V::load(row_bias + x));
    V::store(scores + x, V::add(score, V::load(tile.bias + first + x)));
  }
}

// Scores of all rows against `width` keys of the tile, from `first` on.
template <class V>
inline void score_keys(const Problem& p, const Block& k, Rows keys, int64_t first, const TopkScratch& x) {
  constexpr int64_t width = panel_width<V>();
  const int64_t count = least(width, x.tile->count - first);
  pack_transposed<V>(keys.data + first * keys.stride, keys.stride, count, p.d, x.packed, width);
  product<V, V::panel, false>(k.rows, x.queries, p.d, 1, x.packed, p.d, x.scores);
}

template <class V>
inline void offer_tile(const TopkJob& job, const Block& k, const TopkScratch& x) {
  const Problem& p = *job.p;
  const Tile& tile = *x.tile;
  constexpr int64_t width = panel_width<V>();
  const Rows keys = tile_rows<V>(k, p.args.k, tile, p.d, x.k);
  const bool rest = p.args.remainder != GRAFT_REMAINDER_NONE;
  for (int64_t first = 0; first < tile.count; first += width) {
    score_keys<V>(p, k, keys, first, x);
    for (int64_t r = 0; r < k.rows; ++r) {
      const int64_t n = least(width, keys_before(tile, x.sights[r].last + 1) - first);
      const int64_t before = most<int64_t>(0, keys_before(tile, x.sights[r].first) - first);
      if (n <= before) continue;
      float* scores = x.scores + r * width;
      if (p.row_bias) load_row_bias<V>(p, k, tile, r, first, n, x.bias);
      adjust_row<V>(p, tile, first, n, p.row_bias ? x.bias : nullptr, scores);
      for (int64_t j = 0; j < before; ++j) scores[j] = -kInf;
      for (int64_t j = n; j < width; ++j) scores[j] = -kInf;
      offer<V>(job.selection, scores, tile.ids + first, &x.rows[r]);
      if (rest) keep_scores(tile, first, before, n, scores, x.rest.scores + r * rest_stride(p));
    }
  }
}

// Scores become exp(score - maximum); returns their sum.
template <class V>
inline float weigh(Candidates* c) {
  const typename V::F high = V::set1(highest<V>(*c));
  typename V::F sum = V::set1(0.0f);
  for (int64_t i = 0; i < c->count; i += V::lanes) {
    const typename V::F weight = vexp<V>(V::sub(V::load(c->scores + i), high));
    V::store(c->scores + i, weight);
    sum = V::add(sum, weight);
  }
  return V::reduce_add(sum);
}

constexpr int64_t kMixAhead = 12;

// sum += the i-th survivor's weight * its value, for RN vectors from `first` on. Rows are anywhere in memory, so they
// are asked for ahead.
template <class V, int RN, int32_t Dtype>
inline void mix_one(const Candidates& c, const void* values, int64_t stride, int64_t first, int64_t i,
                    typename V::F* sum) {
  const typename V::F weight = V::set1(c.scores[i]);
  const void* row = element(values, Dtype, id_at(c, i) * stride + first);
  const void* next = element(values, Dtype, id_at(c, i + kMixAhead) * stride + first);
#pragma GCC unroll 8
  for (int x = 0; x < RN; ++x) __builtin_prefetch(element(next, Dtype, x * V::lanes));
#pragma GCC unroll 8
  for (int x = 0; x < RN; ++x) sum[x] = V::fma(weight, widen<V>(row, Dtype, x * V::lanes), sum[x]);
}

// out[first ..] = sum of weight * value over the survivors. Sums of even and of odd ones wait for each other only once.
template <class V, int RN, int32_t Dtype>
inline void mix_as(const Candidates& c, const void* values, const graft_tensor& v, int64_t first, float* out) {
  typename V::F even[RN], odd[RN];
#pragma GCC unroll 8
  for (int x = 0; x < RN; ++x) even[x] = odd[x] = V::set1(0.0f);
  int64_t i = 0;
  for (; i + 2 <= c.count; i += 2) {
    mix_one<V, RN, Dtype>(c, values, v.strides[2], first, i, even);
    mix_one<V, RN, Dtype>(c, values, v.strides[2], first, i + 1, odd);
  }
  if (i < c.count) mix_one<V, RN, Dtype>(c, values, v.strides[2], first, i, even);
#pragma GCC unroll 8
  for (int x = 0; x < RN; ++x) V::store(out + first + x * V::lanes, V::add(even[x], odd[x]));
}

template <class V, int RN>
inline void mix(const Candidates& c, const void* values, const graft_tensor& v, int64_t first, float* out) {
  if (v.dtype == GRAFT_F32) mix_as<V, RN, GRAFT_F32>(c, values, v, first, out);
  if (v.dtype == GRAFT_F16) mix_as<V, RN, GRAFT_F16>(c, values, v, first, out);
  if (v.dtype == GRAFT_BF16) mix_as<V, RN, GRAFT_BF16>(c, values, v, first, out);
}

// The same for their whole width e.
template <class V>
inline void mix_values(const Candidates& c, const void* values, const graft_tensor& v, int64_t e, float* out) {
  int64_t i = 0;
  for (; i + 4 * V::lanes <= e; i += 4 * V::lanes) mix<V, 4>(c, values, v, i, out);
  for (; i + V::lanes <= e; i += V::lanes) mix<V, 1>(c, values, v, i, out);
  for (; i < e; ++i) mix<Scalar, 1>(c, values, v, i, out);
}

// Behind the last id, as many more as `mix` looks ahead: here the last one again.
inline void repeat_last(Candidates* c) {
  const float last = c->count > 0 ? c->ids[c->count - 1] : 0.0f;
  for (int64_t i = 0; i < kMixAhead; ++i) c->ids[c->count + i] = last;
}

// The row's output, from its survivors.
template <class V>
inline void write_row(const Problem& p, const Block& k, int64_t r, Candidates* c, float* out, Mean* mean) {
  if (c->count == 0) return store_unseeing<V>(p, k, r, mean);
  const float sum = weigh<V>(c);
  mix_values<V>(*c, head_data(k, p.args.v), p.args.v, p.e, out);
  store_adjacent<V>(p, k, r, out, sum > 0.0f ? 1.0f / sum : 0.0f);
}

// The same where the other keys keep their mass.
template <class V>
inline void write_whole_row(const TopkJob& job, const Block& k, int64_t r, const Candidates& best,
                            const TopkScratch& s) {
  const Problem& p = *job.p;
  const int64_t n = blocks_of(p), sums = sums_of(p, k);
  Rest x = s.rest;
  x.scores += r * rest_stride(p);
  list_chosen(p, best, place_of(p, k, r), &x);
  const float high = highest<V>(best);
  measure_blocks<V>(n, high, x);
  pad<V>(&x.list);
  float sum = weigh<V>(&x.list);
  sum += find_levels(p, x);
  const int64_t chosen = x.list.count;
  list_blocks(p, job.sums.sizes + sums * n, high, &x);
  for (int64_t i = 0; i < chosen; ++i) x.list.scores[i] += x.level[id_at(x.list, i) / kBlockKeys];
  repeat_last(&x.list);
  repeat_last(&x.blocks);
  mix_values<V>(x.list, head_data(k, p.args.v), p.args.v, p.e, s.out);
  graft_tensor table{nullptr, GRAFT_F32, 4, {}, {0, 0, p.e, 1}};
  mix_values<V>(x.blocks, job.sums.values + sums * (n + 1) * p.e, table, p.e, x.out);
  add_all<V>(p.e, x.out, s.out);
  store_adjacent<V>(p, k, r, s.out, sum > 0.0f ? 1.0f / sum : 0.0f);
}

// Cuts the row back to exactly its k best and writes its output.
template <class V>
inline void end_row(const TopkJob& job, const Block& k, int64_t r, const TopkScratch& x, Mean* mean) {
  Candidates* c = &x.rows[r];
  cut_back<V>({job.selection.k, 0}, 0, c);
  if (c->count > 0 && job.p->args.remainder != GRAFT_REMAINDER_NONE) return write_whole_row<V>(job, k, r, *c, x);
  repeat_last(c);
  write_row<V>(*job.p, k, r, c, x.out, mean);
}

template <class V>
inline void topk_block(const TopkJob& job, const Block& k, void* space) {
  const Problem& p = *job.p;
  Arena arena(space);
  const TopkScratch x = cut_topk<V>(p, job.selection, job.block_rows, &arena);
  begin_rows(p, k, job.selection, x);
  load_queries<V>(p, k, x.queries);
  float bound = 0.0f;
  if (p.key_bias_wide) bound = score_bound<V>(p, k, x.queries, job.key_norms);
  for (Walk walk = walk_keys(p, k, bound); next_tile(&walk, x.tile);) offer_tile<V>(job, k, x);
  Mean mean{x.mean, false};
  for (int64_t r = 0; r < k.rows; ++r) end_row<V>(job, k, r, x, &mean);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_H_
