// Top-k attention that scores in 8-bit integers and proves that it loses nothing.
//
// With q = q8 + dq and k = k8 + dk, |q.k - q8.k8| <= |q| |dk| + |dq| |k8| = E. Keys whose 8-bit scores lie a little more
// than E below a level that k of them reach are scored in fp32, and the k best of these are all there are, if the lowest
// of them scores E more than any key that is not listed: that is checked afterwards. Where it does not hold, more keys
// are listed, in a second try; where they are too many for the list, the block is done in fp32 instead.
#ifndef GRAFT_TOPK8_H_
#define GRAFT_TOPK8_H_

#include "guess8.h"
#include "kernels.h"
#include "rescore8.h"

namespace graft {
namespace {

struct Topk8Job {
  TopkJob exact;  // for blocks in which the proof fails
  const Keys8* keys;  // of the key heads from `first` on
  int64_t first, block_rows;
  Selection selection;
};

inline Selection selection8(const Problem& p) { return {p.top_k, round_up(2 * p.top_k + 1024, 64)}; }

// Of what a row has found, with room for what is read and written in whole vectors.
inline int64_t list_stride(const Selection& s) { return s.capacity + 64; }

// Scores between two rows of the tile: an odd number of cache lines, or all rows would share a set of the cache.
inline int64_t tile_stride(const Problem& p) {
  return round_up(least(p.t, kTileKeys), kPacksAtOnce * kPack) + kPack;
}

// Rows of a block: a multiple of score_rows8's, with the fullest last block, which is the first to be worked on and tells
// others what to guess.
inline int64_t topk8_rows(const Problem& p) {
  int64_t best = 60, fullest = 0;
  for (int64_t rows = best; rows >= 48; rows -= 6) {
    const int64_t percent = ((p.rows - 1) % rows + 1) * 100 / rows;
    if (percent > fullest) best = rows, fullest = percent;
  }
  return least(p.rows, best);
}

template <class L>
inline Topk8Scratch cut_topk8(const Problem& p, const Selection& s, int64_t rows, Arena* arena) {
  Topk8Scratch x;
  x.queries = arena->take<float>(rows * p.d);
  x.query = arena->take<float>(padded(p));
  x.out = arena->take<float>(p.e);
  x.mean = take_mean(p, arena);
  x.bias = arena->take<float>(kPanelKeys);
  x.bytes = arena->take<uint8_t>(rows * quads(p) * 4 + padded(p));
  x.stride = tile_stride(p);
  x.tile = arena->take<int16_t>(rows * x.stride);
  x.groups = group_packs(s.k, round_up(ceil_div(p.t, kPack), kPacksAtOnce));
  x.maxima = arena->take<int16_t>(rows * x.groups * kPack);
  x.starts = arena->take<int32_t>(ceil_div(least(p.t, kBitKeys), kPanelKeys) + 1);
  x.room = s.capacity;
  x.found = arena->take<Found>(rows);
  x.lists = arena->take<int32_t>(rows * 2 * list_stride(s));
  x.rows = arena->take<Row8>(rows);
  L::cut_places(p, arena, &x);
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
  for (int64_t j = walk.at; j < walk.end; ++j) {
    const float bias = walk.bias[j];
    if (bias < walk.floor || bias == -kInf) continue;
    low = least(low, bias), high = most(high, bias);
  }
  if (!(low <= high)) return {0.0f, 0.0f, 0.0f};
  return {high, high - low, 1e-6f * most(__builtin_fabsf(low), __builtin_fabsf(high))};
}

inline void add_128(uint8_t* bytes, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t x = i; x < i + 16; ++x) bytes[x] ^= 128;
  }
}

// False where no error bound can be given: something is infinite or NaN.
template <class L>
inline bool begin_row8(const Problem& p, const Block& k, const Topk8Job& job, const Keys8& keys,
                       const BiasRange& range, int64_t r, const Topk8Scratch& x) {
  using V = typename L::V;
  Row8& row = x.rows[r];
  const float* unscaled = x.queries + r * p.d;
  float* query = x.query;
  multiply<V>(unscaled, keys.widen, p.d, padded(p), query);
  uint8_t* bytes = x.bytes + r * quads(p) * 4;  // rows in turn: what is written behind this one is the next one's
  const float scale = byte_scale<V>(query, padded(p));
  const Bytes b = to_bytes<V>(query, padded(p), scale, reinterpret_cast<int8_t*>(bytes));
  if (L::unsigned_queries) add_128(bytes, padded(p));
  row.error = b.error;
  row.length = b.length;
  const float unit = scale * keys.unit;
  row.unit = unit + range.depth / kRange8 + 1e-30f;
  row.scale = unit / row.unit;
  row.bias_unit = 1.0f / row.unit;
  // Rounding: of fp32 sums over lanes of d / V::lanes terms, in scores and bounds; of biases; and to 16 bits.
  const float lane = 1.2e-7f * static_cast<float>(p.d / V::lanes + 16);
  row.slack = lane * row.length * (keys.norm + keys.error + keys.mean_norm) + range.rounding + 0.75f * row.unit;
  row.bound = 1.001f * (row.length * keys.error + row.error * keys.norm) + row.slack + row.unit;
  row.base = range.top + dot<V>(unscaled, keys.mean, p.d);
  const int64_t stride = list_stride(job.selection);
  int32_t* found = x.lists + r * 2 * stride;
  row.best = {reinterpret_cast<float*>(found + stride), reinterpret_cast<float*>(found), 0, -kInf};
  row.sight = sight_of(p, k, r);
  x.found[r] = {found, found + stride, 0, 0, 0, 0, 0};
  return row.bound < kInf && row.bias_unit < kInf && __builtin_fabsf(row.base) < kInf;
}

// Everything that reads scores; false where there is no room for what is found.
template <class L>
inline bool find_rows(const Search8& s, float top) {
  hide(s.x.maxima, s.k.rows * s.x.groups);
  for (int64_t first = s.walk.at / kPanelKeys * kPanelKeys, before = 0; first < s.walk.end;) {
    const Chunk chunk = score_chunk<L, typename L::ToTile>(s, top, before, &first);
    before += chunk.panels;
    if (!L::find_tile(s, chunk)) return false;
  }
  for (int64_t r = 0; r < s.k.rows; ++r) end_list<L>(s, s.p.top_k, &s.x.rows[r], &s.x.found[r]);
  return true;
}

// Cuts a row's scored candidates back to the k best; false where these are not proved.
template <class L>
inline bool end_row8(const Search8& s, Row8* row, const Found& f) {
  row->lowest = L::cut_exactly(s.p.top_k, row->expected, row->step, &row->best);
  return proved(*row, f);
}

// What reads keys and values, which are on their way for one row while another is worked on. Returns the rows that are
// not proved, as bits.
template <class L>
inline uint64_t end_rows(const Search8& s) {
  const Topk8Scratch& x = s.x;
  link_rows<typename L::V>(s);
  for (int64_t r = 0; r < s.k.rows; ++r) score_again<L>(s.p, s.k, s.walk, x.queries + r * s.p.d, &x.rows[r].best);
  // Later blocks have earlier rows: see block_at.
  const Block next{s.k.b, s.k.g, s.k.head, most<int64_t>(0, s.k.first - s.k.rows), s.k.rows};
  uint64_t left = 0;
  for (int64_t r = 0; r < s.k.rows; ++r) {
    ask_for(row_of(s.p, s.k, s.p.args.out, r), s.p.e * element_size(s.p.args.out.dtype));
    ask_for(row_of(s.p, next, s.p.args.q, r), s.p.d * element_size(s.p.args.q.dtype));
    if (!end_row8<L>(s, &x.rows[r], x.found[r])) left |= uint64_t{1} << r;
  }
  link_rows<typename L::V>(s);
  Mean mean{x.mean, false};
  for (int64_t r = 0; r < s.k.rows; ++r) {
    if (!is_left(left, r)) write_row<typename L::V>(s.p, s.k, r, &x.rows[r].best, x.out, &mean);
  }
  return left;
}

// Ways to list the candidates of a block, the quickest first.
enum class Way { guessed, near, wide, in_fp32 };

// One block in 8 bits. Returns the rows that are not done: those that are not proved, or all, where no error bound can be
// given or no room is left.
template <class L>
inline uint64_t try_block(const Topk8Job& job, const Block& k, Way way, Habit* habit, void* space) {
  using V = typename L::V;
  const Problem& p = *job.exact.p;
  const uint64_t all = ~uint64_t{0} >> (64 - k.rows);
  Arena arena(space);
  const Topk8Scratch x = cut_topk8<L>(p, job.selection, job.block_rows, &arena);
  load_queries<V>(p, k, x.queries);
  float bound = 0.0f;
  if (p.key_bias_wide) bound = score_bound<V>(p, k, x.queries, job.exact.key_norms);
  const Walk walk = walk_keys(p, k, bound);
  const Keys8& keys = job.keys[k.b * p.g + k.g - job.first];
  const BiasRange range = range_of(walk);
  for (int64_t r = 0; r < k.rows; ++r) {
    if (!begin_row8<L>(p, k, job, keys, range, r, x)) return all;
  }
  const Search8 search{p, k, keys, walk, x, way == Way::wide ? 2.0f : 1.2f};
  if (!(way == Way::guessed ? list_guessed<L>(search, *habit, range.top) : find_rows<L>(search, range.top))) return all;
  const uint64_t left = end_rows<L>(search);
  learn(x, k, p.top_k, left, habit);
  return left;
}

inline void count_one(int64_t* counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

// Tries one way after another, until all rows are done: with a block, or with single rows where few are left.
template <class L>
inline void topk8_rows(const Topk8Job& job, const Block& k, Way way, Habit* habit, void* space) {
  constexpr int few = 4;
  if (way == Way::wide) count_one(&g_proofs.widened);
  if (way == Way::in_fp32) {
    count_one(&g_proofs.in_fp32);
    return topk_block<typename L::V>(job.exact, k, space);
  }
  const uint64_t left = try_block<L>(job, k, way, habit, space);
  const int count = __builtin_popcountll(left);
  const Way next = static_cast<Way>(static_cast<int>(way) + 1);
  if (count > few) {
    habit->broken = true;
    return topk8_rows<L>(job, k, next, habit, space);
  }
  for (int64_t r = 0; r < k.rows; ++r) {
    Habit none;
    if (is_left(left, r)) topk8_rows<L>(job, {k.b, k.g, k.head, k.first + r, 1}, next, &none, space);
  }
}

// Blocks `first` .. `end` - 1, which have the key head in common.
template <class L>
inline void topk8_blocks(const Topk8Job& job, int64_t first, int64_t end, void* space) {
  Habit habit;
  for (int64_t i = first; i < end; ++i) {
    count_one(&g_proofs.blocks);
    const Way way = habit.known && !habit.broken ? Way::guessed : Way::near;
    topk8_rows<L>(job, block_at(*job.exact.p, job.block_rows, i), way, &habit, space);
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK8_H_
