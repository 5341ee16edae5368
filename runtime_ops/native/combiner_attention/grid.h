// The factorisations over a grid of tokens (Ren et al. 2021, sections 3 and 4): `fixed` and the axial ones.
#ifndef GRAFT_COMBINER_ATTENTION_GRID_H_
#define GRAFT_COMBINER_ATTENTION_GRID_H_

#include "lines.h"

namespace graft {
namespace {

inline int64_t row_count(const Combiner& p, const Shape2& grid, int64_t row) {
  return least(grid.m, p.t - row * grid.m);
}
inline int64_t column_count(const Combiner& p, const Shape2& grid, int64_t column) {
  return ceil_div(p.t - column, grid.m);
}

inline Sees own_row_sees(const Combiner& p) { return p.args.causal ? Sees::upto : Sees::all; }
inline Sees others_see(const Combiner& p) { return p.args.causal ? Sees::before : Sees::other; }

template <class V>
inline void join_token(const Head& x, int64_t token, int64_t from, int64_t region) {
  join_token<V>(*x.p, x.q.at(token), x.k.at(token), from, region, x.regions);
}

inline void copy_region(const Head& x, int64_t from, int64_t to) {
  const Combiner& p = *x.p;
  for (int64_t c = 0; c < p.d; ++c) {
    x.regions.keys[to * p.d + c] = x.regions.keys[from * p.d + c];
    x.regions.queries[to * p.d + c] = x.regions.queries[from * p.d + c];
  }
  x.regions.size[to] = x.regions.size[from];
}

// One region for every row.
template <class V>
inline void summarise_rows(const Head& x, const Shape2& grid) {
  const Combiner& p = *x.p;
  for (int64_t r = 0; r < grid.n; ++r) {
    clear_region(p, x.regions, r);
    for (int64_t i = r * grid.m; i < r * grid.m + row_count(p, grid, r); ++i) {
      if (shown(x, i)) join_token<V>(x, i, r, r);
    }
  }
  settle_all<V>(p, grid.n, x.regions);
  for (int64_t r = 0; r < grid.n; ++r) {
    const Source row[] = {token_source(x, r * grid.m, 1, row_count(p, grid, r), Sees::all)};
    const Rows query{x.regions.queries + r * p.d, p.d};
    attend<V>(x, region_line(query, x.regions.values + r * p.e, p.e, 1, 1), row);
  }
}

// Own row directly; every other row (earlier ones if causal) is one region.
template <class V>
inline void fixed(const Head& x) {
  const Combiner& p = *x.p;
  const Shape2& grid = p.rows;
  summarise_rows<V>(x, grid);
  for (int64_t r = 0; r < grid.n; ++r) {
    const int64_t first = r * grid.m, count = row_count(p, grid, r), later = p.args.causal ? 0 : grid.n - r - 1;
    const Source sources[] = {
        token_source(x, first, 1, count, own_row_sees(p)),
        region_source(x, 0, 1, r, Sees::all),
        region_source(x, r + 1, 1, later, Sees::all),
    };
    attend<V>(x, final_line(x, first, 1, count), sources);
  }
}

// For every cell the region of its column's tokens above (below) its row.
template <class V>
inline void pool_columns(const Head& x, const Shape2& grid, bool above) {
  const Combiner& p = *x.p;
  const int64_t step = above ? -grid.m : grid.m;
  for (int64_t i = 0; i < grid.n; ++i) {
    const int64_t row = above ? i : grid.n - 1 - i;
    for (int64_t cell = row * grid.m; cell < (row + 1) * grid.m; ++cell) {
      const int64_t from = cell + step;
      if (i == 0) clear_region(p, x.regions, cell);
      else if (from < p.t && shown(x, from)) join_token<V>(x, from, from, cell);
      else copy_region(x, from, cell);
    }
  }
  settle_all<V>(p, grid.n * grid.m, x.regions);
}

template <class V>
inline void summarise_columns(const Head& x, const Shape2& grid, bool above) {
  const Combiner& p = *x.p;
  pool_columns<V>(x, grid, above);
  for (int64_t c = 0; c < grid.m; ++c) {
    const Sees sees = above ? Sees::before : Sees::after;
    const Source column[] = {token_source(x, c, grid.m, column_count(p, grid, c), sees)};
    const Rows queries{x.regions.queries + c * p.d, p.d * grid.m};
    attend<V>(x, region_line(queries, x.regions.values + c * p.e, p.e, grid.m, grid.n), column);
  }
}

// Own rows, of which the softmax goes on by column.
template <class V>
inline void read_rows(const Head& x, const Shape2& grid) {
  for (int64_t r = 0; r < grid.n; ++r) {
    const int64_t count = row_count(*x.p, grid, r);
    const Source row[] = {token_source(x, r * grid.m, 1, count, own_row_sees(*x.p))};
    Line line = final_line(x, r * grid.m, 1, count);
    line.suspend = true;
    attend<V>(x, line, row);
  }
}

template <class V>
inline void read_summaries_by_row(const Head& x, const Shape2& grid) {
  for (int64_t r = 0; r < grid.n; ++r) {
    const Source regions[] = {region_source(x, r * grid.m, 1, grid.m, Sees::other)};
    Line line = final_line(x, r * grid.m, 1, row_count(*x.p, grid, r));
    line.resume = line.suspend = true;
    attend<V>(x, line, regions);
  }
}

// Own row and own column directly; of every other column the part above the row, and the part below it.
template <class V>
inline void vertical(const Head& x) {
  const Combiner& p = *x.p;
  const Shape2& grid = p.grid;
  read_rows<V>(x, grid);
  for (const bool above : {true, false}) {
    if (!above && p.args.causal) continue;
    summarise_columns<V>(x, grid, above);
    read_summaries_by_row<V>(x, grid);
  }
  for (int64_t c = 0; c < grid.m; ++c) {
    const int64_t count = column_count(p, grid, c);
    const Source column[] = {token_source(x, c, grid.m, count, others_see(p))};
    Line line = final_line(x, c, grid.m, count);
    line.resume = true;
    attend<V>(x, line, column);
  }
}

// For every cell the region of its row's other tokens: those before it, joined with those after it.
template <class V>
inline void pool_rows_without_one(const Head& x, const Shape2& grid) {
  const Combiner& p = *x.p;
  float *key = x.scores, *query = x.scores + p.d;
  for (int64_t r = 0; r < grid.n; ++r) {
    const int64_t first = r * grid.m;
    for (int64_t cell = first; cell < first + grid.m; ++cell) {
      if (cell == first) clear_region(p, x.regions, cell);
      else if (cell - 1 < p.t && shown(x, cell - 1)) join_token<V>(x, cell - 1, cell - 1, cell);
      else copy_region(x, cell - 1, cell);
    }
    fill(key, p.d, nothing(p));
    fill(query, p.d, nothing(p));
    float after = 0.0f;
    for (int64_t cell = first + grid.m - 1; cell >= first; --cell) {
      join<V>(p, x.regions.keys + cell * p.d, key, x.regions.keys + cell * p.d);
      join<V>(p, x.regions.queries + cell * p.d, query, x.regions.queries + cell * p.d);
      x.regions.size[cell] += after;
      if (cell >= p.t || !shown(x, cell)) continue;
      join<V>(p, key, x.k.at(cell), key);
      join<V>(p, query, x.q.at(cell), query);
      after += 1.0f;
    }
  }
  settle_all<V>(p, grid.n * grid.m, x.regions);
}

// Values (or keys) of every row's regions: what the queries read there.
template <class V>
inline void read_for_regions(const Head& x, const Shape2& grid, Rows queries, const Rows& values, int64_t width,
                             Sees sees, float* to) {
  for (int64_t r = 0; r < grid.n; ++r) {
    const int64_t first = r * grid.m;
    Source row[] = {token_source(x, first, 1, row_count(*x.p, grid, r), sees)};
    row[0].values = values.from(first);
    attend<V>(x, region_line(queries.from(first), to + first * width, width, 1, grid.m), row);
  }
}

// By column: own column directly where it is not summarised, and the regions of the other rows.
template <class V>
inline void read_columns(const Head& x, const Shape2& grid, bool direct) {
  const Combiner& p = *x.p;
  for (int64_t c = 0; c < grid.m; ++c) {
    const int64_t count = column_count(p, grid, c);
    const Source sources[] = {
        token_source(x, c, grid.m, direct ? count : 0, others_see(p)),
        region_source(x, c, grid.m, grid.n, others_see(p)),
    };
    Line line = final_line(x, c, grid.m, count);
    line.resume = true;
    attend<V>(x, line, sources);
  }
}

// Own row and own column directly; of every other row all but the query's column is one region.
template <class V>
inline void horizontal(const Head& x) {
  const Combiner& p = *x.p;
  pool_rows_without_one<V>(x, p.grid);
  read_for_regions<V>(x, p.grid, {x.regions.queries, p.d}, x.v, p.e, Sees::other, x.regions.values);
  read_rows<V>(x, p.grid);
  read_columns<V>(x, p.grid, true);
}

// Queries of hidden tokens and of cells without a token ask for the mean of their row.
inline void shown_queries(const Head& x, const Shape2& grid) {
  const Combiner& p = *x.p;
  for (int64_t cell = 0; cell < grid.n * grid.m; ++cell) {
    const bool there = cell < p.t && shown(x, cell);
    for (int64_t c = 0; c < p.d; ++c) x.regions.queries[cell * p.d + c] = there ? x.queries[cell * p.d + c] : 0.0f;
  }
}

// Own row directly; every other row is one region, which a query reads as the token of its column there does.
template <class V>
inline void row_major(const Head& x) {
  const Combiner& p = *x.p;
  const Shape2& grid = p.grid;
  for (int64_t r = 0; r < grid.n; ++r) {
    float size = 0.0f;
    for (int64_t i = 0; i < row_count(p, grid, r); ++i) size += shown(x, r * grid.m + i) ? 1.0f : 0.0f;
    const float bias = size == 0.0f ? -kInf : p.counted ? __builtin_logf(size) : 0.0f;
    fill(x.regions.bias + r * grid.m, grid.m, bias);
  }
  shown_queries(x, grid);
  const Rows queries{x.regions.queries, p.d};
  read_for_regions<V>(x, grid, queries, x.k, p.d, Sees::all, x.regions.keys);
  read_for_regions<V>(x, grid, queries, x.v, p.e, Sees::all, x.regions.values);
  read_rows<V>(x, grid);
  read_columns<V>(x, grid, false);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_GRID_H_
