// The second product: rows of w_out, weighed and summed. Only those of active neurons, or all at once as a matrix product.
#ifndef GRAFT_TOPK_FEED_FORWARD_COMBINE_H_
#define GRAFT_TOPK_FEED_FORWARD_COMBINE_H_

#include "terms.h"

namespace graft {
namespace {

constexpr int64_t kColumns = 1024;
constexpr int64_t kParts = 16;   // into which the terms of a few tokens are shared out, at most
constexpr int64_t kPart = 32;    // terms that are worth a task
constexpr int64_t kDepth = 256;  // rows of w_out that are packed, or summed one by one, in one go

// y[first ..] += b_out, into the output's row.
template <class V>
inline void write_out(const Chunk& k, int64_t row, int64_t first, int64_t count, const float* y) {
  const graft_tensor &out = k.p->args.out, &bias = k.p->args.b_out;
  void* to = const_cast<void*>(element(row_of(out, k.first + row), out.dtype, first));
  for (int64_t i = 0; i < count; ++i) {
    narrow1(to, out.dtype, i, bias.data == nullptr ? y[i] : y[i] + widen1(bias.data, bias.dtype, first + i));
  }
}

// y[i] += c[0] w[0][i] + … + c[3] w[3][i]
template <class V, int D>
inline void add_four(const void* const* w, const void* const* ahead, const float* c, int64_t n, float* y) {
  using F = typename V::F;
  const F c0 = V::set1(c[0]), c1 = V::set1(c[1]), c2 = V::set1(c[2]), c3 = V::set1(c[3]);
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) {
    for (int r = 0; r < 4; ++r) __builtin_prefetch(element(ahead[r], D, i));
    F sum = V::fma(c0, widen<V>(w[0], D, i), V::load(y + i));
    sum = V::fma(c1, widen<V>(w[1], D, i), sum);
    sum = V::fma(c2, widen<V>(w[2], D, i), sum);
    V::store(y + i, V::fma(c3, widen<V>(w[3], D, i), sum));
  }
  for (; i < n; ++i) {
    for (int r = 0; r < 4; ++r) y[i] += c[r] * widen1(w[r], D, i);
  }
}

// y[t] = sum over the terms of coefficient t times their rows' columns first .. first + n - 1. `sum` has room for y.
template <class V, int D>
inline void add_rows(const Chunk& k, const Terms& terms, int64_t tokens, int64_t first, int64_t n, float* sum, float* y) {
  const graft_tensor& w = k.p->args.w_out;
  const auto row_at = [&](int64_t i) { return element(row_of(w, neuron_at(terms, i)), D, first); };
  for (int64_t i = 0; i < tokens * n; ++i) y[i] = sum[i] = 0.0f;
  for (int64_t i = 0; i < terms.count; i += 4) {
    const void *rows[4], *ahead[4];
    for (int r = 0; r < 4; ++r) {
      rows[r] = row_at(least(i + r, terms.count - 1));
      ahead[r] = row_at(least(i + r + 4, terms.count - 1));
    }
    for (int64_t t = 0; t < tokens; ++t) {
      float c[4];
      for (int r = 0; r < 4; ++r) c[r] = i + r < terms.count ? terms.coefficients[t * terms.stride + i + r] : 0.0f;
      if (c[0] == 0.0f && c[1] == 0.0f && c[2] == 0.0f && c[3] == 0.0f) continue;
      add_four<V, D>(rows, ahead, c, n, sum + t * n);
    }
    if ((i + 4) % kDepth != 0 && i + 4 < terms.count) continue;
    for (int64_t j = 0; j < tokens * n; ++j) y[j] += sum[j], sum[j] = 0.0f;
  }
}

template <class V>
inline void add_terms(const Chunk& k, const Terms& terms, int64_t tokens, int64_t first, int64_t n, float* sum, float* y) {
  const int32_t dtype = k.p->args.w_out.dtype;
  if (dtype == GRAFT_F32) add_rows<V, GRAFT_F32>(k, terms, tokens, first, n, sum, y);
  else if (dtype == GRAFT_F16) add_rows<V, GRAFT_F16>(k, terms, tokens, first, n, sum, y);
  else add_rows<V, GRAFT_BF16>(k, terms, tokens, first, n, sum, y);
}

// ---- a few tokens: the terms of all are gathered first, and shared out; whole rows are read fastest ----

struct Parts {
  const Chunk* chunk;
  Terms terms;
  int64_t count;  // depends on the number of terms alone, so that threads change no rounding
  float* sums;    // [count tokens e]
};

// Columns worked on at a time, so that their sums stay in the nearest cache.
inline int64_t column_block(const Chunk& k) { return k.rows <= 2 ? kColumns : kColumns / 2; }

template <class V>
inline void part_task(void* state, int64_t index) {
  const Parts& job = *static_cast<const Parts*>(state);
  const Chunk& k = *job.chunk;
  void* space = k.spaces->take();
  if (space == nullptr) return;
  const int64_t e = k.p->e, share = round_up(ceil_div(job.terms.count, job.count), 4), block = column_block(k);
  Terms terms = job.terms;
  const int64_t begin = least(index * share, terms.count);
  terms.ids += begin, terms.coefficients += begin, terms.count = least(share, terms.count - begin);
  Arena arena(space);
  float* sum = arena.take<float>(k.rows * block);
  float* y = arena.take<float>(k.rows * block);
  for (int64_t first = 0; first < e; first += block) {
    const int64_t n = least(block, e - first);
    add_terms<V>(k, terms, k.rows, first, n, sum, y);
    for (int64_t t = 0; t < k.rows; ++t) {
      memcpy(job.sums + (index * k.rows + t) * e + first, y + t * n, static_cast<size_t>(n) * sizeof(float));
    }
  }
  k.spaces->give(space);
}

template <class V>
inline void add_parts(void* state, int64_t token) {
  const Parts& job = *static_cast<const Parts*>(state);
  const Chunk& k = *job.chunk;
  const int64_t e = k.p->e;
  float* y = job.sums + token * e;
  for (int64_t i = 1; i < job.count; ++i) {
    for (int64_t j = 0; j < e; ++j) y[j] += y[i * k.rows * e + j];
  }
  write_out<V>(k, token, 0, e, y);
}

// ---- many tokens with few terms each: token by token ----

template <class V>
inline void sparse_rows(const Chunk& k, int64_t index, void* space) {
  const FeedForward& p = *k.p;
  Arena arena(space);
  Terms terms = cut_terms(p, 1, &arena);
  float* sum = arena.take<float>(p.e);
  float* y = arena.take<float>(p.e);
  for (int64_t r = index * k.group(); r < least((index + 1) * k.group(), k.rows); ++r) {
    if (p.top_k > 0) gather_best<V>(k, r, &terms);
    else gather_active<V>(k, r, 1, &terms);
    add_terms<V>(k, terms, 1, 0, p.e, sum, y);
    write_out<V>(k, r, 0, p.e, y);
  }
}

// ---- many tokens with many terms: a matrix product, some columns of the output at a time ----

// Rows i .. i + depth - 1 of w_out, columns first .. first + n - 1, side by side; zeros behind column n.
template <class V>
inline void pack_columns(const graft_tensor& w, int64_t i, int64_t depth, int64_t first, int64_t n, float* to) {
  constexpr int64_t width = panel_width<V>();
  for (int64_t r = 0; r < depth; ++r, to += width) {
    const void* ahead = element(row_of(w, i + r + 16), w.dtype, first);  // too short a stretch to be foreseen
    for (int64_t j = 0; j < width; j += 16) __builtin_prefetch(element(ahead, w.dtype, j));
    widen_row<V>(element(row_of(w, i + r), w.dtype, first), w.dtype, n, to);
    for (int64_t j = n; j < width; ++j) to[j] = 0.0f;
  }
}

template <class V>
inline void dense_columns(const Chunk& k, int64_t index, void* space) {
  constexpr int64_t width = panel_width<V>();
  const FeedForward& p = *k.p;
  Arena arena(space);
  float* packed = arena.take<float>(kDepth * width);
  float* y = arena.take<float>(k.rows * width);
  const int64_t first = index * width, n = least(width, p.e - first);
  for (int64_t i = 0; i < k.rows * width; ++i) y[i] = 0.0f;
  for (int64_t i = 0; i < p.f; i += kDepth) {
    const int64_t depth = least(kDepth, p.f - i);
    pack_columns<V>(p.args.w_out, i, depth, first, n, packed);
    product<V, V::panel, true>(k.rows, k.c + i, k.f_row, 1, packed, depth, y);
  }
  for (int64_t r = 0; r < k.rows; ++r) write_out<V>(k, r, first, n, y + r * width);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_COMBINE_H_
