// The k best of some hundred scores, where about the k-th one is known: looked for by a few counts, and at last among
// sixteen scores at once, because a search that halves an interval waits for branches that nothing foresees.
#ifndef GRAFT_CUT8_H_
#define GRAFT_CUT8_H_

#include "pick8.h"
#include "rescore8.h"

namespace graft {
namespace {

constexpr int64_t kGroup = 64;  // scores read at a time: most rows have as many groups as the row before

// Which of a group's scores exceed the level.
inline uint64_t above(const float* scores, float level) {
  uint64_t bits = 0;
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    bits |= uint64_t{Avx512::gt(Avx512::load(scores + x * 16), Avx512::set1(level))} << 16 * x;
  }
  return bits;
}

// Where the k-th score lies: above `low`, not above `high`; and how many exceed each of them.
struct Bracket {
  float low, high;
  int64_t above_low, above_high;
};

inline bool is_small(const Bracket& x) { return x.low > -kInf && x.high < kInf && x.above_low - x.above_high <= 16; }

// Looks at three levels.
inline void narrow(const Candidates& c, int64_t k, float middle, float step, Bracket* to) {
  const float levels[] = {middle - step, middle, middle + step};
  int64_t counts[3] = {};
  for (int64_t i = 0; i < c.count; i += kGroup) {
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) counts[x] += __builtin_popcountll(above(c.scores + i, levels[x]));
  }
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    to->low = counts[x] >= k ? levels[x] : to->low;
    to->above_low = counts[x] >= k ? counts[x] : to->above_low;
    to->high = counts[2 - x] < k ? levels[2 - x] : to->high;
    to->above_high = counts[2 - x] < k ? counts[2 - x] : to->above_high;
  }
}

// A bracket of at most sixteen scores, if three looks find one.
inline Bracket find_bracket(const Candidates& c, int64_t k, float guess, float step) {
  Bracket x{-kInf, kInf, c.count, 0};
  for (int looks = 0; looks < 3; ++looks) {
    narrow(c, k, guess, step, &x);
    if (is_small(x)) break;
    const bool closed = x.low > -kInf && x.high < kInf;
    const float share = static_cast<float>(k - x.above_high) / static_cast<float>(x.above_low - x.above_high);
    guess = closed ? x.high - share * (x.high - x.low) : x.low > -kInf ? x.low + 2.0f * step : x.high - 2.0f * step;
    step = closed ? 0.2f * (x.high - x.low) : 2.0f * step;
  }
  return x;
}

// The m-th of the scores in the bracket, if no other equals it; else NaN.
inline float mth_between(const Candidates& c, const Bracket& b, int64_t m) {
  float in[2 * 16];
  int64_t count = 0;
  for (int64_t i = 0; i < c.count; i += kGroup) {
#pragma GCC unroll 4
    for (int64_t x = i; x < i + kGroup; x += 16) {
      const __m512 scores = Avx512::load(c.scores + x);
      const __mmask16 inside = Avx512::gt(scores, Avx512::set1(b.low)) & ~Avx512::gt(scores, Avx512::set1(b.high));
      Avx512::compress(in + count, inside, scores);
      count += Avx512::count(inside);
    }
  }
  Avx512::store(in + count, Avx512::set1(-kInf));
  const __m512 x = Avx512::load(in);
  const __m512i one = _mm512_set1_epi32(1);
  __m512i rank = _mm512_setzero_si512();  // how many exceed it
  __m512i turn = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
#pragma GCC unroll 15
  for (int i = 1; i < 16; ++i) {
    rank = _mm512_mask_add_epi32(rank, Avx512::gt(_mm512_permutexvar_ps(turn, x), x), rank, one);
    turn = _mm512_add_epi32(turn, one);
  }
  const __mmask16 is = _mm512_cmpeq_epi32_mask(rank, _mm512_set1_epi32(static_cast<int>(m) - 1));
  return Avx512::count(is) == 1 ? _mm512_cvtss_f32(_mm512_maskz_compress_ps(is, x)) : __builtin_nanf("");
}

inline float lowest(const float* x, int64_t n) {
  __m512 low = _mm512_set1_ps(kInf);
  for (int64_t i = 0; i < n; i += 16) low = _mm512_mask_min_ps(low, lanes_of(n - i), low, _mm512_loadu_ps(x + i));
  return _mm512_reduce_min_ps(low);
}

// Leaves the k best, as search_best does; returns the lowest of them, -inf where there are not k. `guess` is about the k-th
// score, and `step` how far off.
inline float cut_exactly(int64_t k, float guess, float step, Candidates* c) {
  for (int64_t i = 0; i < kGroup; i += 16) Avx512::store(c->scores + c->count + i, Avx512::set1(-kInf));
  if (c->count < k) return -kInf;
  if (c->count == k) return lowest(c->scores, k);
  const Bracket b = find_bracket(*c, k, guess, step);
  const float kth = is_small(b) ? mth_between(*c, b, k - b.above_high) : __builtin_nanf("");
  if (kth == kth) {
    keep_where<Avx512>([&](__m512 x) { return _mm512_cmp_ps_mask(x, Avx512::set1(kth), _CMP_GE_OQ); }, c);
    return kth;
  }
  search_best<Avx512>(k, kInf, 0.0f, c);
  return lowest(c->scores, k);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_CUT8_H_
