// Keys and values of some heads, copied to where their rows lie side by side. Rows that lie a whole token apart share
// few sets of the caches, and top-k attention reads rows in no order, most of them many times.
#ifndef GRAFT_COPIED_H_
#define GRAFT_COPIED_H_

#include "block.h"

namespace graft {
namespace {

// Key heads first .. end - 1.
struct Heads {
  int64_t first, end;
};

inline bool worth_copying(const Problem& p, const graft_tensor& x) {
  return x.strides[2] > 2 * x.shape[3] && p.s * (p.h / p.g) * p.top_k > 4 * p.t;
}

// [heads][t][width], if that is worth it, else x as it is. What it holds is still to be copied.
inline graft_tensor take_copied(const Problem& p, const graft_tensor& x, Heads heads, Arena* arena) {
  if (!worth_copying(p, x)) return x;
  const int64_t head = p.t * x.shape[3], size = head * element_size(x.dtype);
  char* data = arena->take<char>((heads.end - heads.first) * size);
  graft_tensor copied = x;
  copied.data = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(data) - static_cast<uintptr_t>(heads.first * size));
  copied.strides[0] = p.g * head, copied.strides[1] = head, copied.strides[2] = x.shape[3];
  return copied;
}

struct CopyJob {
  const Problem* far;
  const Problem* copied;
  int64_t first;  // of the key heads
};

inline void copy_rows(const Problem& p, const Block& k, const graft_tensor& from, const graft_tensor& to) {
  if (from.data == to.data) return;
  const int64_t row = from.shape[3] * element_size(from.dtype);
  char* at = static_cast<char*>(const_cast<void*>(head_data(k, to)));
  for (int64_t j = 0; j < p.t; ++j, at += row) {
    memcpy(at, element(head_data(k, from), from.dtype, j * from.strides[2]), static_cast<size_t>(row));
  }
}

inline void copy_task(void* state, int64_t index) {
  const CopyJob& job = *static_cast<CopyJob*>(state);
  const int64_t head = job.first + index;
  const Block k{head / job.far->g, head % job.far->g, 0, 0, 0};
  copy_rows(*job.far, k, job.far->args.k, job.copied->args.k);
  copy_rows(*job.far, k, job.far->args.v, job.copied->args.v);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COPIED_H_
