// What all factorisations work with: the rows of a head as they lie, panels of queries, and what tokens get that see no
// key.
#ifndef GRAFT_COMBINER_ATTENTION_OPERANDS_H_
#define GRAFT_COMBINER_ATTENTION_OPERANDS_H_

#include "../vector/arena.h"
#include "../vector/softmax.h"
#include "problem.h"

namespace graft {
namespace {

inline void fill(float* to, int64_t n, float x) {
  for (int64_t i = 0; i < n; ++i) to[i] = x;
}

template <class V>
inline void multiply(float* x, int64_t n, float by) {
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) V::store(x + i, V::mul(V::load(x + i), V::set1(by)));
  for (; i < n; ++i) x[i] *= by;
}

// Rows of any element type; with a negative step, backwards.
struct Operand {
  const void* data;
  int32_t dtype;
  int64_t step;
  const void* at(int64_t i) const { return element(data, dtype, i * step); }
};

inline Operand operand(const graft_tensor& x, int64_t b, int64_t head) {
  return {element(x.data, x.dtype, b * x.strides[0] + head * x.strides[1]), x.dtype, x.strides[2]};
}

// Whose keys and values a query head reads.
inline int64_t shared_head(const Combiner& p, int64_t head) { return head / (p.h / p.g); }

// Also asks for a row further on: rows a whole token apart are no stream that processors foresee.
template <class V>
inline void read_row(const Operand& x, int64_t i, int64_t width, float* to) {
  constexpr int64_t ahead = 16, line = 64;
  const char* later = static_cast<const char*>(x.at(i + ahead));
  for (int64_t byte = 0; byte < width * element_size(x.dtype); byte += line) __builtin_prefetch(later + byte);
  widen_row<V>(x.at(i), x.dtype, width, to);
}

template <class V>
inline void read_query(const Combiner& p, const Operand& q, int64_t i, float* to) {
  read_row<V>(q, i, p.d, to);
  multiply<V>(to, p.d, p.args.scale);
}

inline void store_row(const Operand& out, int64_t i, int64_t width, const float* from) {
  void* to = const_cast<void*>(out.at(i));
  for (int64_t c = 0; c < width; ++c) narrow1(to, out.dtype, c, from[c]);
}

// Per key 0, or -inf where the mask hides it; NULL: it hides none.
inline const float* load_bias(const Combiner& p, int64_t b, float* mask) {
  const graft_tensor& shown = p.args.key_mask;
  if (shown.data == nullptr) return nullptr;
  const uint8_t* from = static_cast<const uint8_t*>(shown.data) + b * shown.strides[0];
  for (int64_t i = 0; i < p.t; ++i) mask[i] = from[i * shown.strides[1]] ? 0.0f : -kInf;
  return mask;
}

// How many tokens at the beginning see no key.
inline int64_t unseeing(const Combiner& p, const float* bias) {
  int64_t first = 0;
  while (first < p.t && bias != nullptr && bias[first] != 0.0f) ++first;
  return p.args.causal || first == p.t ? first : 0;
}

// The mean of all values [e], from sums of few, so that long sequences lose no digits.
inline void mean_value(const Combiner& p, const Operand& v, float* part, float* mean) {
  constexpr int64_t few = 64;
  fill(mean, p.e, 0.0f);
  for (int64_t first = 0; first < p.t; first += few) {
    fill(part, p.e, 0.0f);
    for (int64_t j = first; j < least(first + few, p.t); ++j) {
      for (int64_t c = 0; c < p.e; ++c) part[c] += widen1(v.at(j), v.dtype, c);
    }
    for (int64_t c = 0; c < p.e; ++c) mean[c] += part[c];
  }
  for (int64_t c = 0; c < p.e; ++c) mean[c] /= static_cast<float>(p.t);
}

// What softmax gives tokens of which one finite number hides all keys. `room` is for two rows of e.
inline void level_unseeing(const Combiner& p, int64_t b, int64_t head, const float* bias, float* room) {
  const int64_t count = p.args.no_key == GRAFT_NO_KEY_MEAN ? unseeing(p, bias) : 0;
  if (count == 0) return;
  mean_value(p, operand(p.args.v, b, shared_head(p, head)), room + p.e, room);
  const Operand out = operand(p.args.out, b, head);
  for (int64_t i = 0; i < count; ++i) store_row(out, i, p.e, room);
}

// Queries in the lanes of a few vectors. Matrices are [d, key or e][width].
struct Panel {
  float *q, *o, *max, *sum;
  int64_t rows;
};

inline Panel cut_panel(const Combiner& p, int64_t width, Arena* arena) {
  Panel x{};
  x.q = arena->take<float>(width * p.d);
  x.o = arena->take<float>(width * most(p.d, p.e));  // keys may be what is read
  x.max = arena->take<float>(width);
  x.sum = arena->take<float>(width);
  return x;
}

inline void clear_panel(int64_t width, int64_t e, Panel* a) {
  fill(a->o, e * width, 0.0f);
  fill(a->max, width, -kInf);
  fill(a->sum, width, 0.0f);
}

// A hidden key's score is set, not added to: it may be anything.
template <class V>
inline void add_bias(const float* bias, int64_t step, int64_t n, int64_t width, float* scores) {
  using F = typename V::F;
  for_scores<V>(n, width, scores, [&](F s, int64_t j, int64_t) {
    const float one = bias[j * step];
    return one == -kInf ? V::set1(-kInf) : V::add(s, V::set1(one));
  });
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_OPERANDS_H_
