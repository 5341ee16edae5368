// Candidates of a row scored again in fp32.
#ifndef GRAFT_RESCORE8_H_
#define GRAFT_RESCORE8_H_

#include "copied.h"
#include "search8.h"

namespace graft {
namespace {

constexpr int64_t kAhead = 16;   // candidates; rows of k are anywhere in memory, so they are asked for ahead
constexpr int64_t kLinked = 32;  // ids behind a row's last candidate

// Behind the ids of each row's candidates, those of the next row: see dot_all.
template <class V>
inline void link_rows(const Search8& s) {
  for (int64_t r = 0; r < s.k.rows; ++r) {
    const Candidates &row = s.x.rows[r].best, &next = s.x.rows[least(r + 1, s.k.rows - 1)].best;
    const float last = row.count > 0 ? row.ids[row.count - 1] : 0.0f;
    for (int64_t i = 0; i < kLinked; i += V::lanes) {
      const typename V::F ids = next.count >= i + V::lanes ? V::load(next.ids + i) : V::set1(last);
      V::store(row.ids + row.count + i, ids);
    }
  }
}

constexpr int kDots = 8;

// to[x] = q.keys[x]. D is d where it is known beforehand, else 0.
template <class L, int32_t Dtype, int64_t D>
inline void dot_some(const float* q, const void* const* keys, int64_t any_d, float* to) {
  using V = typename L::V;
  const int64_t d = D > 0 ? D : any_d;
  typename V::F sum[kDots];
#pragma GCC unroll 8
  for (int x = 0; x < kDots; ++x) sum[x] = V::set1(0.0f);
  int64_t i = 0;
#pragma GCC unroll 8
  for (; i + V::lanes <= d; i += V::lanes) {
    const typename V::F query = V::load(q + i);
#pragma GCC unroll 8
    for (int x = 0; x < kDots; ++x) sum[x] = V::fma(query, widen<V>(keys[x], Dtype, i), sum[x]);
  }
  L::store_sums(sum, to);
  if (i == d) return;
  float rest[kDots] = {};
  for (; i < d; ++i) {
    for (int x = 0; x < kDots; ++x) rest[x] += q[i] * widen1(keys[x], Dtype, i);
  }
  for (int x = 0; x < kDots; ++x) to[x] += rest[x];
}

// Scores of the candidates. Behind the last one, ids tell what is needed next. Not inlined, because among other code the
// sums would not stay in registers.
template <class L, int32_t Dtype, int64_t D = 0>
[[gnu::noinline]] void dot_all(const void* keys, int64_t stride, const float* q, int64_t any_d, Candidates* c) {
  const int64_t d = D > 0 ? D : any_d;
  for (int64_t i = 0; i < c->count; i += kDots) {
    const void* some[kDots];
#pragma GCC unroll 8
    for (int x = 0; x < kDots; ++x) {
      some[x] = element(keys, Dtype, id_at(*c, i + x) * stride);
      ask_for(element(keys, Dtype, id_at(*c, i + x + kAhead) * stride), d * element_size(Dtype));
    }
    dot_some<L, Dtype, D>(q, some, d, c->scores + i);
  }
}

template <class L>
inline void score_again(const Problem& p, const Block& k, const Walk& walk, const float* query, Candidates* c) {
  const graft_tensor& x = p.args.k;
  const void* keys = head_data(k, x);
  if (x.dtype == GRAFT_F32 && p.d == 64) dot_all<L, GRAFT_F32, 64>(keys, x.strides[2], query, p.d, c);
  else if (x.dtype == GRAFT_F32) dot_all<L, GRAFT_F32>(keys, x.strides[2], query, p.d, c);
  if (x.dtype == GRAFT_F16) dot_all<L, GRAFT_F16>(keys, x.strides[2], query, p.d, c);
  if (x.dtype == GRAFT_BF16) dot_all<L, GRAFT_BF16>(keys, x.strides[2], query, p.d, c);
  for (int64_t i = 0; walk.bias != nullptr && i < c->count; ++i) c->scores[i] += walk.bias[id_at(*c, i)];
}

// Of the candidates that score `level`, leaves the `ties` first keys.
inline void drop_ties(float level, int64_t ties, Candidates* c) {
  int64_t low = -1, high = INT32_MAX;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    int64_t count = 0;
    for (int64_t i = 0; i < c->count; ++i) count += c->scores[i] == level && id_at(*c, i) <= middle;
    if (count >= ties) high = middle;
    else low = middle;
  }
  for (int64_t i = 0; i < c->count; ++i) {
    if (c->scores[i] == level && id_at(*c, i) > high) c->scores[i] = -kInf;
  }
}

// Leaves the k best of more than k; of equal ones the first, as everywhere, though candidates are in no order here. Where
// to look: see find_cut.
template <class V>
inline void search_best(int64_t k, float guess, float step, Candidates* c) {
  const Cut cut = find_cut<V>(*c, k, 0, guess, step);
  if (cut.above < k) drop_ties(cut.level, k - cut.above, c);
  keep_above<V>(cut.above < k ? below(cut.level) : cut.level, 0, c);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_RESCORE8_H_
