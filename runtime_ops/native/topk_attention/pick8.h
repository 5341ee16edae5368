// Which of a tile's keys can be among a row's k best: a level proved from few comparisons, and what exceeds it.
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

// The largest scores of the groups that `step` vectors hold; a group's members lie `step` vectors apart.
inline void find_maxima(const int16_t* scores, int64_t packs, int64_t step, int16_t* to) {
  for (int64_t from = 0; from < step; from += kPacksAtOnce) {
    __m512i high[kPacksAtOnce];
#pragma GCC unroll 8
    for (int x = 0; x < kPacksAtOnce; ++x) high[x] = load_pack(scores + (from + x) * kPack);
    for (int64_t i = from + step; i < packs; i += step) {
#pragma GCC unroll 8
      for (int x = 0; x < kPacksAtOnce; ++x) {
        high[x] = _mm512_max_epi16(high[x], load_pack(scores + (i + x) * kPack));
      }
    }
#pragma GCC unroll 8
    for (int x = 0; x < kPacksAtOnce; ++x) _mm512_storeu_si512(to + (from + x) * kPack, high[x]);
  }
}

inline int64_t count_from(const int16_t* x, int64_t packs, int level) {
  const __m512i at = _mm512_set1_epi16(static_cast<int16_t>(level));
  int64_t count = 0;
  for (int64_t i = 0; i < packs; i += kPacksAtOnce) {
#pragma GCC unroll 8
    for (int y = 0; y < kPacksAtOnce; ++y) {
      count += __builtin_popcount(_mm512_cmpge_epi16_mask(load_pack(x + (i + y) * kPack), at));
    }
  }
  return count;
}

// A level that at least k of the numbers reach, and few more; kHidden where there is none.
inline int find_level(const int16_t* x, int64_t packs, int64_t k) {
  int low = kHidden, high = -kHidden;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    const int64_t count = count_from(x, packs, middle);
    if (count >= k && count <= k + k / 16) return middle;
    if (count >= k) low = middle;
    else high = middle;
  }
  return low;
}

// One vector of scores, some of which are wanted.
struct Hit {
  uint32_t pack, lanes;
};

// The vectors in which scores lie in `from` .. `until`. Without a branch: they cannot be foreseen.
inline int64_t find_hits(const int16_t* scores, int64_t packs, int from, int until, Hit* to) {
  const __m512i low = _mm512_set1_epi16(static_cast<int16_t>(from));
  const __m512i width = _mm512_set1_epi16(static_cast<int16_t>(until - from));
  int64_t count = 0;
  for (int64_t i = 0; i < packs; ++i) {
    const __m512i above = _mm512_sub_epi16(load_pack(scores + i * kPack), low);
    const uint32_t lanes = _mm512_cmple_epu16_mask(above, width);
    to[count] = {static_cast<uint32_t>(i), lanes};
    count += lanes != 0;
  }
  return count;
}

// The places of few hits' lanes: one or two are the rule, and which of these cannot be foreseen.
inline int32_t* add_sparse(const Hit* hits, int64_t count, int32_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t first = static_cast<int32_t>(hits[i].pack * kPack);
    uint32_t lanes = hits[i].lanes;
    *to++ = first + __builtin_ctz(lanes);
    lanes &= lanes - 1;
    *to = first + __builtin_ctz(lanes | 0x80000000u);
    to += lanes != 0;
    for (lanes &= lanes - 1; lanes != 0; lanes &= lanes - 1) *to++ = first + __builtin_ctz(lanes);
  }
  return to;
}

inline int32_t* add_dense(const Hit* hits, int64_t count, int32_t* to) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t lanes = hits[i].lanes;
    const __m512i first = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(hits[i].pack * kPack)));
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(16));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes), first));
    to += __builtin_popcount(lanes & 0xffffu);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes >> 16), second));
    to += __builtin_popcount(lanes >> 16);
  }
  return to;
}

// The places of the scores in `from` .. `until`, in rising order.
inline int64_t find_places(const int16_t* scores, int64_t packs, int from, int until, Hit* hits, int32_t* to) {
  if (until < from) return 0;
  const int64_t count = find_hits(scores, packs, from, until, hits);
  return (4 * count > 3 * packs ? add_dense(hits, count, to) : add_sparse(hits, count, to)) - to;
}

inline __mmask16 lanes_of(int64_t n) { return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffffu); }

// The keys at `n` places; the low bits undo the order that store_scores leaves within a panel.
inline __m512i keys_at(__m512i place, const int32_t* starts, __mmask16 lanes) {
  const __m512i panel = _mm512_srli_epi32(place, 6);
  const __m512i first = _mm512_mask_i32gather_epi32(place, lanes, panel, starts, 4);
  const __m512i same = _mm512_and_si512(place, _mm512_set1_epi32(0x23));
  const __m512i down = _mm512_and_si512(_mm512_srli_epi32(place, 1), _mm512_set1_epi32(0x0c));
  const __m512i up = _mm512_and_si512(_mm512_slli_epi32(place, 2), _mm512_set1_epi32(0x10));
  return _mm512_add_epi32(first, _mm512_or_si512(same, _mm512_or_si512(down, up)));
}

// A gather takes four bytes: the score and the one behind it, shifted out.
inline __m512i scores_at(__m512i place, const int16_t* scores, __mmask16 lanes) {
  const __m512i pair = _mm512_mask_i32gather_epi32(place, lanes, place, scores, 2);
  return _mm512_srai_epi32(_mm512_slli_epi32(pair, 16), 16);
}

// Adds the keys at those places whose scores reach `level`; the other places move to the front. Returns how many.
inline int64_t add_best(const int32_t* starts, const int16_t* scores, int level, int64_t n, int32_t* places,
                        Candidates* c) {
  const __m512i at = _mm512_set1_epi32(level);
  int64_t others = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_of(n - i);
    const __m512i place = _mm512_loadu_si512(places + i);
    const __mmask16 chosen = _mm512_mask_cmpge_epi32_mask(lanes, scores_at(place, scores, lanes), at);
    const __mmask16 left = static_cast<__mmask16>(lanes & ~chosen);
    const __m512i ids = keys_at(place, starts, lanes);
    Avx512::compress(c->ids + c->count, chosen, _mm512_castsi512_ps(ids));
    c->count += Avx512::count(chosen);
    _mm512_storeu_si512(places + others, _mm512_maskz_compress_epi32(left, place));
    others += Avx512::count(left);
  }
  return others;
}

// Adds the keys at those places whose scores, wrong by as much as the key allows, reach `wanted`.
inline void add_possible(const int32_t* starts, const int16_t* scores, const Keys8& keys, const Row8& row, float wanted,
                         int64_t n, const int32_t* places, Candidates* c) {
  const __m512 unit = _mm512_set1_ps(row.unit), want = _mm512_set1_ps(wanted - row.slack);
  const __m512 length = _mm512_set1_ps(1.001f * row.length), error = _mm512_set1_ps(1.001f * row.error);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_of(n - i);
    const __m512i place = _mm512_loadu_si512(places + i), ids = keys_at(place, starts, lanes);
    const __m512 score = _mm512_cvtepi32_ps(scores_at(place, scores, lanes));
    const __m512i spread = _mm512_mask_i32gather_epi32(ids, lanes, ids, keys.spread, 4);
    const __m512 key_error = _mm512_castsi512_ps(_mm512_and_si512(spread, _mm512_set1_epi32(-65536)));
    const __m512 key_norm = _mm512_castsi512_ps(_mm512_slli_epi32(spread, 16));
    __m512 most_score = _mm512_fmadd_ps(key_norm, error, _mm512_mul_ps(score, unit));
    most_score = _mm512_fmadd_ps(key_error, length, most_score);
    const __mmask16 chosen = _mm512_mask_cmp_ps_mask(lanes, most_score, want, _CMP_GE_OQ);
    Avx512::compress(c->ids + c->count, chosen, _mm512_castsi512_ps(ids));
    c->count += Avx512::count(chosen);
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_PICK8_H_
