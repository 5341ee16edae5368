// Candidates of a row scored again in fp32, and as few of them as the error bounds allow.
#ifndef GRAFT_RESCORE8_H_
#define GRAFT_RESCORE8_H_

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

constexpr int kDots = 8;

// q.key for some keys. D is d where it is known beforehand, else 0.
template <int32_t Dtype, int64_t D>
inline __m256 dots(const float* q, const void* const* keys, int64_t any_d) {
  const int64_t d = D > 0 ? D : any_d;
  __m512 sum[kDots];
#pragma GCC unroll 8
  for (int x = 0; x < kDots; ++x) sum[x] = _mm512_setzero_ps();
  int64_t i = 0;
#pragma GCC unroll 8
  for (; i + 16 <= d; i += 16) {
    const __m512 query = Avx512::load(q + i);
#pragma GCC unroll 8
    for (int x = 0; x < kDots; ++x) sum[x] = _mm512_fmadd_ps(query, widen<Avx512>(keys[x], Dtype, i), sum[x]);
  }
  if (i == d) return reduce8(sum);
  float rest[kDots] = {};
  for (; i < d; ++i) {
    for (int x = 0; x < kDots; ++x) rest[x] += q[i] * widen1(keys[x], Dtype, i);
  }
  return _mm256_add_ps(reduce8(sum), _mm256_loadu_ps(rest));
}

constexpr int64_t kAhead = 8;  // rows of k are anywhere in memory, so they are asked for ahead

inline void ask_for(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(static_cast<const char*>(row) + at, _MM_HINT_T0);
}

// Scores of the candidates from `first` on. Behind the last one, a vector of ids tells what is needed next.
template <int32_t Dtype, int64_t D = 0>
inline void dot_all(const void* keys, int64_t stride, const float* q, int64_t any_d, int64_t first, Candidates* c) {
  const int64_t d = D > 0 ? D : any_d;
  for (int64_t i = first; i < c->count; i += kDots) {
    const void* some[kDots];
#pragma GCC unroll 8
    for (int x = 0; x < kDots; ++x) {
      some[x] = element(keys, Dtype, id_at(*c, i + x) * stride);
      ask_for(element(keys, Dtype, id_at(*c, i + x + kAhead) * stride), d * element_size(Dtype));
    }
    _mm256_storeu_ps(c->scores + i, dots<Dtype, D>(q, some, d));
  }
}

inline void score_again(const Problem& p, const Block& k, const Walk& walk, const float* query, int64_t first,
                        Candidates* c) {
  const graft_tensor& x = p.args.k;
  const void* keys = head_data(k, x);
  if (x.dtype == GRAFT_F32 && p.d == 64) dot_all<GRAFT_F32, 64>(keys, x.strides[2], query, p.d, first, c);
  else if (x.dtype == GRAFT_F32) dot_all<GRAFT_F32>(keys, x.strides[2], query, p.d, first, c);
  if (x.dtype == GRAFT_F16) dot_all<GRAFT_F16>(keys, x.strides[2], query, p.d, first, c);
  if (x.dtype == GRAFT_BF16) dot_all<GRAFT_BF16>(keys, x.strides[2], query, p.d, first, c);
  for (int64_t i = first; walk.bias != nullptr && i < c->count; ++i) c->scores[i] += walk.bias[id_at(*c, i)];
}

inline float lowest(const float* x, int64_t n) {
  __m512 low = _mm512_set1_ps(kInf);
  for (int64_t i = 0; i < n; i += 16) low = _mm512_mask_min_ps(low, lanes_of(n - i), low, _mm512_loadu_ps(x + i));
  return _mm512_reduce_min_ps(low);
}

// The lowest 16-bit score that is listed where k keys reach `reached`. Both may be wrong by the row's error bound, so
// at a `reach` of 2 no key below it can be among the k best; nearly always less is enough, which add_others proves.
inline int level_below(const Row8& row, int reached, float reach) {
  const float level = __builtin_floorf(static_cast<float>(reached) - reach * row.bound * row.bias_unit);
  return level > static_cast<float>(kHidden) ? static_cast<int>(level) : kHidden + 1;
}

struct Search8 {
  const Problem& p;
  const Block& k;
  const Keys8& keys;
  const Walk& walk;
  const Topk8Scratch& x;
  float reach;
};

// A row's level, in norms of its query, is a good guess for the next row.
inline void guess_level(const Search8& s, int64_t r) {
  if (r == 0) return;
  const Row8 &row = s.x.rows[r], &last = s.x.rows[r - 1];
  const float ratio = row.length * row.bias_unit / (last.length * last.bias_unit);
  const float guess = static_cast<float>(s.x.found[r - 1].reached) * ratio;
  s.x.found[r].reached = guess > -3e4f && guess < 3e4f ? static_cast<int>(guess) : 0;
}

// Lists what rows `first` .. `end` - 1 can need of a tile. False where there is no room.
inline bool find_few(const Search8& s, const Chunk& chunk, int64_t k, int64_t first, int64_t end) {
  const Topk8Scratch& x = s.x;
  const int64_t packs = x.stride / kPack, hits = 2 * packs + 16;
  for (int64_t r = first; r < end; ++r) {
    Found& f = x.found[r];
    if (chunk.before == 0) guess_level(s, r);
    f.reached = find_level(x.maxima + r * x.groups * kPack, x.groups, k, f.reached);
    const int level = level_below(x.rows[r], f.reached, s.reach);
    find_masks(x.tile + r * x.stride, chunk.packs, level, x.masks + (r - first) * packs);
  }
  for (int64_t r = first; r < end; ++r) {
    x.found[r].hits = find_hits(x.masks + (r - first) * packs, chunk.packs, x.hits + (r - first) * hits);
  }
  int32_t* to = x.entries;
  for (int64_t r = first; r < end; ++r) {
    Found& f = x.found[r];
    f.listed = list_hits(x.tile + r * x.stride, f.hits, x.hits + (r - first) * hits, to);
    if (f.count > x.room / 2) drop_below(level_below(x.rows[r], f.reached, s.reach), &f);
    if (f.count + f.listed > x.room) return false;
    to += f.listed;
  }
  to = x.entries;
  for (int64_t r = first; r < end; ++r) {
    keep_listed(to, chunk, x, &x.found[r]);
    to += x.found[r].listed;
  }
  return true;
}

// A few rows at a time: what was just written in pieces cannot be read in other pieces at once, so every step is taken
// for all of them before the next one; and their scores stay in the first cache.
inline bool find_tile(const Search8& s, const Chunk& chunk, int64_t k) {
  for (int64_t r = 0; r < s.k.rows; r += kRowsAtOnce) {
    if (!find_few(s, chunk, k, r, least(r + kRowsAtOnce, s.k.rows))) return false;
  }
  return true;
}

// Behind the ids of each row's candidates, those of the next row: see dot_all.
inline void link_rows(const Search8& s) {
  for (int64_t r = 0; r < s.k.rows; ++r) {
    const Row8 &row = s.x.rows[r], &next = s.x.rows[least(r + 1, s.k.rows - 1)];
    const int64_t at = least(next.scored, most<int64_t>(0, next.best.count - 1));
    if (row.best.count > 0) {
      const float last = row.best.ids[row.best.count - 1];
      Avx512::store(row.best.ids + row.best.count, Avx512::set1(last));
    }
    if (next.best.count >= at + 16) Avx512::store(row.best.ids + row.best.count, Avx512::load(next.best.ids + at));
  }
}

// Scores all rows' candidates in fp32 that are not yet: rows in turn, with nothing between that has to wait for them.
inline void score_rows(const Search8& s) {
  link_rows(s);
  for (int64_t r = 0; r < s.k.rows; ++r) {
    Row8& row = s.x.rows[r];
    score_again(s.p, s.k, s.walk, s.x.queries + r * s.p.d, row.scored, &row.best);
  }
}

// The k best by 16-bit score, or a few more.
inline void add_certain(const Search8& s, int64_t k) {
  const auto each = [&](auto step) {
    for (int64_t r = 0; r < s.k.rows; ++r) step(r, &s.x.found[r]);
  };
  each([&](int64_t r, Found* f) {
    f->level = level_below(s.x.rows[r], f->reached, s.reach);
    if (s.walk.end > kTileKeys) drop_below(f->level, f);
  });
  each([&](int64_t, Found* f) { f->reached = f->reached > kHidden ? raise_level(*f, k, f->reached) : kHidden; });
  each([&](int64_t r, Found* f) { add_best(f->reached, f, &s.x.rows[r].best); });
}

// The k best of all reach the lowest score of k keys; of the other keys, only those are candidates whose error bounds
// admit that level. False where this may be a key that is not listed.
inline bool add_others(const Search8& s, int64_t r) {
  Row8& row = s.x.rows[r];
  Candidates& best = row.best;
  row.scored = best.count;
  if (s.x.found[r].reached > kHidden) best.threshold = lowest(best.scores, best.count);
  const float wanted = best.threshold - row.base;
  add_possible(s.keys, row, wanted, s.x.found[r], &best);
  const Found& f = s.x.found[r];
  return f.level == kHidden + 1 || (wanted - row.bound) * row.bias_unit >= static_cast<float>(f.level);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_RESCORE8_H_
