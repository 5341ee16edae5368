// Rows of every head times the weights of their head, in tasks of a head or of some of its results.
#ifndef GRAFT_EXPANDED_MULTIPLY_H_
#define GRAFT_EXPANDED_MULTIPLY_H_

#include "few.h"
#include "packed.h"

namespace graft {
namespace {

constexpr int64_t kFewTasks = 8;  // below this many heads, each is cut into several tasks

struct ProductJob {
  const HeadProduct* p;
  Workspaces* spaces;
  int64_t parts;  // tasks for a head of the weights
};

inline bool few(const HeadProduct& p) { return rows_of(p) <= kFewRows; }

template <class V>
inline size_t scratch_bytes(const HeadProduct& p) {
  Arena size(nullptr);
  if (few(p)) cut_few<V>(p, &size);
  else cut_packed<V>(p, &size);
  return size.bytes();
}

template <class V>
inline void multiply(const HeadProduct& p, const Columns& c, void* space) {
  Arena arena(space);
  if (few(p)) multiply_few<V>(p, c, cut_few<V>(p, &arena));
  else multiply_packed<V>(p, c, cut_packed<V>(p, &arena));
}

template <class V>
inline void product_task(void* state, int64_t index) {
  const ProductJob& job = *static_cast<ProductJob*>(state);
  void* space = job.spaces->take();
  if (space == nullptr) return;
  const int64_t share = round_up(ceil_div(to_of(*job.p), job.parts), panel_width<V>());
  const int64_t first = index % job.parts * share;
  const Columns c{index / job.parts, first, least(first + share, to_of(*job.p))};
  if (c.first < c.end) multiply<V>(*job.p, c, space);
  job.spaces->give(space);
}

template <class V>
inline const char* run_product(const HeadProduct& p) {
  const int64_t panels = ceil_div(to_of(p), panel_width<V>());
  Workspaces spaces(scratch_bytes<V>(p));
  ProductJob job{&p, &spaces, least(panels, ceil_div(kFewTasks, heads_of(p)))};
  run_tasks(p.pool, heads_of(p) * job.parts, product_task<V>, &job);
  return spaces.error();
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_EXPANDED_MULTIPLY_H_
