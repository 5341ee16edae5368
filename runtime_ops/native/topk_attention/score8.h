// Scores of a block of query rows against a chunk of keys, from 8-bit integers, as 16-bit integers: small enough
// to stay in the second cache, and compared 32 at a time.
#ifndef GRAFT_SCORE8_H_
#define GRAFT_SCORE8_H_

#include <type_traits>

#include "quantised.h"
#include "topk.h"

namespace graft {
namespace {

constexpr int64_t kTileKeys = 4096;   // scored before rows list what they may need: a tile stays in the second cache
constexpr int64_t kBitKeys = 65536;   // the same where one bit a key is kept
constexpr int64_t kRowsAtOnce = 2;
constexpr int64_t kPack = 32;         // 16-bit scores in a vector
constexpr int64_t kPacksAtOnce = 8;   // a row's packs are padded to a multiple of this
constexpr int16_t kHidden = -32768;

struct Row8 {
  Candidates best;  // in fp32; its ids are what the row has found
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
  float *queries, *query, *out, *pool, *bias, *mean;
  uint8_t* bytes;   // queries, 128 added
  int16_t* tile;    // scores, or one bit a key: [rows][stride]
  int64_t stride;
  int16_t* maxima;  // of groups of keys: [rows][groups][kPack]
  int64_t groups;
  int32_t* starts;  // of the tile's panels: their first keys
  uint32_t *masks, *hits;  // [kRowsAtOnce][packs], [kRowsAtOnce][hit_room]
  int64_t hit_room;
  int32_t* places;         // of these rows' hits in the tile
  int64_t room;     // for what a row finds
  Found* found;     // [rows]
  int32_t* lists;   // theirs
  Row8* rows;
};

#define GRAFT_INLINE __attribute__((always_inline)) inline

// Panels of the tile in use.
struct Chunk {
  int64_t before;  // panels of earlier tiles
  int64_t panels, packs;
  bool adjoining;  // no panel was left out between the first and the last
};

// A panel's sums for one row. Members, not arrays: GCC 12 keeps the elements of an array in memory, or copies them.
struct Sums {
  __m512i a, b, c, d;
};

// Sixteen scores, in units.
template <bool Biased>
GRAFT_INLINE __m512i to_units(__m512i sum, const float* key_scale, const float* bias, const Row8& row) {
  __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(key_scale));
  if (Biased) {  // -inf becomes the lowest integer
    const __m512 more = _mm512_mul_ps(_mm512_loadu_ps(bias), _mm512_set1_ps(row.bias_unit));
    score = _mm512_fmadd_ps(score, _mm512_set1_ps(row.scale), more);
  }
  return _mm512_cvtps_epi32(score);
}

// Bit i: key first + i is in sight.
inline uint64_t seen_bits(const Sight& sight, int64_t first) {
  const int64_t before = sight.first - first, seen = sight.last - first + 1;
  const uint64_t low = before <= 0 ? ~uint64_t{0} : before >= kPanelKeys ? 0 : ~uint64_t{0} << before;
  const uint64_t high = seen <= 0 ? 0 : seen >= kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << seen) - 1;
  return low & high;
}

GRAFT_INLINE __m512i hide_from(__m512i scores, uint64_t visible) {
  return _mm512_mask_mov_epi32(_mm512_set1_epi32(INT32_MIN), static_cast<__mmask16>(visible), scores);
}

// Where the scores of a row go: as they are, and into the maxima of their groups so far.
struct ToTile {
  int16_t *to, *high;
  int64_t stride, high_stride;

  GRAFT_INLINE ToTile next() const { return {to + stride, high + high_stride, stride, high_stride}; }
  GRAFT_INLINE void put(__m512i a, __m512i c) const {
    _mm512_storeu_si512(to, a);
    _mm512_storeu_si512(to + kPack, c);
    _mm512_storeu_si512(high, _mm512_max_epi16(_mm512_loadu_si512(high), a));
    _mm512_storeu_si512(high + kPack, _mm512_max_epi16(_mm512_loadu_si512(high + kPack), c));
  }
};

// Or one bit a key: whether its score reaches the row's guess.
struct ToBits {
  uint64_t* to;
  int64_t stride;

  GRAFT_INLINE ToBits next() const { return {to + stride, stride}; }
};

template <bool Biased>
GRAFT_INLINE Sums all_to_units(const Sums& sums, const float* key_scale, const float* bias, const Row8& row) {
  return {to_units<Biased>(sums.a, key_scale, bias, row), to_units<Biased>(sums.b, key_scale + 16, bias + 16, row),
          to_units<Biased>(sums.c, key_scale + 32, bias + 32, row),
          to_units<Biased>(sums.d, key_scale + 48, bias + 48, row)};
}

GRAFT_INLINE void hide_unseen(const Row8& row, int64_t first, Sums* x) {
  if (__builtin_expect(row.sight.last - first + 1 >= kPanelKeys && row.sight.first <= first, 1)) return;
  const uint64_t visible = seen_bits(row.sight, first);
  x->a = hide_from(x->a, visible), x->b = hide_from(x->b, visible >> 16);
  x->c = hide_from(x->c, visible >> 32), x->d = hide_from(x->d, visible >> 48);
}

// Sums of a panel that are worth a unit, and how much less may do: scales of panels of nearly nothing would make them
// too many for 32 bits.
struct Worth {
  float sums, less;
};

inline Worth worth_of(const Problem& p, float key_scale) {
  constexpr float most_sums = 60000.0f;
  if (key_scale * most_sums >= 1.0f) return {1.0f / key_scale, 0.0f};
  return {most_sums, 16256.0f * static_cast<float>(p.d)};  // no sum is larger
}

// What sums begin with. Where signs are all that is asked of them, with the least sum that reaches the guess taken off.
template <bool Biased>
GRAFT_INLINE Sums first_sums(const Sums& offset, const Worth&, const Row8&, const ToTile&) { return offset; }
template <bool Biased>
GRAFT_INLINE Sums first_sums(const Sums& offset, const Worth& worth, const Row8& row, const ToBits&) {
  if (Biased) return offset;
  const __m512 sums = _mm512_set1_ps(worth.sums), less = _mm512_set1_ps(worth.less);
  const __m512i least = _mm512_cvtps_epi32(_mm512_fmsub_ps(_mm512_set1_ps(row.guess), sums, less));
  return {_mm512_sub_epi32(offset.a, least), _mm512_sub_epi32(offset.b, least), _mm512_sub_epi32(offset.c, least),
          _mm512_sub_epi32(offset.d, least)};
}

// A panel's scores as 16 bits. Packing takes 4 keys from either vector in turn: see keys_at.
template <bool Biased>
GRAFT_INLINE void store_scores(const Sums& sums, const float* key_scale, const float* bias, const Row8& row,
                               int64_t first, const ToTile& to) {
  Sums x = all_to_units<Biased>(sums, key_scale, bias, row);
  hide_unseen(row, first, &x);
  to.put(_mm512_packs_epi32(x.a, x.b), _mm512_packs_epi32(x.c, x.d));
}

GRAFT_INLINE __m512i above_guess(__m512i units, const Row8& row) {
  const __m512i guess = _mm512_set1_epi32(static_cast<int32_t>(row.guess));
  return _mm512_sub_epi32(_mm512_max_epi32(units, _mm512_set1_epi32(INT32_MIN / 2)), guess);
}

template <bool Biased>
GRAFT_INLINE void store_scores(const Sums& sums, const float* key_scale, const float* bias, const Row8& row,
                               int64_t first, const ToBits& to) {
  Sums x = sums;
  if (Biased) {
    x = all_to_units<Biased>(sums, key_scale, bias, row);
    x = {above_guess(x.a, row), above_guess(x.b, row), above_guess(x.c, row), above_guess(x.d, row)};
  }
  hide_unseen(row, first, &x);
  const __m512i signs = _mm512_packs_epi16(_mm512_packs_epi32(x.a, x.b), _mm512_packs_epi32(x.c, x.d));
  *to.to = _mm512_cmpge_epi8_mask(signs, _mm512_setzero_si512());
}

// Four channels of a query times those of a panel's keys, added up. As instructions, because GCC 12 hoists broadcasts
// until sums no longer fit the registers.
GRAFT_INLINE void add_products(const uint8_t* query, const Sums& keys, Sums* sums) {
  __m512i quad;
  __asm__("vpbroadcastd %9, %4\n\t"
          "vpdpbusd %5, %4, %0\n\t"
          "vpdpbusd %6, %4, %1\n\t"
          "vpdpbusd %7, %4, %2\n\t"
          "vpdpbusd %8, %4, %3"
          : "+v"(sums->a), "+v"(sums->b), "+v"(sums->c), "+v"(sums->d), "=&v"(quad)
          : "v"(keys.a), "v"(keys.b), "v"(keys.c), "v"(keys.d), "m"(*reinterpret_cast<const int32_t*>(query)));
}

GRAFT_INLINE Sums load_four(const void* from) {
  const char* at = static_cast<const char*>(from);
  return {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64), _mm512_loadu_si512(at + 128),
          _mm512_loadu_si512(at + 192)};
}

// Sums of RM rows, and the same steps for each of them.
template <int RM>
struct RowSums {
  Sums first;
  RowSums<RM - 1> rest;

  template <bool Biased, class To>
  GRAFT_INLINE void begin(const Sums& offset, const Worth& worth, const Row8* row, const To& to) {
    first = first_sums<Biased>(offset, worth, *row, to);
    rest.template begin<Biased>(offset, worth, row + 1, to);
  }
  GRAFT_INLINE void add(const uint8_t* query, int64_t stride, const Sums& keys) {
    add_products(query, keys, &first);
    rest.add(query + stride, stride, keys);
  }
  template <bool Biased, class To>
  GRAFT_INLINE void store(const float* key_scale, const float* bias, const Row8* row, int64_t key, const To& to) const {
    store_scores<Biased>(first, key_scale, bias, *row, key, to);
    rest.template store<Biased>(key_scale, bias, row + 1, key, to.next());
  }
};

template <>
struct RowSums<0> {
  template <bool Biased, class To>
  GRAFT_INLINE void begin(const Sums&, const Worth&, const Row8*, const To&) {}
  GRAFT_INLINE void add(const uint8_t*, int64_t, const Sums&) {}
  template <bool Biased, class To>
  GRAFT_INLINE void store(const float*, const float*, const Row8*, int64_t, const To&) const {}
};

template <int RM, bool Biased, class To>
inline void score_rows8(const uint8_t* q, const Keys8& keys, int64_t n, int64_t first, const float* bias,
                        const Worth& worth, const Row8* rows, const To& to) {
  const int8_t* panel = keys.bytes + first * n * 4;
  RowSums<RM> sums;
  sums.template begin<Biased>(load_four(keys.offset + first), worth, rows, to);
  for (int64_t i = 0; i < n; ++i) {
    const int8_t* keys4 = panel + i * 256;
    for (int64_t x = 0; x < 256; x += 64) _mm_prefetch(keys4 + n * 256 + x, _MM_HINT_T0);  // the next panel's
    sums.add(q + i * 4, n * 4, load_four(keys4));
  }
  sums.template store<Biased>(keys.scale + first, bias, rows, first, to);
}

// Row r of the tile where it holds one bit a key, and how far it is to the next.
inline ToBits bits_of(const Topk8Scratch& x, int64_t r) {
  const int64_t stride = x.stride / 4;
  return {reinterpret_cast<uint64_t*>(x.tile) + r * stride, stride};
}

// Where the scores of row r and a chunk's next panel go.
template <class To>
inline To target_of(const Chunk& chunk, int64_t r, const Topk8Scratch& x) {
  if constexpr (std::is_same_v<To, ToBits>) {
    const ToBits row = bits_of(x, r);
    return {row.to + chunk.panels, row.stride};
  } else {
    constexpr int64_t packs = kPanelKeys / kPack;
    const int64_t width = x.groups * kPack, group = (chunk.before + chunk.panels) * packs % x.groups;
    return {x.tile + r * x.stride + chunk.panels * kPanelKeys, x.maxima + r * width + group * kPack, x.stride, width};
  }
}

template <bool Biased, class To, int RM = 6>
inline void score_panel8(const Problem& p, const Keys8& keys, int64_t first, const Chunk& chunk, int64_t r,
                         int64_t end, const Topk8Scratch& x) {
  const int64_t n = quads(p);
  const Worth worth = worth_of(p, keys.scale[first]);
  for (; r + RM <= end; r += RM) {
    score_rows8<RM, Biased>(x.bytes + r * n * 4, keys, n, first, x.bias, worth, x.rows + r, target_of<To>(chunk, r, x));
  }
  if constexpr (RM > 1) score_panel8<Biased, To, RM / 2>(p, keys, first, chunk, r, end, x);
}

// The panel's bias below `top`: -inf where no row of the block needs the key. False if that is everywhere.
inline bool load_panel_bias(const Walk& walk, int64_t first, float top, float* to) {
  bool any = false;
  for (int64_t x = 0; x < kPanelKeys; ++x) {
    const int64_t j = first + x;
    float bias = j >= walk.end ? -kInf : walk.bias[j];
    if (bias < walk.floor) bias = -kInf;
    any = any || bias != -kInf;
    to[x] = bias - top;
  }
  return any;
}

inline void hide(int16_t* scores, int64_t packs) {
  for (int64_t i = 0; i < packs; ++i) _mm512_storeu_si512(scores + i * kPack, _mm512_set1_epi16(kHidden));
}

// Nothing is found in the last packs of a chunk, which are there for the sake of whole vectors.
template <class To>
inline void clear_rest(const Chunk& chunk, int64_t used, int64_t rows, const Topk8Scratch& x) {
  const int64_t rest = chunk.packs - used;
  for (int64_t r = 0; r < rows; ++r) {
    int16_t* row = x.tile + r * x.stride;
    if constexpr (std::is_same_v<To, ToBits>) memset(row + used * 2, 0, static_cast<size_t>(rest) * sizeof(uint32_t));
    else hide(row + used * kPack, rest);
  }
}

// Scores panels from *first on until the tile is full or no keys are left.
template <class To>
inline Chunk score_chunk(const Problem& p, const Keys8& keys, const Walk& walk, float top, int64_t rows,
                         int64_t before, int64_t* first, const Topk8Scratch& x) {
  constexpr int64_t most_panels = (std::is_same_v<To, ToBits> ? kBitKeys : kTileKeys) / kPanelKeys;
  Chunk chunk{before, 0, 0, true};
  for (; *first < walk.end && chunk.panels < most_panels; *first += kPanelKeys) {
    if (walk.bias != nullptr && !load_panel_bias(walk, *first, top, x.bias)) continue;
    x.starts[chunk.panels] = static_cast<int32_t>(*first);
    if (walk.bias != nullptr) score_panel8<true, To>(p, keys, *first, chunk, 0, rows, x);
    else score_panel8<false, To>(p, keys, *first, chunk, 0, rows, x);
    ++chunk.panels;
  }
  const int64_t used = chunk.panels * (kPanelKeys / kPack);
  chunk.packs = round_up(used, kPacksAtOnce);
  clear_rest<To>(chunk, used, rows, x);
  if (chunk.panels > 0) chunk.adjoining = x.starts[chunk.panels - 1] - x.starts[0] == (chunk.panels - 1) * kPanelKeys;
  return chunk;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_SCORE8_H_
