// Scores of a block of query rows against a chunk of keys, from 8-bit integers, as 16-bit integers: small enough
// to stay in the second cache, and compared 32 at a time.
#ifndef GRAFT_SCORE8_H_
#define GRAFT_SCORE8_H_

#include "quantised.h"
#include "topk.h"

namespace graft {
namespace {

constexpr int64_t kTileKeys = 4096;   // scored before rows list what they may need: a tile stays in the second cache
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
  int16_t* tile;    // scores: [rows][stride]
  int64_t stride;
  int16_t* maxima;  // of groups of keys: [rows][groups][kPack]
  int64_t groups;
  int32_t* starts;  // of the tile's panels: their first keys
  uint32_t *masks, *hits;  // [kRowsAtOnce][packs], [kRowsAtOnce][2 packs + a vector]
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

// A panel's scores as 16 bits, and their groups' maxima so far. Packing takes 4 keys from either vector in turn: see
// kPlaces.
template <bool Biased>
GRAFT_INLINE void store_scores(const Sums& sums, const float* key_scale, const float* bias, const Row8& row,
                               int64_t first, int16_t* to, int16_t* high) {
  __m512i a = to_units<Biased>(sums.a, key_scale, bias, row);
  __m512i b = to_units<Biased>(sums.b, key_scale + 16, bias + 16, row);
  __m512i c = to_units<Biased>(sums.c, key_scale + 32, bias + 32, row);
  __m512i d = to_units<Biased>(sums.d, key_scale + 48, bias + 48, row);
  if (__builtin_expect(row.sight.last - first + 1 < kPanelKeys || row.sight.first > first, 0)) {
    const uint64_t visible = seen_bits(row.sight, first);
    a = hide_from(a, visible), b = hide_from(b, visible >> 16);
    c = hide_from(c, visible >> 32), d = hide_from(d, visible >> 48);
  }
  a = _mm512_packs_epi32(a, b), c = _mm512_packs_epi32(c, d);
  _mm512_storeu_si512(to, a);
  _mm512_storeu_si512(to + kPack, c);
  _mm512_storeu_si512(high, _mm512_max_epi16(_mm512_loadu_si512(high), a));
  _mm512_storeu_si512(high + kPack, _mm512_max_epi16(_mm512_loadu_si512(high + kPack), c));
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

  GRAFT_INLINE void begin(const Sums& offset) { first = offset, rest.begin(offset); }
  GRAFT_INLINE void add(const uint8_t* query, int64_t stride, const Sums& keys) {
    add_products(query, keys, &first);
    rest.add(query + stride, stride, keys);
  }
  template <bool Biased>
  GRAFT_INLINE void store(const float* key_scale, const float* bias, const Row8* row, int64_t key, int64_t stride,
                          int16_t* to, int64_t high_stride, int16_t* high) const {
    store_scores<Biased>(first, key_scale, bias, *row, key, to, high);
    rest.template store<Biased>(key_scale, bias, row + 1, key, stride, to + stride, high_stride, high + high_stride);
  }
};

template <>
struct RowSums<0> {
  GRAFT_INLINE void begin(const Sums&) {}
  GRAFT_INLINE void add(const uint8_t*, int64_t, const Sums&) {}
  template <bool Biased>
  GRAFT_INLINE void store(const float*, const float*, const Row8*, int64_t, int64_t, int16_t*, int64_t,
                          int16_t*) const {}
};

template <int RM, bool Biased>
inline void score_rows8(const uint8_t* q, const Keys8& keys, int64_t n, int64_t first, const float* bias,
                        const Row8* rows, int64_t stride, int16_t* to, int64_t high_stride, int16_t* high) {
  const int8_t* panel = keys.bytes + first * n * 4;
  RowSums<RM> sums;
  sums.begin(load_four(keys.offset + first));
  for (int64_t i = 0; i < n; ++i) {
    const int8_t* keys4 = panel + i * 256;
    for (int64_t x = 0; x < 256; x += 64) _mm_prefetch(keys4 + n * 256 + x, _MM_HINT_T0);  // the next panel's
    sums.add(q + i * 4, n * 4, load_four(keys4));
  }
  sums.template store<Biased>(keys.scale + first, bias, rows, first, stride, to, high_stride, high);
}

template <bool Biased, int RM = 6>
inline void score_panel8(const Problem& p, const Keys8& keys, int64_t first, const Chunk& chunk, int64_t r,
                         int64_t end, const Topk8Scratch& x) {
  const int64_t n = quads(p), at = chunk.panels, width = x.groups * kPack;
  const int64_t group = (chunk.before + at) * (kPanelKeys / kPack) % x.groups;
  for (; r + RM <= end; r += RM) {
    score_rows8<RM, Biased>(x.bytes + r * n * 4, keys, n, first, x.bias, x.rows + r, x.stride,
                            x.tile + r * x.stride + at * kPanelKeys, width, x.maxima + r * width + group * kPack);
  }
  if constexpr (RM > 1) score_panel8<Biased, RM / 2>(p, keys, first, chunk, r, end, x);
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

// Scores panels from *first on until the tile is full or no keys are left.
inline Chunk score_chunk(const Problem& p, const Keys8& keys, const Walk& walk, float top, int64_t rows,
                         int64_t before, int64_t* first, const Topk8Scratch& x) {
  Chunk chunk{before, 0, 0, true};
  for (; *first < walk.end && chunk.panels < kTileKeys / kPanelKeys; *first += kPanelKeys) {
    if (walk.bias != nullptr && !load_panel_bias(walk, *first, top, x.bias)) continue;
    x.starts[chunk.panels] = static_cast<int32_t>(*first);
    if (walk.bias != nullptr) score_panel8<true>(p, keys, *first, chunk, 0, rows, x);
    else score_panel8<false>(p, keys, *first, chunk, 0, rows, x);
    ++chunk.panels;
  }
  const int64_t used = chunk.panels * (kPanelKeys / kPack);
  chunk.packs = round_up(used, kPacksAtOnce);
  for (int64_t r = 0; r < rows; ++r) hide(x.tile + r * x.stride + used * kPack, chunk.packs - used);
  if (chunk.panels > 0) chunk.adjoining = x.starts[chunk.panels - 1] - x.starts[0] == (chunk.panels - 1) * kPanelKeys;
  return chunk;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_SCORE8_H_
