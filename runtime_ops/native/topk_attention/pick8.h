// Which of a tile's keys can be among a row's k best: a level proved from few comparisons, and what exceeds it.
//
// What is found is listed, first by its place in the tile; everything after the first pass reads a short list.
#ifndef GRAFT_PICK8_H_
#define GRAFT_PICK8_H_

#include "score8.h"

namespace graft {
namespace {

inline __m512i load_pack(const int16_t* from) { return _mm512_loadu_si512(from); }

// By the groups' maxima.
inline int find_level(const int16_t* x, int64_t packs, int64_t k, int guess) {
  const auto above = [&](const int64_t* levels, int64_t* counts) {
    __m512i at[kLevels];
    for (int y = 0; y < kLevels; ++y) at[y] = _mm512_set1_epi16(static_cast<int16_t>(levels[y])), counts[y] = 0;
    for (int64_t i = 0; i < packs; ++i) {
      const __m512i pack = load_pack(x + i * kPack);
      for (int y = 0; y < kLevels; ++y) counts[y] += __builtin_popcount(_mm512_cmpgt_epi16_mask(pack, at[y]));
    }
  };
  return reached_by(above, packs * kPack, k, guess);
}

// One bit a key: whether its score reaches the level.
inline void find_masks(const int16_t* scores, int64_t packs, int level, uint32_t* to) {
  const __m512i at = _mm512_set1_epi16(static_cast<int16_t>(level));
  for (int64_t i = 0; i < packs; i += kPacksAtOnce) {
#pragma GCC unroll 8
    for (int y = 0; y < kPacksAtOnce; ++y) {
      to[i + y] = _mm512_cmpge_epi16_mask(load_pack(scores + (i + y) * kPack), at);
    }
  }
}

// Half packs with a bit set, their numbers above their bits. Without a branch: they cannot be foreseen.
inline int64_t find_hits(const uint32_t* masks, int64_t packs, uint32_t* to) {
  const uint16_t* half = reinterpret_cast<const uint16_t*>(masks);
  const __m512i more = _mm512_set1_epi32(16 << 16);
  __m512i number = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 16);
  int64_t count = 0;
  for (int64_t i = 0; i < 2 * packs; i += 16) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i)));
    const __mmask16 any = _mm512_test_epi32_mask(bits, bits);
    _mm512_storeu_si512(to + count, _mm512_maskz_compress_epi32(any, _mm512_or_si512(bits, number)));
    count += __builtin_popcount(any);
    number = _mm512_add_epi32(number, more);
  }
  return count;
}

inline __mmask16 lanes_of(int64_t n) { return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffffu); }

// The number of each lane's lowest bit: a power of two, as a float, keeps it in its exponent.
inline __m512i lowest_bits(__m512i bits) {
  const __m512i one = _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits));
  const __m512i power = _mm512_castps_si512(_mm512_cvtepi32_ps(one));
  return _mm512_sub_epi32(_mm512_srli_epi32(power, 23), _mm512_set1_epi32(127));
}

// Where in its row's tile each bit of the hits stands: all hits' first ones, then the second ones of those that have
// more, and so on. Takes the hits apart. There is room for a vector more.
inline int64_t list_hits(int64_t hits, uint32_t* from, int32_t* to) {
  int64_t count = 0;
  while (hits > 0) {
    int64_t left = 0;
    for (int64_t i = 0; i < hits; i += 16) {
      const __m512i hit = _mm512_loadu_si512(from + i), bits = _mm512_and_si512(hit, _mm512_set1_epi32(0xffff));
      const __m512i half = _mm512_slli_epi32(_mm512_srli_epi32(hit, 16), 4);
      _mm512_storeu_si512(to + count + i, _mm512_add_epi32(half, lowest_bits(bits)));
      const __m512i more = _mm512_and_si512(hit, _mm512_sub_epi32(hit, _mm512_set1_epi32(1)));
      const __mmask16 any = _mm512_mask_test_epi32_mask(lanes_of(hits - i), more, _mm512_set1_epi32(0xffff));
      _mm512_storeu_si512(from + left, _mm512_maskz_compress_epi32(any, more));
      left += Avx512::count(any);
    }
    count += hits;
    hits = left;
  }
  return count;
}

// The keys at these places of a tile, or of its bits. Packing leaves a panel's keys in turns of four: of two vectors at a
// time, or of all four of them. See store_scores.
inline __m512i keys_at(__m512i place, bool tile, const Chunk& chunk, const int32_t* starts, __mmask16 lanes) {
  const unsigned down = tile ? 1 : 2;
  const __m512i moved = _mm512_set1_epi32(tile ? 0x1c : 0x3c), high = _mm512_set1_epi32(0x30);
  const __m512i turned = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(place, down), _mm512_set1_epi32(0x0c)),
                                         _mm512_and_si512(_mm512_slli_epi32(place, 2), _mm512_and_si512(moved, high)));
  const __m512i key = _mm512_or_si512(turned, _mm512_andnot_si512(moved, place));
  if (chunk.adjoining) return _mm512_add_epi32(key, _mm512_set1_epi32(starts[0]));
  const __m512i panel = _mm512_srli_epi32(key, 6);
  const __m512i first = _mm512_mask_i32gather_epi32(panel, lanes, panel, starts, 4);
  return _mm512_add_epi32(first, _mm512_and_si512(key, _mm512_set1_epi32(kPanelKeys - 1)));
}

// Adds a tile's listed keys, whose places these are, to what the row has found; their scores too, if there are any.
inline void keep_listed(const int32_t* places, bool tile, const int16_t* scores, const Chunk& chunk,
                        const int32_t* starts, Found* f) {
  for (int64_t i = 0; i < f->listed; i += 16) {
    const __m512i place = _mm512_loadu_si512(places + i);
    _mm512_storeu_si512(f->ids + f->count + i, keys_at(place, tile, chunk, starts, lanes_of(f->listed - i)));
  }
  for (int64_t i = 0; scores != nullptr && i < f->listed; ++i) f->scores[f->count + i] = scores[places[i]];
  f->count += f->listed;
}

// Forgets what does not reach the level.
inline void drop_below(int level, Found* f) {
  const __m512i at = _mm512_set1_epi32(level);
  int64_t kept = 0;
  for (int64_t i = 0; i < f->count; i += 16) {
    const __m512i scores = _mm512_loadu_si512(f->scores + i), ids = _mm512_loadu_si512(f->ids + i);
    const __mmask16 stays = _mm512_mask_cmpge_epi32_mask(lanes_of(f->count - i), scores, at);
    _mm512_storeu_si512(f->scores + kept, _mm512_maskz_compress_epi32(stays, scores));
    _mm512_storeu_si512(f->ids + kept, _mm512_maskz_compress_epi32(stays, ids));
    kept += Avx512::count(stays);
  }
  f->count = kept;
}

// The same level as find_level's, of what the row has found.
inline int raise_level(const Found& f, int64_t k, int guess) {
  const auto above = [&](const int64_t* levels, int64_t* counts) {
    for (int y = 0; y < kLevels; ++y) counts[y] = 0;
    for (int64_t i = 0; i < f.count; i += 16) {
      const __m512i scores = _mm512_loadu_si512(f.scores + i);
      for (int y = 0; y < kLevels; ++y) {
        const __m512i at = _mm512_set1_epi32(static_cast<int>(levels[y]));
        counts[y] += __builtin_popcount(_mm512_mask_cmpgt_epi32_mask(lanes_of(f.count - i), scores, at));
      }
    }
  };
  return reached_by(above, f.count, k, guess);
}

// Forgets keys whose scores, wrong by as much as the key itself allows, do not reach `wanted`. Scores are not needed after.
inline void drop_impossible(const Keys8& keys, const Row8& row, float wanted, Found* f) {
  const __m512 unit = _mm512_set1_ps(row.unit), want = _mm512_set1_ps(wanted - row.slack);
  const __m512 length = _mm512_set1_ps(1.001f * row.length), error = _mm512_set1_ps(1.001f * row.error);
  int64_t kept = 0;
  for (int64_t i = 0; i < f->count; i += 16) {
    const __mmask16 lanes = lanes_of(f->count - i);
    const __m512i ids = _mm512_loadu_si512(f->ids + i);
    const __m512 score = _mm512_cvtepi32_ps(_mm512_loadu_si512(f->scores + i));
    const __m512i spread = _mm512_mask_i32gather_epi32(ids, lanes, ids, keys.spread, 4);
    const __m512 key_error = _mm512_castsi512_ps(_mm512_and_si512(spread, _mm512_set1_epi32(-65536)));
    const __m512 key_norm = _mm512_castsi512_ps(_mm512_slli_epi32(spread, 16));
    __m512 most_score = _mm512_fmadd_ps(key_norm, error, _mm512_mul_ps(score, unit));
    most_score = _mm512_fmadd_ps(key_error, length, most_score);
    const __mmask16 stays = _mm512_mask_cmp_ps_mask(lanes, most_score, want, _CMP_GE_OQ);
    _mm512_storeu_si512(f->ids + kept, _mm512_maskz_compress_epi32(stays, ids));
    kept += Avx512::count(stays);
  }
  f->count = kept;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_PICK8_H_
