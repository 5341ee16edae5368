// What one task works on: a block of query rows, and the walk over the keys that it may see.
#ifndef GRAFT_BLOCK_H_
#define GRAFT_BLOCK_H_

#include "problem.h"
#include "../vector/arena.h"
#include "../vector/math.h"

namespace graft {
namespace {

struct Block {
  int64_t b, g, head, first, rows;  // rows first .. first + rows - 1 of the unit that starts at query head `head`
};

inline int64_t block_count(const Problem& p, int64_t block_rows) {
  return p.b * p.units * ceil_div(p.rows, block_rows);
}

// Late rows come first: under a causal mask they see the most keys, and short tasks last balance best.
inline Block block_at(const Problem& p, int64_t block_rows, int64_t index) {
  const int64_t per_unit = ceil_div(p.rows, block_rows), share = p.h / p.units;
  const int64_t unit = index / per_unit % p.units;
  Block k;
  k.b = index / per_unit / p.units;
  k.head = unit * share;
  k.g = k.head / (p.h / p.g);
  k.first = (per_unit - 1 - index % per_unit) * block_rows;
  k.rows = least(block_rows, p.rows - k.first);
  return k;
}

inline int64_t head_of(const Problem& p, const Block& k, int64_t r) { return k.head + (k.first + r) / p.s; }
inline int64_t query_of(const Problem& p, const Block& k, int64_t r) { return (k.first + r) % p.s; }

// The row's element 0 in q, out or bias.
inline const void* row_of(const Problem& p, const Block& k, const graft_tensor& x, int64_t r) {
  const int64_t at = k.b * x.strides[0] + head_of(p, k, r) * x.strides[1] + query_of(p, k, r) * x.strides[2];
  return element(x.data, x.dtype, at);
}

inline const void* head_data(const Block& k, const graft_tensor& x) {
  return element(x.data, x.dtype, k.b * x.strides[0] + k.g * x.strides[1]);
}

constexpr int64_t kFar = int64_t{1} << 60;  // nothing overflows, and beyond it nothing changes

// Where a row's query stands among the keys.
inline int64_t place_of(const Problem& p, const Block& k, int64_t r) {
  int64_t past = 0;
  if (p.args.past_length.data != nullptr) {
    past = static_cast<const int64_t*>(p.args.past_length.data)[k.b * p.args.past_length.strides[0]];
  }
  return query_of(p, k, r) + most(-kFar, least(past, kFar));
}

// The first and the last key that a row may see, as far as causality and window go; none where first > last.
struct Sight {
  int64_t first, last;
};

inline Sight sight_of(const Problem& p, const Block& k, int64_t r) {
  if (!p.args.causal && p.args.window == 0) return {0, p.t - 1};
  const int64_t place = place_of(p, k, r), width = p.args.window > 0 ? least(p.args.window, kFar) : kFar;
  const int64_t first = p.args.window > 0 ? place - width + 1 : 0, last = p.args.causal ? place : place + width - 1;
  return {most<int64_t>(0, least(first, p.t)), most<int64_t>(-1, least(last, p.t - 1))};
}

struct Span {
  int64_t least, most;
};

// Of several rows.
struct Sights {
  Span first, last;
};

inline Sights no_sights(const Problem& p) { return {{p.t, 0}, {p.t, -1}}; }

inline void include(const Sight& one, Sights* all) {
  all->first = {least(all->first.least, one.first), most(all->first.most, one.first)};
  all->last = {least(all->last.least, one.last), most(all->last.most, one.last)};
}

inline Sights sights_of(const Problem& p, const Block& k) {
  Sights all = no_sights(p);
  for (int64_t r = 0; r < k.rows; ++r) include(sight_of(p, k, r), &all);
  return all;
}

template <class V>
inline void scale_all(float scale, int64_t n, float* x) {
  const typename V::F factor = V::set1(scale);
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) V::store(x + i, V::mul(V::load(x + i), factor));
  for (; i < n; ++i) x[i] *= scale;
}

// Scaled queries in fp32, d apart.
template <class V>
inline void load_queries(const Problem& p, const Block& k, float* to) {
  for (int64_t r = 0; r < k.rows; ++r) {
    widen_row<V>(row_of(p, k, p.args.q, r), p.args.q.dtype, p.d, to + r * p.d);
  }
  scale_all<V>(p.args.scale, k.rows * p.d, to);
}

// The largest Euclidean norm among `rows` rows of fp32.
template <class V>
inline float largest_norm(const float* x, int64_t stride, int64_t rows, int64_t n) {
  float largest = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * stride;
    typename V::F sum = V::set1(0.0f);
    int64_t j = 0;
    for (; j + V::lanes <= n; j += V::lanes) sum = V::fma(V::load(row + j), V::load(row + j), sum);
    float norm = V::reduce_add(sum);
    for (; j < n; ++j) norm += row[j] * row[j];
    largest = norm > largest || norm != norm ? norm : largest;  // a NaN must reach the caller
  }
  return __builtin_sqrtf(largest);
}

constexpr int64_t kTile = 128;  // keys

// Up to kTile visible keys. Past `count`, ids repeat the last key and bias is -inf.
struct Tile {
  int64_t count;
  bool adjoining;  // no gap between the first and the last
  int32_t ids[kTile];
  float bias[kTile];
};

struct Walk {
  const float* bias;  // per key, or NULL
  float floor;        // keys below it get a weight of exactly 0 in every row of the block
  int64_t at, end;
};

// score_bound: no |q.k| (softcap applied) of this block is larger. A key whose bias lies so far below that of
// a key which every row sees that exp must underflow is dropped, which is what makes padding cost nothing.
inline Walk walk_keys(const Problem& p, const Block& k, float score_bound) {
  const Sights sights = sights_of(p, k);
  Walk walk{nullptr, -kInf, sights.first.least, sights.last.most + 1};
  if (p.key_bias == nullptr) return walk;
  walk.bias = p.key_bias + k.b * p.key_bias_b + k.head * p.key_bias_h;
  if (!p.key_bias_wide) return walk;
  float live = -kInf;
  for (int64_t j = sights.first.most; j <= sights.last.least; ++j) live = most(live, walk.bias[j]);
  const float floor = live - 2.02f * score_bound - kUnderflow;
  if (floor > -kInf) walk.floor = floor;  // not where it is NaN
  return walk;
}

inline void take_masked(Walk* walk, Tile* tile) {
  int64_t n = 0, j = walk->at;
  for (; j < walk->end && n < kTile; ++j) {
    const float bias = walk->bias[j];
    tile->ids[n] = static_cast<int32_t>(j);
    tile->bias[n] = bias;
    n += bias < walk->floor || bias == -kInf ? 0 : 1;
  }
  walk->at = j;
  tile->count = n;
}

inline void take_all(Walk* walk, Tile* tile) {
  tile->count = least(kTile, walk->end - walk->at);
  for (int32_t x = 0; x < kTile; ++x) tile->ids[x] = static_cast<int32_t>(walk->at) + x;
  for (int64_t x = 0; x < tile->count; ++x) tile->bias[x] = 0.0f;
  walk->at += tile->count;
}

// The next visible keys; false when there are none left.
inline bool next_tile(Walk* walk, Tile* tile) {
  if (walk->at >= walk->end) return false;
  if (walk->bias == nullptr) take_all(walk, tile);
  else take_masked(walk, tile);
  if (tile->count == 0) return false;
  for (int64_t x = tile->count; x < kTile; ++x) {
    tile->ids[x] = tile->ids[tile->count - 1];
    tile->bias[x] = -kInf;
  }
  tile->adjoining = tile->ids[tile->count - 1] - tile->ids[0] == tile->count - 1;
  return true;
}

// How many of the tile's keys come before key `bound`: ids ascend.
inline int64_t keys_before(const Tile& tile, int64_t bound) {
  if (tile.ids[tile.count - 1] < bound) return tile.count;
  if (tile.adjoining) return most<int64_t>(0, bound - tile.ids[0]);
  int64_t n = tile.count;
  while (n > 0 && tile.ids[n - 1] >= bound) --n;
  return n;
}

struct Rows {
  const float* data;
  int64_t stride;
};

// The tile's rows of k or v in fp32: in place where they lie ready, else copied to `scratch`.
template <class V>
inline Rows tile_rows(const Block& k, const graft_tensor& x, const Tile& tile, int64_t width, float* scratch) {
  const void* head = head_data(k, x);
  if (x.dtype == GRAFT_F32 && tile.adjoining) {
    return {static_cast<const float*>(element(head, x.dtype, tile.ids[0] * x.strides[2])), x.strides[2]};
  }
  for (int64_t j = 0; j < tile.count; ++j) {
    widen_row<V>(element(head, x.dtype, tile.ids[j] * x.strides[2]), x.dtype, width, scratch + j * width);
  }
  return {scratch, width};
}

// One row of a bias that varies along s, at `n` of the tile's keys from `first` on.
template <class V>
inline void load_row_bias(const Problem& p, const Block& k, const Tile& tile, int64_t r, int64_t first, int64_t n,
                          float* to) {
  const graft_tensor& x = p.args.bias;
  const void* row = row_of(p, k, x, r);
  const int32_t* ids = tile.ids + first;
  if (tile.adjoining && x.strides[3] == 1) {
    widen_row<V>(element(row, x.dtype, ids[0]), x.dtype, n, to);
    return;
  }
  for (int64_t j = 0; j < n; ++j) to[j] = widen1(row, x.dtype, ids[j] * x.strides[3]);
}

// out[row] = x[i * step] * scale.
inline void store_row(const Problem& p, const Block& k, int64_t r, const float* x, int64_t step, float scale) {
  void* to = const_cast<void*>(row_of(p, k, p.args.out, r));
  for (int64_t i = 0; i < p.e; ++i) narrow1(to, p.args.out.dtype, i, x[i * step] * scale);
}

// out[row] = x * scale.
template <class V>
inline void store_adjacent(const Problem& p, const Block& k, int64_t r, float* x, float scale) {
  scale_all<V>(scale, p.e, x);
  void* to = const_cast<void*>(row_of(p, k, p.args.out, r));
  if (p.args.out.dtype == GRAFT_F32) memcpy(to, x, static_cast<size_t>(p.e) * sizeof *x);
  else for (int64_t i = 0; i < p.e; ++i) narrow1(to, p.args.out.dtype, i, x[i]);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_BLOCK_H_
