// The entry point of a CombinerAttention kernel for one vector type: a task for every query head.
#ifndef GRAFT_COMBINER_ATTENTION_KERNEL_H_
#define GRAFT_COMBINER_ATTENTION_KERNEL_H_

#include "grid.h"
#include "logsparse.h"

namespace graft {
namespace {

struct Job {
  const Combiner* p;
  Workspaces* spaces;
};

template <class V>
inline void run_variant(Head* x) {
  x->share = 1.0f, x->more = false;
  switch (x->p->variant) {
    case Variant::fixed: return fixed<V>(*x);
    case Variant::vertical: return vertical<V>(*x);
    case Variant::horizontal: return horizontal<V>(*x);
    case Variant::row_major: return row_major<V>(*x);
    default: break;
  }
  x->share = 0.5f;
  fixed<V>(*x);
  x->more = true;
  vertical<V>(*x);
}

template <class V>
inline void run_grid(const Combiner& p, int64_t b, int64_t head, Arena* arena) {
  Head x = cut_head<V>(p, arena);
  load_head<V>(b, head, &x);
  run_variant<V>(&x);
  store_head(b, head, x);
  level_unseeing(p, b, head, x.bias, x.panel.o);
}

template <class V>
inline void run_levels(const Combiner& p, int64_t b, int64_t head, Arena* arena) {
  Levels x = cut_levels<V>(p, arena);
  load_levels(b, head, &x);
  logsparse<V>(&x);
  level_unseeing(p, b, head, x.bias, x.panel.o);
}

template <class V>
inline void head_task(void* state, int64_t index) {
  const Job& job = *static_cast<Job*>(state);
  void* space = job.spaces->take();
  if (space == nullptr) return;
  Arena arena(space);
  const Combiner& p = *job.p;
  (p.variant == Variant::logsparse ? run_levels<V> : run_grid<V>)(p, index / p.h, index % p.h, &arena);
  job.spaces->give(space);
}

template <class V>
inline const char* run_kernel(const Combiner& p) {
  Arena size(nullptr);
  if (p.variant == Variant::logsparse) cut_levels<V>(p, &size);
  else cut_head<V>(p, &size);
  Workspaces spaces(size.bytes());
  Job job{&p, &spaces};
  run_tasks(p.pool, p.b * p.h, head_task<V>, &job);
  return spaces.error();
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_KERNEL_H_
