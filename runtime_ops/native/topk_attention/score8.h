// Scores of a block of query rows against a chunk of keys, from 8-bit integers, as 16-bit integers: small enough
// to stay in the second cache, and compared 32 at a time.
#ifndef GRAFT_SCORE8_H_
#define GRAFT_SCORE8_H_

#include "quantised.h"
#include "topk.h"

namespace graft {
namespace {

constexpr int64_t kMostKeys = 32768;  // scored before any row selects among them
constexpr int64_t kPack = 32;         // 16-bit scores in a vector
constexpr int64_t kPacksAtOnce = 8;   // a row's packs are padded to a multiple of this
constexpr int16_t kHidden = -32768;

struct Row8 {
  Candidates best;  // in fp32; what does not reach the threshold is none of the k best
  float scale, unit;
  float bias_unit;      // 1 / unit
  float length, error;  // of the query: its norm, and that of what its bytes miss
  float slack;          // what fp32 and 16 bits may round: part of every key's error bound
  float bound;          // no key's score is further off, slack included
  float base;           // what 16-bit scores leave out
  int64_t limit;
  int needed, level;    // every 16-bit score from `level` on has been looked at
  bool certain;         // the tile alone has k keys that are scored in fp32
  int32_t* places;      // in the tile, of others
  int64_t others;
};

struct Hit;

struct Topk8Scratch {
  float *queries, *query, *whole, *rest, *out, *pool, *bias;
  uint8_t* bytes;   // queries, 128 added
  int16_t* tile;    // scores: [rows][stride]
  int64_t stride;
  int16_t* maxima;  // of groups of keys, for one row
  int32_t* starts;  // of the tile's panels: their first keys
  Hit* hits;
  int32_t* found;   // places in the tile: [2][stride], for a row and the next
  Row8* rows;
};

// Panels of the tile in use.
struct Chunk {
  int64_t panels, packs;
};

// Four vectors of scores in units, as 16 bits. Packing takes 4 keys from either vector in turn: see key_at.
template <bool Biased>
inline void store_scores(const __m512i* sums, const float* key_scale, const float* bias, const Row8& row,
                         int64_t first, int16_t* to) {
  const int64_t seen = row.limit - first + 1;
  __m512i whole[4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[x]), _mm512_loadu_ps(key_scale + 16 * x));
    if (Biased) {  // -inf becomes the lowest integer
      const __m512 more = _mm512_mul_ps(_mm512_loadu_ps(bias + 16 * x), _mm512_set1_ps(row.bias_unit));
      score = _mm512_fmadd_ps(score, _mm512_set1_ps(row.scale), more);
    }
    whole[x] = _mm512_cvtps_epi32(score);
  }
  if (seen < kPanelKeys) {
    const uint64_t visible = seen <= 0 ? 0 : (uint64_t{1} << seen) - 1;
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      const __mmask16 mask = static_cast<__mmask16>(visible >> (16 * x));
      whole[x] = _mm512_mask_mov_epi32(_mm512_set1_epi32(INT32_MIN), mask, whole[x]);
    }
  }
  _mm512_storeu_si512(to, _mm512_packs_epi32(whole[0], whole[1]));
  _mm512_storeu_si512(to + kPack, _mm512_packs_epi32(whole[2], whole[3]));
}

// As an instruction, because GCC 12 copies the sum before and after its intrinsic.
inline void add_products(__m512i query, __m512i key, __m512i* sum) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(query), "v"(key));
}

template <int RM, bool Biased>
inline void score_rows8(const uint8_t* q, const Keys8& keys, int64_t n, int64_t first, const float* bias,
                        const Row8* rows, int64_t stride, int16_t* to) {
  const int8_t* panel = keys.bytes + first * n * 4;
  __m512i sum[RM][4];
#pragma GCC unroll 8
  for (int r = 0; r < RM; ++r) {
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) sum[r][x] = _mm512_loadu_si512(keys.offset + first + 16 * x);
  }
  for (int64_t i = 0; i < n; ++i, panel += 256) {
    __m512i key[4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) key[x] = _mm512_loadu_si512(panel + 64 * x);
#pragma GCC unroll 8
    for (int r = 0; r < RM; ++r) {
      int32_t quad;
      memcpy(&quad, q + (r * n + i) * 4, 4);
      const __m512i query = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) add_products(query, key[x], &sum[r][x]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < RM; ++r) {
    store_scores<Biased>(sum[r], keys.scale + first, bias, rows[r], first, to + r * stride);
  }
}

template <bool Biased, int RM = 6>
inline void score_panel8(const Problem& p, const Keys8& keys, int64_t first, int64_t at, int64_t r, int64_t end,
                         const Topk8Scratch& x) {
  const int64_t n = quads(p);
  for (; r + RM <= end; r += RM) {
    score_rows8<RM, Biased>(x.bytes + r * n * 4, keys, n, first, x.bias, x.rows + r, x.stride,
                            x.tile + r * x.stride + at * kPanelKeys);
  }
  if constexpr (RM > 1) score_panel8<Biased, RM / 2>(p, keys, first, at, r, end, x);
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

// Scores panels from *first on until the tile is full or no keys are left.
inline Chunk score_chunk(const Problem& p, const Keys8& keys, const Walk& walk, float top, int64_t rows,
                         int64_t* first, const Topk8Scratch& x) {
  Chunk chunk{0, 0};
  for (; *first < walk.end && chunk.panels < kMostKeys / kPanelKeys; *first += kPanelKeys) {
    if (walk.bias != nullptr && !load_panel_bias(walk, *first, top, x.bias)) continue;
    x.starts[chunk.panels] = static_cast<int32_t>(*first);
    if (walk.bias != nullptr) score_panel8<true>(p, keys, *first, chunk.panels, 0, rows, x);
    else score_panel8<false>(p, keys, *first, chunk.panels, 0, rows, x);
    ++chunk.panels;
  }
  const int64_t used = chunk.panels * (kPanelKeys / kPack);
  chunk.packs = round_up(used, kPacksAtOnce);
  for (int64_t r = 0; r < rows; ++r) {
    int16_t* rest = x.tile + r * x.stride + used * kPack;
    for (int64_t i = used; i < chunk.packs; ++i, rest += kPack) _mm512_storeu_si512(rest, _mm512_set1_epi16(kHidden));
  }
  return chunk;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_SCORE8_H_
