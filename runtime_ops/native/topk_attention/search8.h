// The rows of a block that are scored in 8 bits, what they find among the keys, and when that is proved to be enough: what
// all instruction sets have in common. What each does in its own way is a struct L with
//   V                       its vectors
//   unsigned_queries        whether products are of unsigned by signed bytes: then 128 is added to queries
//   ToTile, ToBits          what is kept of scores; `panels`: of how many panels at a time
//   score<To, biased>       scores a panel's keys with all rows
//   clear_rest<To>          makes what lies behind a chunk's last panel as if hidden
//   cut_places              takes the scratch that it alone needs
//   find_tile, list_bits    list what rows can need of a chunk; false where there is no room
//   drop_below, raise_level, drop_impossible   make a list shorter
//   store_sums              the sums of the lanes of kDots vectors
//   cut_exactly             leaves the k best candidates, and returns the lowest of them, -inf where there are not k
// score8.h, pick8.h and list8.h have them for AVX-512, plain8.h for others.
#ifndef GRAFT_SEARCH8_H_
#define GRAFT_SEARCH8_H_

#include "quantised.h"
#include "topk.h"

namespace graft {
namespace {

constexpr int64_t kTileKeys = 4096;   // scored before rows list what they may need: a tile stays in the second cache
constexpr int64_t kBitKeys = 65536;   // the same where one bit a key is kept
constexpr int64_t kPack = 32;         // 16-bit scores in a vector of AVX-512
constexpr int64_t kPacksAtOnce = 8;   // a row's packs are padded to a multiple of this
constexpr int16_t kHidden = -32768;

struct Row8 {
  Candidates best;  // in fp32; its ids are what the row has found, and its scores take the place of 16-bit ones
  float scale, unit;
  float bias_unit;      // 1 / unit
  float length, error;  // of the query: its norm, and that of what its bytes miss
  float slack;          // what fp32 and 16 bits may round: part of every key's error bound
  float bound;          // no key's score is further off, slack included
  float base;           // what 16-bit scores leave out
  float lowest;         // of its k best
  float expected, step;  // about where it lies, before it is known, and how far off
  float guess;          // every score from so many units on is listed, where that is guessed beforehand
  Sight sight;
};

// What a row has found so far: keys that can be among its k best, and their 16-bit scores.
struct Found {
  int32_t *ids, *scores;  // the latter as long as tiles are scored
  int64_t count;
  int reached;  // k keys reach it; kHidden before there are as many
  int level;    // every score from here on is listed
  int64_t hits, listed;  // in the tile in use: see pick8.h
};

struct Topk8Scratch {
  float *queries, *query, *out, *bias, *mean;
  uint8_t* bytes;   // queries
  int16_t* tile;    // scores, or one bit a key: [rows][stride]
  int64_t stride;
  int16_t* maxima;  // of groups of keys: [rows][groups][kPack]
  int64_t groups;
  int32_t* starts;  // of the tile's panels: their first keys
  int64_t room;     // for what a row finds
  Found* found;     // [rows]
  int32_t* lists;   // theirs
  Row8* rows;
  uint32_t *masks, *hits;  // from here on pick8.h only: [kRowsAtOnce][packs], [kRowsAtOnce][hit_room]
  int64_t hit_room;
  int32_t* places;         // of these rows' hits in the tile
};

// Panels of the tile in use.
struct Chunk {
  int64_t before;  // panels of earlier tiles
  int64_t panels, packs;
  bool adjoining;  // no panel was left out between the first and the last
};

struct Search8 {
  const Problem& p;
  const Block& k;
  const Keys8& keys;
  const Walk& walk;
  const Topk8Scratch& x;
  float reach;
};

// Bit i: key first + i is in sight.
inline uint64_t seen_bits(const Sight& sight, int64_t first) {
  const int64_t before = sight.first - first, seen = sight.last - first + 1;
  const uint64_t low = before <= 0 ? ~uint64_t{0} : before >= kPanelKeys ? 0 : ~uint64_t{0} << before;
  const uint64_t high = seen <= 0 ? 0 : seen >= kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << seen) - 1;
  return low & high;
}

// The panel's bias below `top`: -inf where no row of the block needs the key. False if that is everywhere.
inline bool load_panel_bias(const Walk& walk, int64_t first, float top, float* to) {
  bool any = false;
  for (int64_t x = 0; x < kPanelKeys; ++x) {
    const int64_t j = first + x;
    float bias = j >= walk.end ? -kInf : walk.bias[j];
    if (!(bias >= walk.floor)) bias = -kInf;  // a NaN too, as no key with one is ever chosen
    any = any || bias != -kInf;
    to[x] = bias - top;
  }
  return any;
}

inline void hide(int16_t* scores, int64_t packs) {
  for (int64_t i = 0; i < packs * kPack; ++i) scores[i] = kHidden;
}

// Scores panels from *first on until no more are kept or no keys are left.
template <class L, class To>
inline Chunk score_chunk(const Search8& s, float top, int64_t before, int64_t* first) {
  const Topk8Scratch& x = s.x;
  const bool biased = s.walk.bias != nullptr;
  Chunk chunk{before, 0, 0, true};
  for (; *first < s.walk.end && chunk.panels < To::panels; *first += kPanelKeys) {
    if (biased && !load_panel_bias(s.walk, *first, top, x.bias)) continue;
    x.starts[chunk.panels] = static_cast<int32_t>(*first);
    if (biased) L::template score<To, true>(s, *first, chunk);
    else L::template score<To, false>(s, *first, chunk);
    ++chunk.panels;
  }
  const int64_t used = chunk.panels * (kPanelKeys / kPack);
  chunk.packs = round_up(used, kPacksAtOnce);
  L::template clear_rest<To>(s, chunk, used);
  if (chunk.panels > 0) chunk.adjoining = x.starts[chunk.panels - 1] - x.starts[0] == (chunk.panels - 1) * kPanelKeys;
  return chunk;
}

// Groups of keys, in vectors: enough that the k-th largest of their maxima lies near the k-th largest score.
inline int64_t group_packs(int64_t k, int64_t packs) {
  return least(packs, round_up(ceil_div(2 * k, kPack), kPacksAtOnce));
}

// The level that k of n numbers reach, and at most k / 16 more; where ties forbid that, the highest that k reach; kHidden
// where there are not k. above(levels, counts) counts, and a good guess saves most of that.
template <class Above>
inline int reached_by(Above above, int64_t n, int64_t k, int guess) {
  const int64_t step = most(1, guess / 16);  // about two thirds and four thirds of k, in a Gaussian
  const Count found = search_level(above, k, k / 16, {kHidden - 1, n}, {-kHidden, 0}, {guess - 1, step});
  return static_cast<int>(found.above >= k ? found.level + 1 : found.level);
}

// The lowest 16-bit score that is listed where k keys reach `reached`. Both may be wrong by the row's error bound, so
// at a `reach` of 2 no key below it can be among the k best; nearly always less is enough, which `proved` tells.
inline int level_below(const Row8& row, int reached, float reach) {
  const float level = __builtin_floorf(static_cast<float>(reached) - reach * row.bound * row.bias_unit);
  return level > static_cast<float>(kHidden) ? static_cast<int>(level) : kHidden + 1;
}

// A row's level, in norms of its query, is a good guess for the next row.
inline void guess_level(const Search8& s, int64_t r) {
  if (r == 0) return;
  const Row8 &row = s.x.rows[r], &last = s.x.rows[r - 1];
  const float ratio = row.length * row.bias_unit / (last.length * last.bias_unit);
  const float guess = static_cast<float>(s.x.found[r - 1].reached) * ratio;
  s.x.found[r].reached = guess > -3e4f && guess < 3e4f ? static_cast<int>(guess) : 0;
}

// Where some of what was listed can be forgotten again, or is worth it, scores are kept with it.
inline bool several_tiles(const Search8& s) { return s.walk.end - s.walk.at / kPanelKeys * kPanelKeys > kTileKeys; }
inline bool too_many(int64_t listed, int64_t k) { return listed > 2 * k; }

// Leaves the candidates: of what all tiles listed, what the last one's level leaves; where this is much, what the level
// of all that is listed and the keys' own error bounds leave.
template <class L>
inline void end_list(const Search8& s, int64_t k, Row8* row, Found* f) {
  const bool many = too_many(f->count, k);
  if (many) f->reached = L::raise_level(*f, k, f->reached);
  f->level = level_below(*row, f->reached, s.reach);
  if (many && f->level > kHidden + 1) {
    L::drop_impossible(s.keys, *row, row->unit * static_cast<float>(f->level) + row->bound, f);
  } else if (several_tiles(s)) {
    L::drop_below(f->level, f);
  }
  row->best.count = f->count;
  row->step = 0.2f * s.reach * row->bound;  // groups with more than one of the best keys let the level fall behind
  row->expected = row->base + row->unit * static_cast<float>(f->reached) + 2.5f * row->step;
}

// Whether no key that is not listed can be among the k best.
inline bool proved(const Row8& row, const Found& f) {
  return f.level == kHidden + 1 || (row.lowest - row.base - row.bound) * row.bias_unit >= static_cast<float>(f.level);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_SEARCH8_H_
