// Where the rows and the weights of a HeadProduct lie, and where its results belong.
#ifndef GRAFT_EXPANDED_ROWS_H_
#define GRAFT_EXPANDED_ROWS_H_

#include "../vector/math.h"
#include "problem.h"

namespace graft {
namespace {

constexpr int64_t kRows = 32;  // that go through weights together

struct Columns {
  int64_t head, first, end;  // of the weights; results
};

inline int64_t from_of(const HeadProduct& p) { return p.x.shape[3]; }
inline int64_t to_of(const HeadProduct& p) { return p.y.shape[3]; }
inline int64_t heads_of(const HeadProduct& p) { return p.w.shape[0]; }
inline int64_t rows_of(const HeadProduct& p) { return p.x.shape[0] * (p.x.shape[1] / heads_of(p)) * p.x.shape[2]; }

// A row that a head of the weights multiplies, by its place among them.
struct Place {
  int64_t n, h, s;
};

inline Place place_of(const HeadProduct& p, int64_t head, int64_t r) {
  const int64_t share = p.x.shape[1] / heads_of(p), s = p.x.shape[2];
  return {r / (share * s), head * share + r / s % share, r % s};
}

inline int64_t offset_of(const graft_tensor& x, const Place& at) {
  return at.n * x.strides[0] + at.h * x.strides[1] + at.s * x.strides[2];
}

inline const void* row_at(const graft_tensor& x, const Place& at) { return element(x.data, x.dtype, offset_of(x, at)); }

// Rows that go through the weights of a head together.
struct Group {
  int64_t count;
  Place at[kRows];
};

inline Group group_of(const HeadProduct& p, int64_t head, int64_t first) {
  Group group{least(kRows, rows_of(p) - first), {}};
  for (int64_t r = 0; r < group.count; ++r) group.at[r] = place_of(p, head, first + r);
  return group;
}

struct Rows {
  const float* data;
  int64_t stride;
};

// The group's rows of x in fp32: in place where they lie ready and equally far apart, else copied to `scratch`.
template <class V>
inline Rows rows_of_x(const HeadProduct& p, const Group& group, float* scratch) {
  const auto offset = [&](int64_t r) { return offset_of(p.x, group.at[r]); };
  const int64_t stride = group.count > 1 ? offset(1) - offset(0) : 0;
  bool ready = p.x.dtype == GRAFT_F32;
  for (int64_t r = 1; r < group.count; ++r) ready = ready && offset(r) - offset(r - 1) == stride;
  if (ready) return {static_cast<const float*>(row_at(p.x, group.at[0])), stride};
  for (int64_t r = 0; r < group.count; ++r) {
    widen_row<V>(row_at(p.x, group.at[r]), p.x.dtype, from_of(p), scratch + r * from_of(p));
  }
  return {scratch, from_of(p)};
}

inline bool is_biased(const HeadProduct& p, const Place& at) {
  if (p.bias == nullptr) return false;
  return p.biased == nullptr || p.biased[(at.n * p.y.shape[1] + at.h) * p.y.shape[2] + at.s] != 0;
}

// Results [count][width] of columns `first` .. `end`, to where they belong.
inline void store_rows(const HeadProduct& p, const Columns& c, const Group& group, int64_t width, const float* from) {
  for (int64_t r = 0; r < group.count; ++r, from += width) {
    const bool biased = is_biased(p, group.at[r]);
    void* to = const_cast<void*>(row_at(p.y, group.at[r]));
    if (!biased && p.y.dtype == GRAFT_F32) {
      memcpy(static_cast<float*>(to) + c.first, from, static_cast<size_t>(c.end - c.first) * sizeof(float));
      continue;
    }
    for (int64_t i = c.first; i < c.end; ++i) {
      float value = from[i - c.first];
      if (biased) value += widen1(p.bias->data, p.bias->dtype, c.head * p.bias->strides[0] + i * p.bias->strides[1]);
      narrow1(to, p.y.dtype, i, value);
    }
  }
}

inline const void* weights_at(const HeadProduct& p, int64_t head, int64_t row) {
  return element(p.w.data, p.w.dtype, head * p.w.strides[0] + row * p.w.strides[1]);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_EXPANDED_ROWS_H_
