// Exact attention of the queries of one line of the grid (a row or a column) to what all of them read: keys of their
// line, or summaries of regions. A softmax can go on from line to line: it is kept in State.
#ifndef GRAFT_COMBINER_ATTENTION_LINES_H_
#define GRAFT_COMBINER_ATTENTION_LINES_H_

#include "head.h"

namespace graft {
namespace {

enum class Sees { all, upto, before, after, other };  // than the query's own place

// Keys with their values. Query x of a line stands at place `own` + x among them.
struct Source {
  Rows keys, values;
  const float* bias;  // or NULL
  int64_t bias_step, count;
  Sees sees;
  int64_t own;
};

// Queries of a line, and where their results go.
struct Line {
  Rows queries;
  int64_t count;
  int64_t width;     // of values
  float* to;         // normalised, unless the state takes it
  int64_t to_step;
  float share;
  bool add;
  State state;       // of the line's first query
  int64_t step;      // from token to token in the state
  bool resume, suspend;
};

struct Place {
  int64_t first, last;
};

template <class V>
inline void begin_panel(const Head& x, const Line& line, int64_t first, int64_t rows, Panel* a) {
  const Combiner& p = *x.p;
  a->rows = rows;
  const int64_t width = vectors_for<V>(rows) * V::lanes;
  pack_transposed<V>(line.queries.at(first), line.queries.step, rows, p.d, a->q, width);
  clear_panel(width, line.width, a);
  if (!line.resume) return;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = (first + r) * line.step;
    a->max[r] = line.state.max[token];
    a->sum[r] = line.state.sum[token];
    for (int64_t c = 0; c < line.width; ++c) a->o[c * width + r] = line.state.o[token * line.width + c];
  }
}

inline void suspend_row(const Line& line, const Panel& a, int64_t width, int64_t first, int64_t r) {
  const int64_t token = (first + r) * line.step;
  line.state.max[token] = a.max[r];
  line.state.sum[token] = a.sum[r];
  for (int64_t c = 0; c < line.width; ++c) line.state.o[token * line.width + c] = a.o[c * width + r];
}

template <class V>
inline void end_panel(const Line& line, int64_t first, const Panel& a) {
  const int64_t width = vectors_for<V>(a.rows) * V::lanes;
  for (int64_t r = 0; r < a.rows; ++r) {
    if (line.suspend) {
      suspend_row(line, a, width, first, r);
      continue;
    }
    float* to = line.to + (first + r) * line.to_step;
    const float factor = a.sum[r] > 0.0f ? line.share / a.sum[r] : 0.0f;
    for (int64_t c = 0; c < line.width; ++c) {
      const float one = a.o[c * width + r] * factor;
      to[c] = line.add ? to[c] + one : one;
    }
  }
}

// Which keys at least one query of these places sees.
inline Place range(const Source& s, const Place& own) {
  switch (s.sees) {
    case Sees::upto: return {0, least(s.count, own.last + 1)};
    case Sees::before: return {0, least(s.count, own.last)};
    case Sees::after: return {most<int64_t>(0, own.first + 1), s.count};
    default: return {0, s.count};
  }
}

// Whether some query of these places does not see one of n keys.
inline bool cuts(Sees sees, const Place& own, int64_t from, int64_t n) {
  switch (sees) {
    case Sees::upto: return from + n - 1 > own.first;
    case Sees::before: return from + n > own.first;
    case Sees::after: return from <= own.last;
    case Sees::other: return from <= own.last && from + n > own.first;
    default: return false;
  }
}

template <class V>
inline void hide_places(Sees sees, int64_t first, int64_t from, int64_t n, int64_t width, float* scores) {
  using F = typename V::F;
  float places[V::panel * V::lanes];
  for (int64_t r = 0; r < width; ++r) places[r] = static_cast<float>(first + r - from);
  const F hidden = V::set1(-kInf);
  for_scores<V>(n, width, scores, [&](F s, int64_t j, int64_t r) {
    const F own = V::load(places + r), key = V::set1(static_cast<float>(j));
    if (sees == Sees::upto) return V::blend(V::gt(key, own), hidden, s);
    if (sees == Sees::before) return V::blend(V::gt(own, key), s, hidden);
    if (sees == Sees::after) return V::blend(V::gt(key, own), s, hidden);
    return V::blend(V::eq(key, own), hidden, s);
  });
}

template <class V, int RN>
inline void read_source(const Head& x, const Source& s, int64_t values, int64_t first, Panel* a) {
  constexpr int64_t width = RN * V::lanes;
  const Place own{s.own + first, s.own + first + a->rows - 1}, seen = range(s, own);
  for (int64_t from = seen.first; from < seen.last; from += kKeys) {
    const int64_t n = least(kKeys, seen.last - from);
    product<V, RN, false>(n, s.keys.at(from), s.keys.step, 1, a->q, x.p->d, x.scores);
    if (s.bias != nullptr) add_bias<V>(s.bias + from * s.bias_step, s.bias_step, n, width, x.scores);
    if (cuts(s.sees, own, from, n)) hide_places<V>(s.sees, own.first, from, n, width, x.scores);
    exponentials<V, RN>(values, n, x.scores, a);
    product<V, RN, true>(values, s.values.at(from), 1, s.values.step, x.scores, n, a->o);
  }
}

// Chooses the instance of read_source for the panel's width.
template <class V, int RN = V::panel>
inline void read(const Head& x, const Source& s, int64_t values, int64_t first, Panel* a) {
  if constexpr (RN > 1) {
    if (vectors_for<V>(a->rows) < RN) return read<V, RN / 2>(x, s, values, first, a);
  }
  read_source<V, RN>(x, s, values, first, a);
}

template <class V, size_t N>
inline void attend(const Head& x, const Line& line, const Source (&sources)[N]) {
  Panel a = x.panel;
  for (int64_t first = 0; first < line.count; first += panel_width<V>()) {
    begin_panel<V>(x, line, first, least(panel_width<V>(), line.count - first), &a);
    for (const Source& s : sources) read<V>(x, s, line.width, first, &a);
    end_panel<V>(line, first, a);
  }
}

// Queries whose results go to out.
inline Line final_line(const Head& x, int64_t token, int64_t step, int64_t count) {
  Line line{};
  line.queries = {x.q.at(token), x.q.step * step};
  line.count = count, line.width = x.p->e;
  line.to = x.out + token * x.out_step, line.to_step = x.out_step * step;
  line.share = x.share, line.add = x.more;
  line.state = {x.state.o + token * x.p->e, x.state.max + token, x.state.sum + token};
  line.step = step;
  return line;
}

// Queries of regions, whose results are values of these regions.
inline Line region_line(Rows queries, float* to, int64_t width, int64_t step, int64_t count) {
  Line line{};
  line.queries = queries, line.count = count, line.width = width;
  line.to = to, line.to_step = width * step;
  line.share = 1.0f;
  return line;
}

// Keys of a line of tokens.
inline Source token_source(const Head& x, int64_t token, int64_t step, int64_t count, Sees sees) {
  Source s{};
  s.keys = {x.k.at(token), x.k.step * step};
  s.values = {x.v.at(token), x.v.step * step};
  s.bias = x.bias == nullptr ? nullptr : x.bias + token, s.bias_step = step;
  s.count = count, s.sees = sees;
  return s;
}

// A line of regions.
inline Source region_source(const Head& x, int64_t region, int64_t step, int64_t count, Sees sees) {
  const Combiner& p = *x.p;
  Source s{};
  s.keys = {x.regions.keys + region * p.d, p.d * step};
  s.values = {x.regions.values + region * p.e, p.e * step};
  s.bias = x.regions.bias + region, s.bias_step = step;
  s.count = count, s.sees = sees;
  return s;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_LINES_H_
