// 8-bit scores for vectors V that multiply bytes, but can neither compress integers nor gather them: hits are taken
// out of a mask one by one. Beyond scalar.h, V has
//   I                     integers of 32 bits, as many as lanes; load_i, to_float, and to_integers, which rounds
//   unsigned_queries      whether add_products takes unsigned bytes of queries
//   rows8                 how many rows times sixteen keys have sums that fit the registers
//   quad                  four bytes of a query, in every lane
//   add_products          sum + four products a lane; sums begin with first_sum(offsets of the keys)
//   store_i8, store_i16   a vector as bytes; sixteen integers as 16 bits, those out of range as the nearest
//   reduce_eight          the sums of eight vectors' lanes
//   raise_i16, above_i16  of 64 scores: into maxima; which exceed a level
#ifndef GRAFT_PLAIN8_H_
#define GRAFT_PLAIN8_H_

#include "rescore8.h"

namespace graft {
namespace {

constexpr int64_t kLineKeys = 16;  // whose quads fill a cache line

// Scores in units.
template <class V, bool Biased>
inline typename V::I to_units(typename V::I sum, const float* key_scale, const float* bias, const Row8& row) {
  typename V::F score = V::mul(V::to_float(sum), V::load(key_scale));
  if (Biased) {  // -inf becomes the lowest integer
    const typename V::F more = V::mul(V::load(bias), V::set1(row.bias_unit));
    score = V::fma(score, V::set1(row.scale), more);
  }
  return V::to_integers(score);
}

// Scores of RM rows and sixteen keys, from key `first` on, whose biases these are: registers hold no more sums. Not
// inlined, because among other code the sums would not stay there.
template <class V, int RM, bool Biased>
[[gnu::noinline]] void score_line(const uint8_t* query, int64_t n, const Keys8& keys, int64_t first, const float* bias,
                                  const Row8* rows, int16_t* to, int64_t stride) {
  using I = typename V::I;
  constexpr int vectors = kLineKeys / V::lanes;
  const int64_t in_panel = first % kPanelKeys;
  const int8_t* line = keys.bytes + ((first - in_panel) * n + in_panel) * 4;
  I sum[RM][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < RM; ++r) {
#pragma GCC unroll 4
    for (int x = 0; x < vectors; ++x) sum[r][x] = V::first_sum(keys.offset + first + x * V::lanes);
  }
  for (int64_t i = 0; i < n; ++i, line += kPanelKeys * 4) {
    I key[vectors];
#pragma GCC unroll 4
    for (int x = 0; x < vectors; ++x) key[x] = V::load_i(line + x * V::lanes * 4);
#pragma GCC unroll 8
    for (int r = 0; r < RM; ++r) {
      const I quad = V::quad(query + (r * n + i) * 4);
#pragma GCC unroll 4
      for (int x = 0; x < vectors; ++x) sum[r][x] = V::add_products(sum[r][x], quad, key[x]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < RM; ++r) {
    I units[vectors];
#pragma GCC unroll 4
    for (int x = 0; x < vectors; ++x) {
      const int64_t key = x * V::lanes;
      units[x] = to_units<V, Biased>(sum[r][x], keys.scale + first + key, bias + key, rows[r]);
    }
    V::store_i16(to + r * stride, units);
  }
}

inline bool sees_panel(const Sight& sight, int64_t first) {
  return sight.first <= first && sight.last >= first + kPanelKeys - 1;
}

inline void hide_unseen(const Sight& sight, int64_t first, int16_t* scores) {
  const uint64_t seen = seen_bits(sight, first);
  for (int64_t x = 0; x < kPanelKeys; ++x) scores[x] = (seen >> x & 1) != 0 ? scores[x] : kHidden;
}

// Keeps scores, and the maxima of their groups so far.
template <class V>
struct Scores {
  static constexpr int64_t panels = kTileKeys / kPanelKeys;

  static int16_t* place(const Search8& s, const Chunk& chunk, int64_t r) {
    return s.x.tile + r * s.x.stride + chunk.panels * kPanelKeys;
  }
  template <int RM, class Score>
  static void keep(const Search8& s, const Chunk& chunk, int64_t r, Score score) {
    score(place(s, chunk, r), s.x.stride);
    const int64_t group = (chunk.before + chunk.panels) * (kPanelKeys / kPack) % s.x.groups;
    for (int64_t i = r; i < r + RM; ++i) V::raise_i16(s.x.maxima + (i * s.x.groups + group) * kPack, place(s, chunk, i));
  }
};

// Keeps one bit a key: whether its score reaches the row's guess.
template <class V>
struct Reached {
  static constexpr int64_t panels = kBitKeys / kPanelKeys;

  static uint64_t* row(const Search8& s, int64_t r) { return reinterpret_cast<uint64_t*>(s.x.tile + r * s.x.stride); }
  template <int RM, class Score>
  static void keep(const Search8& s, const Chunk& chunk, int64_t r, Score score) {
    alignas(64) int16_t scores[RM * kPanelKeys];
    score(scores, kPanelKeys);
    for (int64_t i = 0; i < RM; ++i) {
      const int16_t below_guess = static_cast<int16_t>(s.x.rows[r + i].guess - 1.0f);
      row(s, r + i)[chunk.panels] = V::above_i16(scores + i * kPanelKeys, below_guess);
    }
  }
};

// A panel's scores with rows from r on.
template <class V, class To, bool Biased, int RM = V::rows8>
inline void score_rows(const Search8& s, int64_t first, const Chunk& chunk, int64_t r) {
  const int64_t n = quads(s.p);
  for (; r + RM <= s.k.rows; r += RM) {
    To::template keep<RM>(s, chunk, r, [&](int16_t* to, int64_t stride) {
      for (int64_t x = 0; x < kPanelKeys; x += kLineKeys) {
        score_line<V, RM, Biased>(s.x.bytes + r * n * 4, n, s.keys, first + x, s.x.bias + x, s.x.rows + r, to + x, stride);
      }
      for (int64_t i = 0; i < RM; ++i) {
        const Sight& sight = s.x.rows[r + i].sight;
        if (!sees_panel(sight, first)) hide_unseen(sight, first, to + i * stride);
      }
    });
  }
  if constexpr (RM > 1) score_rows<V, To, Biased, RM / 2>(s, first, chunk, r);
}

template <class V>
inline int find_level(const int16_t* maxima, int64_t packs, int64_t k, int guess) {
  const auto above = [&](const int64_t* levels, int64_t* counts) {
    for (int y = 0; y < kLevels; ++y) counts[y] = 0;
    for (int64_t i = 0; i < packs * kPack; i += kPanelKeys) {
      for (int y = 0; y < kLevels; ++y) {
        counts[y] += __builtin_popcountll(V::above_i16(maxima + i, static_cast<int16_t>(levels[y])));
      }
    }
  };
  return reached_by(above, packs * kPack, k, guess);
}

// Lists the keys whose bits are set, panel by panel, with their scores where there are any. False where there is no room.
template <class Bits>
inline bool list_panels(const Search8& s, const Chunk& chunk, const int16_t* scores, Bits bits, Found* f) {
  for (int64_t panel = 0; panel < chunk.panels; ++panel) {
    if (f->count + kPanelKeys > s.x.room) return false;
    for (uint64_t left = bits(panel); left != 0;) {
      constexpr int few = 4;  // most panels have no more, and no branch tells how many fewer
      const int hits = least(__builtin_popcountll(left), few);
#pragma GCC unroll 4
      for (int i = 0; i < few; ++i, left &= left - 1) {
        const int place = __builtin_ctzll(left | uint64_t{1} << (kPanelKeys - 1));
        f->ids[f->count + i] = s.x.starts[panel] + place;
        if (scores != nullptr) f->scores[f->count + i] = scores[panel * kPanelKeys + place];
      }
      f->count += hits;
    }
  }
  return true;
}

// Keeps what `stays` wants of a list.
template <class Stays>
inline void keep_if(Stays stays, Found* f) {
  int64_t kept = 0;
  for (int64_t i = 0; i < f->count; ++i) {
    const bool stay = stays(i);
    f->ids[kept] = f->ids[i], f->scores[kept] = f->scores[i];
    kept += stay ? 1 : 0;
  }
  f->count = kept;
}

// The steps of search8.h.
template <class Vector>
struct Plain8 {
  using V = Vector;
  using ToTile = Scores<V>;
  using ToBits = Reached<V>;
  static constexpr bool unsigned_queries = V::unsigned_queries;

  template <class To, bool biased>
  static void score(const Search8& s, int64_t first, const Chunk& chunk) {
    score_rows<V, To, biased>(s, first, chunk, 0);
  }
  template <class To>
  static void clear_rest(const Search8&, const Chunk&, int64_t) {}  // whole panels are read, and no others
  static void cut_places(const Problem&, Arena*, Topk8Scratch*) {}

  static bool find_tile(const Search8& s, const Chunk& chunk) {
    for (int64_t r = 0; r < s.k.rows; ++r) {
      Found& f = s.x.found[r];
      guess_level(s, r);
      f.reached = find_level<V>(s.x.maxima + r * s.x.groups * kPack, s.x.groups, s.p.top_k, f.reached);
      const int level = level_below(s.x.rows[r], f.reached, s.reach);
      if (f.count > s.x.room / 2) drop_below(level, &f);
      const int16_t* scores = s.x.tile + r * s.x.stride;
      const auto bits = [&](int64_t panel) {
        return V::above_i16(scores + panel * kPanelKeys, static_cast<int16_t>(level - 1));
      };
      if (!list_panels(s, chunk, scores, bits, &f)) return false;
    }
    return true;
  }

  static bool list_bits(const Search8& s, const Chunk& chunk) {
    for (int64_t r = 0; r < s.k.rows; ++r) {
      const uint64_t* row = ToBits::row(s, r);
      if (!list_panels(s, chunk, nullptr, [&](int64_t panel) { return row[panel]; }, &s.x.found[r])) return false;
    }
    return true;
  }

  static void drop_below(int level, Found* f) {
    keep_if([&](int64_t i) { return f->scores[i] >= level; }, f);
  }

  static int raise_level(const Found& f, int64_t k, int guess) {
    const auto above = [&](const int64_t* levels, int64_t* counts) {
      for (int y = 0; y < kLevels; ++y) {
        counts[y] = 0;
        for (int64_t i = 0; i < f.count; ++i) counts[y] += f.scores[i] > levels[y];
      }
    };
    return reached_by(above, f.count, k, guess);
  }

  // Forgets keys whose scores, wrong by as much as the key itself allows, do not reach `wanted`.
  static void drop_impossible(const Keys8& keys, const Row8& row, float wanted, Found* f) {
    keep_if([&](int64_t i) {
      const uint32_t spread = keys.spread[f->ids[i]];
      const float key_error = from_bits(spread & 0xffff0000u), key_norm = from_bits(spread << 16);
      const float off = 1.001f * (row.length * key_error + row.error * key_norm) + row.slack;
      return row.unit * static_cast<float>(f->scores[i]) + off >= wanted;
    }, f);
  }

  static void store_sums(const typename V::F* x, float* to) { V::reduce_eight(x, to); }

  static float cut_exactly(int64_t k, float guess, float step, Candidates* c) {
    pad<V>(c);
    if (c->count < k) return -kInf;
    if (c->count > k) search_best<V>(k, guess, step, c);
    float low = kInf;
    for (int64_t i = 0; i < k; ++i) low = least(low, c->scores[i]);
    return low;
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_PLAIN8_H_
