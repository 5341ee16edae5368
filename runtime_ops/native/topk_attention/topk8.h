// Top-k attention that scores in 8-bit integers (AVX-512 VNNI) and proves that it loses nothing.
//
// With q = q8 + dq and k = k8 + dk, |q.k - q8.k8| <= |q| |dk| + |dq| |k8| = E. The k best by 8-bit score, or a few
// more, are scored in fp32; the k best of all reach the lowest of these scores, so a key whose 8-bit score lies E
// below it is none of them, and only the keys between are scored in fp32 too. Where these are too many for the
// buffer, the block is done in fp32 instead.
#ifndef GRAFT_TOPK8_H_
#define GRAFT_TOPK8_H_

#include "rescore8.h"

namespace graft {
namespace {

struct Topk8Job {
  TopkJob exact;  // for blocks in which the proof fails
  const Keys8* keys;  // [b][g]
  int64_t block_rows;
  Selection selection;
};

inline Selection selection8(const Problem& p) { return {p.top_k, round_up(2 * p.top_k + 1024, 64)}; }

// Scores between two rows of the tile: an odd number of cache lines, or all rows would share a set of the cache.
inline int64_t tile_stride(const Problem& p) {
  return round_up(least(p.t, kMostKeys), kPacksAtOnce * kPack) + kPack;
}

// A multiple of the rows that are scored together; fewer where the tile would outgrow the second cache.
inline int64_t topk8_rows(const Problem& p) {
  const int64_t fit = (int64_t{400} << 10) / (2 * tile_stride(p)) / 6 * 6;
  return least(p.rows, most<int64_t>(6, least<int64_t>(24, fit)));
}

// Where a tile holds all keys, lists are needed for a row and the next only.
inline bool one_tile(const Problem& p) { return p.t <= kMostKeys; }
inline int64_t list_count(const Problem& p, int64_t rows) { return one_tile(p) ? 2 : rows; }

inline Topk8Scratch cut_topk8(const Problem& p, const Selection& s, int64_t rows, Arena* arena) {
  Topk8Scratch x;
  x.queries = arena->take<float>(rows * p.d);
  x.query = arena->take<float>(p.d);
  x.whole = arena->take<float>(p.d);
  x.rest = arena->take<float>(p.d);
  x.out = arena->take<float>(p.e);
  x.pool = arena->take<float>(list_count(p, rows) * pool_stride(s));
  x.bias = arena->take<float>(kPanelKeys);
  x.bytes = arena->take<uint8_t>(rows * quads(p) * 4);
  x.stride = tile_stride(p);
  x.tile = arena->take<int16_t>(rows * x.stride);
  x.maxima = arena->take<int16_t>(x.stride);
  x.starts = arena->take<int32_t>(x.stride / kPanelKeys);
  x.hits = arena->take<Hit>(x.stride / kPack);
  x.found = arena->take<int32_t>(2 * x.stride);
  x.rows = arena->take<Row8>(rows);
  return x;
}

// What the biases of a block's keys need: their highest, how far they reach below it, and how far fp32 may round
// a sum of a score and one of them.
struct BiasRange {
  float top, depth, rounding;
};

inline BiasRange range_of(const Walk& walk) {
  if (walk.bias == nullptr) return {0.0f, 0.0f, 0.0f};
  float low = kInf, high = -kInf;
  for (int64_t j = 0; j < walk.end; ++j) {
    const float bias = walk.bias[j];
    if (bias < walk.floor || bias == -kInf) continue;
    low = least(low, bias), high = most(high, bias);
  }
  if (!(low <= high)) return {0.0f, 0.0f, 0.0f};
  return {high, high - low, 1e-6f * most(__builtin_fabsf(low), __builtin_fabsf(high))};
}

// False where no error bound can be given: something is infinite or NaN.
inline bool begin_row8(const Problem& p, const Block& k, const Topk8Job& job, const Keys8& keys,
                       const BiasRange& range, int64_t r, const Topk8Scratch& x) {
  Row8& row = x.rows[r];
  const float* unscaled = x.queries + r * p.d;
  float* query = x.query;
  for (int64_t i = 0; i < p.d; ++i) query[i] = unscaled[i] * keys.widen[i];
  uint8_t* bytes = x.bytes + r * quads(p) * 4;
  memset(bytes, 0, static_cast<size_t>(quads(p) * 4));
  const float scale = quantise_row<Avx512>(query, p.d, reinterpret_cast<int8_t*>(bytes), x.whole);
  for (int64_t i = 0; i < quads(p) * 4; ++i) bytes[i] = static_cast<uint8_t>(bytes[i] + 128);
  float norm;
  measure<Avx512>(query, x.whole, scale, p.d, x.rest, &row.error, &norm);
  row.length = largest_norm<Avx512>(query, p.d, 1, p.d);
  const float unit = scale * keys.unit;
  row.unit = unit + range.depth / kRange8 + 1e-30f;
  row.scale = unit / row.unit;
  row.bias_unit = 1.0f / row.unit;
  // Rounding: of fp32 sums over lanes of d / 16 terms, in scores and bounds; of biases; and to 16 bits.
  const float lane = 1.2e-7f * static_cast<float>(p.d / 16 + 16);
  row.slack = lane * row.length * (keys.norm + keys.error + keys.mean_norm) + range.rounding + 0.75f * row.unit;
  row.bound = 1.001f * (row.length * keys.error + row.error * keys.norm) + row.slack + row.unit;
  row.base = range.top + dot<Avx512>(unscaled, keys.mean, p.d);
  float* list = x.pool + (one_tile(p) ? r % 2 : r) * pool_stride(job.selection);
  row.best = {list, list + job.selection.capacity + 64, 0, -kInf};
  row.limit = limit_of(p, k, r);
  return row.bound < kInf && row.bias_unit < kInf && __builtin_fabsf(row.base) < kInf;
}

// Of the candidates that score `level`, leaves the `ties` first keys.
inline void drop_ties(float level, int64_t ties, Candidates* c) {
  int64_t low = -1, high = INT32_MAX;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    int64_t count = 0;
    for (int64_t i = 0; i < c->count; ++i) count += c->scores[i] == level && id_at(*c, i) <= middle;
    if (count >= ties) high = middle;
    else low = middle;
  }
  for (int64_t i = 0; i < c->count; ++i) {
    if (c->scores[i] == level && id_at(*c, i) > high) c->scores[i] = -kInf;
  }
}

// The number before x; before either zero, one that is no denormal, which a session may have set to count as 0.
inline float below(float x) { return x == 0.0f ? -0x1p-126f : from_order(to_order(x) - 1); }

// Leaves the k best, which all reach the threshold; of equal ones the first, as everywhere, though candidates are in
// no order here.
inline void cut_exactly(int64_t k, Candidates* c) {
  pad<Avx512>(c);
  if (c->count <= k) return;
  if (c->threshold > -kInf) c->threshold = below(c->threshold);
  const Cut cut = find_cut<Avx512>(*c, k, 0);
  if (cut.above < k) drop_ties(cut.level, k - cut.above, c);
  keep_above<Avx512>(cut.above < k ? below(cut.level) : cut.level, 0, c);
}

inline void end_row8(const Search8& s, int64_t r) {
  Candidates& best = s.x.rows[r].best;
  cut_exactly(s.p.top_k, &best);
  end_row<Avx512>(s.p, s.k, r, s.p.top_k, &best, s.x.out);
}

// What does not reach the lowest of a row's k best so far cannot be among them in the end.
inline void cut_between(int64_t k, Candidates* c) {
  cut_exactly(k, c);
  if (c->count == k) c->threshold = lowest(c->scores, k);
}

// All rows of the block in one tile. A row's keys are on their way to the cache while another row is worked on.
inline bool search_tile(const Topk8Job& job, const Search8& s, const Chunk& chunk) {
  int64_t before[2];
  for (int64_t r = 0; r <= s.k.rows; ++r) {
    if (r < s.k.rows) {
      before[r % 2] = s.x.rows[r].best.count;
      if (!find_row(s, chunk, r, job.selection)) return false;
    }
    if (r == 0) continue;
    if (!finish_row(s, chunk, r - 1, before[(r - 1) % 2], job.selection)) return false;
    if (one_tile(s.p)) end_row8(s, r - 1);
    else cut_between(job.selection.k, &s.x.rows[r - 1].best);
  }
  return true;
}

// Tile by tile. Between tiles a row keeps its k best, whose lowest is its threshold.
inline bool search_rows(const Topk8Job& job, const Search8& s, float top) {
  for (int64_t first = 0; first < s.walk.end;) {
    const Chunk chunk = score_chunk(s.p, s.keys, s.walk, top, s.k.rows, &first, s.x);
    if (!search_tile(job, s, chunk)) return false;
  }
  if (one_tile(s.p) && s.walk.end > 0) return true;
  for (int64_t r = 0; r < s.k.rows; ++r) end_row8(s, r);
  return true;
}

// One block in 8 bits; false where the proof fails.
inline bool topk8_rows_done(const Topk8Job& job, const Block& k, void* space) {
  const Problem& p = *job.exact.p;
  Arena arena(space);
  const Topk8Scratch x = cut_topk8(p, job.selection, job.block_rows, &arena);
  load_queries<Avx512>(p, k, x.queries);
  float bound = 0.0f;
  if (p.key_bias_wide) bound = score_bound<Avx512>(p, k, x.queries, job.exact.key_norms);
  const Walk walk = walk_keys(p, k, bound);
  const Keys8& keys = job.keys[k.b * p.g + k.g];
  const BiasRange range = range_of(walk);
  for (int64_t r = 0; r < k.rows; ++r) {
    if (!begin_row8(p, k, job, keys, range, r, x)) return false;
  }
  const Search8 search{p, k, keys, walk, x};
  return search_rows(job, search, range.top);
}

inline void topk8_block(const Topk8Job& job, const Block& k, void* space) {
  if (!topk8_rows_done(job, k, space)) topk_block<Avx512>(job.exact, k, space);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK8_H_
