// Candidates of a row scored again in fp32, and as few of them as the error bounds allow.
#ifndef GRAFT_RESCORE8_H_
#define GRAFT_RESCORE8_H_

#include "pick8.h"

namespace graft {
namespace {

// The sums of four vectors' lanes.
inline __m128 reduce4(const __m512* x) {
  __m256 half[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) half[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]), _mm512_extractf32x8_ps(x[i], 1));
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// q.key for four keys. D is d where it is known beforehand, else 0.
template <int32_t Dtype, int64_t D>
inline __m128 dot4(const float* q, const void* const* keys, int64_t any_d) {
  const int64_t d = D > 0 ? D : any_d;
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t i = 0;
#pragma GCC unroll 8
  for (; i + 16 <= d; i += 16) {
    const __m512 query = Avx512::load(q + i);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) sum[x] = _mm512_fmadd_ps(query, widen<Avx512>(keys[x], Dtype, i), sum[x]);
  }
  if (i == d) return reduce4(sum);
  float rest[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (; i < d; ++i) {
    for (int x = 0; x < 4; ++x) rest[x] += q[i] * widen1(keys[x], Dtype, i);
  }
  return _mm_add_ps(reduce4(sum), _mm_loadu_ps(rest));
}

// Scores of the candidates from `first` on.
template <int32_t Dtype, int64_t D = 0>
inline void dot_all(const void* keys, int64_t stride, const float* q, int64_t d, int64_t first, Candidates* c) {
  for (int64_t i = first; i < c->count; i += 4) {
    const void* four[4];
    for (int x = 0; x < 4; ++x) four[x] = element(keys, Dtype, id_at(*c, least(i + x, c->count - 1)) * stride);
    _mm_storeu_ps(c->scores + i, dot4<Dtype, D>(q, four, d));
  }
}

// Rows of k or v are anywhere in memory, so they are asked for ahead.
inline void ask_for(const void* head, const graft_tensor& x, int64_t width, int64_t first, const Candidates& c) {
  const int64_t bytes = width * element_size(x.dtype);
  for (int64_t i = first; i < c.count; ++i) {
    const char* row = static_cast<const char*>(element(head, x.dtype, id_at(c, i) * x.strides[2]));
    for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(row + at, _MM_HINT_T0);
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

// The lowest 16-bit score that may stand for an fp32 score from `wanted` on.
inline int level_for(const Row8& row, float wanted) {
  const float level = __builtin_floorf((wanted - row.base - row.bound) * row.bias_unit);
  if (!(level > static_cast<float>(kHidden))) return kHidden + 1;
  return level < static_cast<float>(-kHidden) ? static_cast<int>(level) : -kHidden - 1;
}

struct Search8 {
  const Problem& p;
  const Block& k;
  const Keys8& keys;
  const Walk& walk;
  const Topk8Scratch& x;
};

// Finds the keys of a tile that are among the row's k best by 16-bit score, or a few more, and asks for them.
// False where there is no room.
inline bool find_row(const Search8& s, const Chunk& chunk, int64_t r, const Selection& selection) {
  const int16_t* scores = s.x.tile + r * s.x.stride;
  Row8& row = s.x.rows[r];
  const int64_t groups = group_packs(selection.k, chunk.packs), before = row.best.count;
  find_maxima(scores, chunk.packs, groups, s.x.maxima);
  const int reached = find_level(s.x.maxima, groups, selection.k);
  row.needed = level_for(row, row.best.threshold);
  // The rest of the search will reach lower by the error bound, and a little for the errors of the best.
  const float lower = static_cast<float>(reached) - 1.25f * row.bound * row.bias_unit;
  row.level = lower > static_cast<float>(row.needed) ? static_cast<int>(lower) : row.needed;
  row.places = s.x.found + r % 2 * s.x.stride;
  const int64_t n = find_places(scores, chunk.packs, row.level, -kHidden - 1, s.x.hits, row.places);
  if (row.best.count + n > selection.capacity) return false;
  row.others = add_best(s.x.starts, scores, most(reached, row.needed), n, row.places, &row.best);
  row.certain = reached > row.needed;
  ask_for(head_data(s.k, s.p.args.k), s.p.args.k, s.p.d, before, row.best);
  return true;
}

// Scores in fp32 what find_row has found. The k best reach the lowest of these scores; of the other keys, only
// those whose error bounds admit that level are scored too. False where there is no room.
inline bool finish_row(const Search8& s, const Chunk& chunk, int64_t r, int64_t before, const Selection& selection) {
  const int16_t* scores = s.x.tile + r * s.x.stride;
  const float* query = s.x.queries + r * s.p.d;
  Row8& row = s.x.rows[r];
  Candidates& best = row.best;
  const int64_t sure = best.count;
  ask_for(head_data(s.k, s.p.args.v), s.p.args.v, s.p.e, before, best);
  score_again(s.p, s.k, s.walk, query, before, &best);
  if (row.certain) best.threshold = most(best.threshold, lowest(best.scores + before, sure - before));
  const float wanted = best.threshold - row.base;
  add_possible(s.x.starts, scores, s.keys, row, wanted, row.others, row.places, &best);
  const int64_t n =
      find_places(scores, chunk.packs, level_for(row, best.threshold), row.level - 1, s.x.hits, row.places);
  if (best.count + n > selection.capacity) return false;
  add_possible(s.x.starts, scores, s.keys, row, wanted, n, row.places, &best);
  ask_for(head_data(s.k, s.p.args.k), s.p.args.k, s.p.d, sure, best);
  score_again(s.p, s.k, s.walk, query, sure, &best);
  return true;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_RESCORE8_H_
