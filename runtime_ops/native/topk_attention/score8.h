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
  GRAFT_INLINE void put(__m512i a, __m512i c) const {
    _mm512_storeu_si512(to, a);
    _mm512_storeu_si512(to + kPack, c);
    _mm512_storeu_si512(high, _mm512_max_epi16(_mm512_loadu_si512(high), a));
    _mm512_storeu_si512(high + kPack, _mm512_max_epi16(_mm512_loadu_si512(high + kPack), c));
  }
};

// Or one bit a key: whether its score reaches the row's guess.
struct ToBits {
  static constexpr int64_t panels = kBitKeys / kPanelKeys;
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
