// Segment attention as attention over parts: a run of queries with one segment id sees the keys from the first to the
// last token of that segment. A segment in one piece needs no mask; between the pieces of another, a key mask hides
// the rest, and kernels leave out what it hides.
#include <unordered_map>
#include <vector>

#include "../dispatch.h"
#include "../topk_attention/plan.h"
#include "problem.h"

namespace graft {
namespace {

// Half-open: tokens of a run of equal ids, and the keys that they may see.
struct Run {
  int64_t first, end;
  int64_t keys_first, keys_end;
  bool pieces;  // tokens of other segments lie among the keys
};

size_t bytes_of(int32_t dtype) { return dtype == GRAFT_F32 ? 4 : dtype == GRAFT_BOOL ? 1 : 2; }

int64_t id_at(const SegmentProblem& p, int64_t row, int64_t token) {
  const graft_tensor& x = p.args.segments;
  return static_cast<const int64_t*>(x.data)[row * x.strides[0] + token * x.strides[1]];
}

bool same_rows(const SegmentProblem& p, int64_t a, int64_t b) {
  if (p.args.segments.strides[0] == 0) return true;
  for (int64_t i = 0; i < p.t; ++i) {
    if (id_at(p, a, i) != id_at(p, b, i)) return false;
  }
  return true;
}

std::vector<Run> runs_of(const SegmentProblem& p, int64_t row) {
  struct Span {
    int64_t first, end, count;
  };
  std::unordered_map<int64_t, Span> spans;
  std::vector<Run> runs;
  for (int64_t i = 0; i < p.t; ++i) {
    Span& span = spans.emplace(id_at(p, row, i), Span{i, i, 0}).first->second;
    span.end = i + 1, ++span.count;
    if (i == 0 || id_at(p, row, i) != id_at(p, row, i - 1)) runs.push_back({i, i, 0, 0, false});
    runs.back().end = i + 1;
  }
  for (Run& run : runs) {
    const Span& span = spans.at(id_at(p, row, run.first));
    run.keys_first = span.first, run.keys_end = span.end, run.pieces = span.count < span.end - span.first;
  }
  return runs;
}

// The part [first, end) of a tensor along an axis; a repeated axis of length 1 stays as it is.
void cut(graft_tensor* x, int axis, int64_t first, int64_t end) {
  if (x->data == nullptr || (x->shape[axis] == 1 && x->strides[axis] == 0)) return;
  x->data = static_cast<char*>(x->data) + first * x->strides[axis] * static_cast<int64_t>(bytes_of(x->dtype));
  x->shape[axis] = end - first;
}

// Which keys of a run are of its segment and visible, for rows [row, row_end) of the batch.
void hide_others(const SegmentProblem& p, const Run& run, int64_t row, std::vector<char>* visible, graft_tensor* mask) {
  const graft_tensor given = *mask;
  const int64_t rows = given.data == nullptr ? 1 : given.shape[0], keys = run.keys_end - run.keys_first;
  visible->resize(static_cast<size_t>(rows * keys));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < keys; ++j) {
      const bool same = id_at(p, row, run.keys_first + j) == id_at(p, row, run.first);
      const char* at = static_cast<const char*>(given.data);
      const bool seen = at == nullptr || at[i * given.strides[0] + j * given.strides[1]] != 0;
      (*visible)[static_cast<size_t>(i * keys + j)] = same && seen;
    }
  }
  *mask = {visible->data(), GRAFT_BOOL, 2, {rows, keys}, {keys, 1}};
}

const char* attend(const SegmentProblem& p, const Run& run, int64_t row, int64_t row_end, Kernel kernel) {
  graft_topk_attention part = whole(p.args);
  for (graft_tensor* x : {&part.q, &part.k, &part.v, &part.bias, &part.key_mask, &part.out}) cut(x, 0, row, row_end);
  for (graft_tensor* x : {&part.q, &part.bias, &part.out}) cut(x, 2, run.first, run.end);
  for (graft_tensor* x : {&part.k, &part.v}) cut(x, 2, run.keys_first, run.keys_end);
  cut(&part.bias, 3, run.keys_first, run.keys_end);
  cut(&part.key_mask, 1, run.keys_first, run.keys_end);
  std::vector<char> visible;
  if (run.pieces) hide_others(p, run, row, &visible, &part.key_mask);
  Plan plan;
  const std::string error = make_plan(part, p.pool, &plan);
  return error.empty() ? kernel(plan.problem) : keep(error);
}

}  // namespace

// Rows of the batch that are cut alike are worked on together.
const char* run_segments(const SegmentProblem& p, Kernel kernel) {
  for (int64_t row = 0, end; row < p.b; row = end) {
    for (end = row + 1; end < p.b && same_rows(p, row, end); ++end) {
    }
    for (const Run& run : runs_of(p, row)) {
      const char* error = attend(p, run, row, end, kernel);
      if (error != nullptr) return error;
    }
  }
  return nullptr;
}

}  // namespace graft
