// Lists of what some rows can need of a tile, or of bits; and what AVX-512 has of its own to score them.
#ifndef GRAFT_LIST8_H_
#define GRAFT_LIST8_H_

#include "pick8.h"

namespace graft {
namespace {

// Lane i of every quarter is the sum of x[i]'s quarter.
inline __m512 add_quarters(const __m512* x) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

// The sums of eight vectors' lanes.
inline __m256 reduce8(const __m512* x) {
  const __m512 a = add_quarters(x), b = add_quarters(x + 4);
  const __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  return _mm512_castps512_ps256(
      _mm512_add_ps(_mm512_shuffle_f32x4(c, c, 0x88), _mm512_shuffle_f32x4(c, c, 0xdd)));
}

inline void cut_places(const Problem& p, Arena* arena, Topk8Scratch* x) {
  x->masks = arena->take<uint32_t>(kRowsAtOnce * (x->stride / kPack));
  x->hit_room = 2 * round_up(ceil_div(least(p.t, kBitKeys), kPack) + 2, kPacksAtOnce) + 16;
  x->hits = arena->take<uint32_t>(kRowsAtOnce * x->hit_room);
  x->places = arena->take<int32_t>(kRowsAtOnce * 16 * x->room + 16);
}

// One bit a key, for some rows.
struct Bits {
  const uint32_t* data;
  int64_t stride;
  bool tile;  // the keys' scores are at hand
};

// Lists the keys whose bits are set, for rows `first` .. `end` - 1. False where there is no room.
inline bool list_few(const Search8& s, const Chunk& chunk, const Bits& bits, int64_t first, int64_t end) {
  const Topk8Scratch& x = s.x;
  for (int64_t r = first; r < end; ++r) {
    const int64_t i = r - first;
    x.found[r].hits = find_hits(bits.data + i * bits.stride, chunk.packs, x.hits + i * x.hit_room);
    if (x.found[r].hits > x.room) return false;
  }
  int32_t* to = x.places;
  for (int64_t r = first; r < end; ++r) {
    Found& f = x.found[r];
    f.listed = list_hits(f.hits, x.hits + (r - first) * x.hit_room, to);
    if (bits.tile && f.count > x.room / 2) drop_below(level_below(x.rows[r], f.reached, s.reach), &f);
    if (f.count + f.listed > x.room) return false;
    to += f.listed;
  }
  to = x.places;
  for (int64_t r = first; r < end; ++r) {
    Found& f = x.found[r];
    const bool scored = bits.tile && (several_tiles(s) || too_many(f.listed, s.p.top_k));
    keep_listed(to, bits.tile, scored ? x.tile + r * x.stride : nullptr, chunk, x.starts, &f);
    to += f.listed;
  }
  return true;
}

// Lists what rows `first` .. `end` - 1 can need of a tile. False where there is no room.
inline bool find_few(const Search8& s, const Chunk& chunk, int64_t first, int64_t end) {
  const Topk8Scratch& x = s.x;
  const int64_t packs = x.stride / kPack;
  for (int64_t r = first; r < end; ++r) {
    Found& f = x.found[r];
    guess_level(s, r);
    f.reached = find_level(x.maxima + r * x.groups * kPack, x.groups, s.p.top_k, f.reached);
    const int level = level_below(x.rows[r], f.reached, s.reach);
    find_masks(x.tile + r * x.stride, chunk.packs, level, x.masks + (r - first) * packs);
  }
  return list_few(s, chunk, {x.masks, packs, true}, first, end);
}

// A few rows at a time: what was just written in pieces cannot be read in other pieces at once, so every step is taken
// for all of them before the next one; and their scores stay in the first cache.
inline bool find_tile(const Search8& s, const Chunk& chunk) {
  for (int64_t r = 0; r < s.k.rows; r += kRowsAtOnce) {
    if (!find_few(s, chunk, r, least(r + kRowsAtOnce, s.k.rows))) return false;
  }
  return true;
}

inline bool list_bits(const Search8& s, const Chunk& chunk) {
  for (int64_t r = 0; r < s.k.rows; r += kRowsAtOnce) {
    const ToBits bits = bits_of(s.x, r);
    const Bits data{reinterpret_cast<const uint32_t*>(bits.to), 2 * bits.stride, false};
    if (!list_few(s, chunk, data, r, least(r + kRowsAtOnce, s.k.rows))) return false;
  }
  return true;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_LIST8_H_
