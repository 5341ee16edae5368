// Which of a tile's keys can be among a row's k best: a level proved from few comparisons, and what exceeds it.
//
// What is found is listed, first as one integer a key, its 16-bit score above its place in the tile; everything after
// the first pass reads a short list.
#ifndef GRAFT_PICK8_H_
#define GRAFT_PICK8_H_

#include "score8.h"

namespace graft {
namespace {

inline __m512i load_pack(const int16_t* from) { return _mm512_loadu_si512(from); }

// Groups of keys, in vectors: enough that the k-th largest of their maxima lies near the k-th largest score.
inline int64_t group_packs(int64_t k, int64_t packs) {
  return least(packs, round_up(ceil_div(2 * k, kPack), kPacksAtOnce));
}

// The level that at least k numbers reach, and at most `slack` more; where ties forbid that, the highest that k
// reach; kHidden where there are not k. count(level) tells how many reach it; a good guess saves most of the steps.
template <class Count>
inline int search_level(Count count, int64_t k, int64_t slack, int guess, int step) {
  int low = kHidden, high = -kHidden, at = guess;
  while (high - low > 1) {
    if (at <= low || at >= high) at = low + (high - low) / 2;
    const int64_t n = count(at);
    if (n >= k && n <= k + slack) return at;
    if (n >= k) low = at, at = high < -kHidden ? low : low + step;
    else high = at, at = low > kHidden ? high : high - step;
    step *= 2;
  }
  return low;
}

// Of the groups' maxima.
inline int find_level(const int16_t* x, int64_t packs, int64_t k, int guess) {
  const auto count = [&](int level) {
    const __m512i at = _mm512_set1_epi16(static_cast<int16_t>(level));
    int64_t reach = 0;
    for (int64_t i = 0; i < packs; i += kPacksAtOnce) {
#pragma GCC unroll 8
      for (int y = 0; y < kPacksAtOnce; ++y) {
        reach += __builtin_popcount(_mm512_cmpge_epi16_mask(load_pack(x + (i + y) * kPack), at));
      }
    }
    return reach;
  };
  return search_level(count, k, k / 16, guess, 64);
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

// The order in which store_scores leaves a panel's keys, by half packs.
alignas(64) constexpr int32_t kPlaces[4][16] = {
    {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23},
    {8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31},
    {32, 33, 34, 35, 48, 49, 50, 51, 36, 37, 38, 39, 52, 53, 54, 55},
    {40, 41, 42, 43, 56, 57, 58, 59, 44, 45, 46, 47, 60, 61, 62, 63},
};

// Lists the keys of a row's hits. The list has room for a vector more.
inline int64_t list_hits(const int16_t* scores, int64_t hits, const uint32_t* from, int32_t* to) {
  int64_t count = 0;
  for (int64_t i = 0; i < hits; ++i) {
    const uint32_t half = from[i] >> 16, bits = from[i] & 0xffffu;
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scores + half * 16));
    const __m512i first = _mm512_set1_epi32(static_cast<int>(half / 4 * kPanelKeys));
    const __m512i place = _mm512_add_epi32(_mm512_load_si512(kPlaces[half % 4]), first);
    const __m512i both = _mm512_or_si512(_mm512_slli_epi32(_mm512_cvtepi16_epi32(narrow), 16), place);
    _mm512_storeu_si512(to + count, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), both));
    count += __builtin_popcount(bits);
  }
  return count;
}

inline __mmask16 lanes_of(int64_t n) { return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffffu); }

// Adds a tile's listed keys to what the row has found.
inline void keep_listed(const int32_t* entries, const Chunk& chunk, const Topk8Scratch& x, Found* f) {
  const int64_t n = f->listed;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i entry = _mm512_loadu_si512(entries + i);
    const __m512i place = _mm512_and_si512(entry, _mm512_set1_epi32(0xffff));
    __m512i ids = _mm512_add_epi32(place, _mm512_set1_epi32(x.starts[0]));
    if (!chunk.adjoining) {
      const __m512i panel = _mm512_srli_epi32(place, 6);
      ids = _mm512_mask_i32gather_epi32(place, lanes_of(n - i), panel, x.starts, 4);
      ids = _mm512_add_epi32(ids, _mm512_and_si512(place, _mm512_set1_epi32(kPanelKeys - 1)));
    }
    _mm512_storeu_si512(f->ids + f->count + i, ids);
    _mm512_storeu_si512(f->scores + f->count + i, _mm512_srai_epi32(entry, 16));
  }
  f->count += n;
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

// The same level as find_level, of what the row has found.
inline int raise_level(const Found& f, int64_t k, int guess) {
  const auto count = [&](int level) {
    const __m512i at = _mm512_set1_epi32(level);
    int64_t reach = 0;
    for (int64_t i = 0; i < f.count; i += 16) {
      const __m512i scores = _mm512_loadu_si512(f.scores + i);
      reach += __builtin_popcount(_mm512_mask_cmpge_epi32_mask(lanes_of(f.count - i), scores, at));
    }
    return reach;
  };
  return search_level(count, k, k / 16, guess, 32);
}

inline void add_ids(__mmask16 chosen, __m512i ids, Candidates* c) {
  Avx512::compress(c->ids + c->count, chosen, _mm512_castsi512_ps(ids));
  c->count += Avx512::count(chosen);
}

// Adds the found keys whose scores reach `level`; the others stay.
inline void add_best(int level, Found* f, Candidates* c) {
  const __m512i at = _mm512_set1_epi32(level);
  int64_t others = 0;
  for (int64_t i = 0; i < f->count; i += 16) {
    const __mmask16 lanes = lanes_of(f->count - i);
    const __m512i scores = _mm512_loadu_si512(f->scores + i), ids = _mm512_loadu_si512(f->ids + i);
    const __mmask16 chosen = _mm512_mask_cmpge_epi32_mask(lanes, scores, at);
    const __mmask16 left = static_cast<__mmask16>(lanes & ~chosen);
    add_ids(chosen, ids, c);
    _mm512_storeu_si512(f->scores + others, _mm512_maskz_compress_epi32(left, scores));
    _mm512_storeu_si512(f->ids + others, _mm512_maskz_compress_epi32(left, ids));
    others += Avx512::count(left);
  }
  f->count = others;
}

// Adds the found keys whose scores, wrong by as much as the key allows, reach `wanted`.
inline void add_possible(const Keys8& keys, const Row8& row, float wanted, const Found& f, Candidates* c) {
  const __m512 unit = _mm512_set1_ps(row.unit), want = _mm512_set1_ps(wanted - row.slack);
  const __m512 length = _mm512_set1_ps(1.001f * row.length), error = _mm512_set1_ps(1.001f * row.error);
  for (int64_t i = 0; i < f.count; i += 16) {
    const __mmask16 lanes = lanes_of(f.count - i);
    const __m512i ids = _mm512_loadu_si512(f.ids + i);
    const __m512 score = _mm512_cvtepi32_ps(_mm512_loadu_si512(f.scores + i));
    const __m512i spread = _mm512_mask_i32gather_epi32(ids, lanes, ids, keys.spread, 4);
    const __m512 key_error = _mm512_castsi512_ps(_mm512_and_si512(spread, _mm512_set1_epi32(-65536)));
    const __m512 key_norm = _mm512_castsi512_ps(_mm512_slli_epi32(spread, 16));
    __m512 most_score = _mm512_fmadd_ps(key_norm, error, _mm512_mul_ps(score, unit));
    most_score = _mm512_fmadd_ps(key_error, length, most_score);
    add_ids(_mm512_mask_cmp_ps_mask(lanes, most_score, want, _CMP_GE_OQ), ids, c);
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_PICK8_H_
