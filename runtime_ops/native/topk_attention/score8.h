// Scores of a block of query rows against a chunk of keys, from 8-bit integers, as 16-bit integers: small enough
// to stay in the second cache, and compared 32 at a time.
#ifndef GRAFT_SCORE8_H_
#define GRAFT_SCORE8_H_

#include <type_traits>

#include "search8.h"

namespace graft {
namespace {

constexpr int64_t kRowsAtOnce = 2;

#define GRAFT_INLINE __attribute__((always_inline)) inline

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

GRAFT_INLINE __m512i hide_from(__m512i scores, uint64_t visible) {
  return _mm512_mask_mov_epi32(_mm512_set1_epi32(INT32_MIN), static_cast<__mmask16>(visible), scores);
}

// Where the scores of a row go: as they are, and into the maxima of their groups so far.
struct ToTile {
  static constexpr int64_t panels = kTileKeys / kPanelKeys;
  int16_t *to, *high;
  int64_t stride, high_stride;

  GRAFT_INLINE ToTile next() const { return {to + stride, high + high_stride, stride, high_stride}; }
  GRAFT_INLINE void put(__m512i a, __m512i c, const Row8&) const {
    _mm512_storeu_si512(to, a);
    _mm512_storeu_si512(to + kPack, c);
    _mm512_storeu_si512(high, _mm512_max_epi16(_mm512_loadu_si512(high), a));
    _mm512_storeu_si512(high + kPack, _mm512_max_epi16(_mm512_loadu_si512(high + kPack), c));
  }
};

// Or one bit a key: whether its score reaches the row's guess.
struct ToBits {
  static constexpr int64_t panels = kBitKeys / kPanelKeys;
  uint32_t* to;
  int64_t stride;

  GRAFT_INLINE ToBits next() const { return {to + stride, stride}; }
  GRAFT_INLINE void put(__m512i a, __m512i c, const Row8& row) const {
    const __m512i guess = _mm512_set1_epi16(row.guess);
    to[0] = _mm512_cmpge_epi16_mask(a, guess);
    to[1] = _mm512_cmpge_epi16_mask(c, guess);
  }
};

// A panel's scores as 16 bits. Packing takes 4 keys from either vector in turn: see keys_at.
template <bool Biased, class To>
GRAFT_INLINE void store_scores(const Sums& sums, const float* key_scale, const float* bias, const Row8& row,
                               int64_t first, const To& to) {
  __m512i a = to_units<Biased>(sums.a, key_scale, bias, row);
  __m512i b = to_units<Biased>(sums.b, key_scale + 16, bias + 16, row);
  __m512i c = to_units<Biased>(sums.c, key_scale + 32, bias + 32, row);
  __m512i d = to_units<Biased>(sums.d, key_scale + 48, bias + 48, row);
  if (__builtin_expect(row.sight.last - first + 1 < kPanelKeys || row.sight.first > first, 0)) {
    const uint64_t visible = seen_bits(row.sight, first);
    a = hide_from(a, visible), b = hide_from(b, visible >> 16);
    c = hide_from(c, visible >> 32), d = hide_from(d, visible >> 48);
  }
  to.put(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d), row);
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
  template <bool Biased, class To>
  GRAFT_INLINE void store(const float* key_scale, const float* bias, const Row8* row, int64_t key, const To& to) const {
    store_scores<Biased>(first, key_scale, bias, *row, key, to);
    rest.template store<Biased>(key_scale, bias, row + 1, key, to.next());
  }
};

template <>
struct RowSums<0> {
  GRAFT_INLINE void begin(const Sums&) {}
  GRAFT_INLINE void add(const uint8_t*, int64_t, const Sums&) {}
  template <bool Biased, class To>
  GRAFT_INLINE void store(const float*, const float*, const Row8*, int64_t, const To&) const {}
};

template <int RM, bool Biased, class To>
inline void score_rows8(const uint8_t* q, const Keys8& keys, int64_t n, int64_t first, const float* bias,
                        const Row8* rows, const To& to) {
  const int8_t* panel = keys.bytes + first * n * 4;
  RowSums<RM> sums;
  sums.begin(load_four(keys.offset + first));
  for (int64_t i = 0; i < n; ++i) {
    const int8_t* keys4 = panel + i * 256;
    for (int64_t x = 0; x < 256; x += 64) _mm_prefetch(keys4 + n * 256 + x, _MM_HINT_T0);  // the next panel's
    sums.add(q + i * 4, n * 4, load_four(keys4));
  }
  sums.template store<Biased>(keys.scale + first, bias, rows, first, to);
}

// Row r of the tile where it holds one bit a key, and how far it is to the next.
inline ToBits bits_of(const Topk8Scratch& x, int64_t r) {
  const int64_t stride = x.stride / 2;
  return {reinterpret_cast<uint32_t*>(x.tile) + r * stride, stride};
}

// Where the scores of row r and a chunk's next panel go.
template <class To>
inline To target_of(const Chunk& chunk, int64_t r, const Topk8Scratch& x) {
  constexpr int64_t packs = kPanelKeys / kPack;
  if constexpr (std::is_same_v<To, ToBits>) {
    const ToBits row = bits_of(x, r);
    return {row.to + chunk.panels * packs, row.stride};
  } else {
    const int64_t width = x.groups * kPack, group = (chunk.before + chunk.panels) * packs % x.groups;
    return {x.tile + r * x.stride + chunk.panels * kPanelKeys, x.maxima + r * width + group * kPack, x.stride, width};
  }
}

template <bool Biased, class To, int RM = 6>
inline void score_panel8(const Problem& p, const Keys8& keys, int64_t first, const Chunk& chunk, int64_t r,
                         int64_t end, const Topk8Scratch& x) {
  const int64_t n = quads(p);
  for (; r + RM <= end; r += RM) {
    score_rows8<RM, Biased>(x.bytes + r * n * 4, keys, n, first, x.bias, x.rows + r, target_of<To>(chunk, r, x));
  }
  if constexpr (RM > 1) score_panel8<Biased, To, RM / 2>(p, keys, first, chunk, r, end, x);
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

}  // namespace
}  // namespace graft

#endif  // GRAFT_SCORE8_H_
