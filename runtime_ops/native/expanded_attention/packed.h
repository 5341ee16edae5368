// Many rows times the weights of their head: panels of weights are packed, as many as stay in a near cache, and all
// rows go through them, some at a time.
#ifndef GRAFT_EXPANDED_PACKED_H_
#define GRAFT_EXPANDED_PACKED_H_

#include "../vector/arena.h"
#include "../vector/softmax.h"
#include "rows.h"

namespace graft {
namespace {

constexpr int64_t kPacked = int64_t{1} << 16;  // weights that are packed at a time, but at least a panel
constexpr int64_t kAhead = 2;                  // rows of weights that are asked for before they are packed

struct PackedScratch {
  float *weights, *packed, *rows, *out;
};

// Columns that are packed at a time.
template <class V>
inline int64_t packed_columns(const HeadProduct& p) {
  constexpr int64_t width = panel_width<V>();
  return width * most<int64_t>(1, least(ceil_div(to_of(p), width), kPacked / (from_of(p) * width)));
}

template <class V>
inline PackedScratch cut_packed(const HeadProduct& p, Arena* arena) {
  constexpr int64_t width = panel_width<V>();
  PackedScratch x;
  x.weights = arena->take<float>(p.rows_are_to && p.w.dtype != GRAFT_F32 ? width * from_of(p) : 0);
  x.packed = arena->take<float>(packed_columns<V>(p) * from_of(p));
  x.rows = arena->take<float>(kRows * from_of(p));
  x.out = arena->take<float>(kRows * width);
  return x;
}

// Calls function(columns, their panel) for each panel of some columns.
template <class V, class Function>
inline void for_panels(const Columns& c, int64_t from, float* packed, Function function) {
  constexpr int64_t width = panel_width<V>();
  for (int64_t i = c.first; i < c.end; i += width, packed += width * from) {
    function(Columns{c.head, i, least(i + width, c.end)}, packed);
  }
}

// A panel [from][width] of weights that have a row for each result, zeros behind them.
template <class V>
inline void turn_panel(const HeadProduct& p, const Columns& c, float* weights, float* panel) {
  const int64_t from = from_of(p), count = c.end - c.first;
  if (p.w.dtype == GRAFT_F32) {
    const float* rows = static_cast<const float*>(weights_at(p, c.head, c.first));
    pack_transposed<V>(rows, p.w.strides[1], count, from, panel, panel_width<V>());
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    widen_row<V>(weights_at(p, c.head, c.first + j), p.w.dtype, from, weights + j * from);
  }
  pack_transposed<V>(weights, from, count, from, panel, panel_width<V>());
}

// Row i of the panels of weights that have a row for each term, zeros behind it.
template <class V>
inline void cut_row(const HeadProduct& p, const Columns& c, int64_t i, float* packed) {
  constexpr int64_t width = panel_width<V>();
  for_panels<V>(c, from_of(p), packed + i * width, [&](const Columns& panel, float* to) {
    const int64_t count = panel.end - panel.first;
    const void* next = element(weights_at(p, c.head, i + kAhead), p.w.dtype, panel.first);
    for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(element(next, p.w.dtype, j));
    widen_row<V>(element(weights_at(p, c.head, i), p.w.dtype, panel.first), p.w.dtype, count, to);
    for (int64_t j = count; j < width; ++j) to[j] = 0.0f;
  });
}

// Weights are read row after row, and asked for before: memory is slow to give rows in pieces.
template <class V>
inline void pack(const HeadProduct& p, const Columns& c, const PackedScratch& x) {
  if (p.rows_are_to) {
    for_panels<V>(c, from_of(p), x.packed, [&](const Columns& panel, float* to) {
      turn_panel<V>(p, panel, x.weights, to);
    });
  } else {
    for (int64_t i = 0; i < from_of(p); ++i) cut_row<V>(p, c, i, x.packed);
  }
}

// For as many columns as are packed at a time.
template <class V>
inline void multiply_part(const HeadProduct& p, const Columns& c, const PackedScratch& x) {
  const int64_t from = from_of(p);
  pack<V>(p, c, x);
  for (int64_t r = 0; r < rows_of(p); r += kRows) {
    const Group group = group_of(p, c.head, r);
    const Rows rows = rows_of_x<V>(p, group, x.rows);
    for_panels<V>(c, from, x.packed, [&](const Columns& panel, const float* packed) {
      product<V, V::panel, false>(group.count, rows.data, rows.stride, 1, packed, from, x.out);
      store_rows(p, panel, group, panel_width<V>(), x.out);
    });
  }
}

template <class V>
inline void multiply_packed(const HeadProduct& p, const Columns& c, const PackedScratch& x) {
  const int64_t some = packed_columns<V>(p);
  for (int64_t i = c.first; i < c.end; i += some) multiply_part<V>(p, {c.head, i, least(i + some, c.end)}, x);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_EXPANDED_PACKED_H_
