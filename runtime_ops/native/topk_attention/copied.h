// Keys and values of some heads, copied to where their rows lie side by side. Rows that lie a whole token apart share
// few sets of the caches, and long ones more pages than a processor knows by heart; top-k attention reads rows in no
// order, and every attention reads most of them many times.
#ifndef GRAFT_COPIED_H_
#define GRAFT_COPIED_H_

#include "block.h"

namespace graft {
namespace {

// Key heads first .. end - 1.
struct Heads {
  int64_t first, end;
};

constexpr int64_t kLong = 8192;      // keys
constexpr int64_t kManyRows = 1024;  // that read them

inline bool worth_copying(const Problem& p, const graft_tensor& x) {
  const int64_t rows = p.s * (p.h / p.g);
  return x.strides[2] > 2 * x.shape[3] && (p.top_k > 0 ? rows * p.top_k > 4 * p.t : p.t > kLong && rows > kManyRows);
}

inline bool copies(const Problem& p) { return worth_copying(p, p.args.k) || worth_copying(p, p.args.v); }

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
  Heads heads;
};

inline void ask_for(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(row) + at);
}

constexpr int64_t kCopyAhead = 8;  // rows; no processor foresees steps of a token

inline void copy_row(const Block& k, int64_t j, const graft_tensor& from, const graft_tensor& to) {
  if (from.data == to.data) return;
  const int64_t bytes = from.shape[3] * element_size(from.dtype), ahead = least(j + kCopyAhead, from.shape[2] - 1);
  ask_for(element(head_data(k, from), from.dtype, ahead * from.strides[2]), bytes);
  memcpy(const_cast<void*>(element(head_data(k, to), to.dtype, j * to.strides[2])),
         element(head_data(k, from), from.dtype, j * from.strides[2]), static_cast<size_t>(bytes));
}

constexpr int64_t kCopiedRows = 256;  // of a task

// Some rows of all heads: those of one token lie in the same page.
inline void copy_task(void* state, int64_t index) {
  const CopyJob& job = *static_cast<CopyJob*>(state);
  const Problem& p = *job.far;
  const int64_t first = index * kCopiedRows;
  for (int64_t j = first; j < least(first + kCopiedRows, p.t); ++j) {
    for (int64_t head = job.heads.first; head < job.heads.end; ++head) {
      const Block k{head / p.g, head % p.g, 0, 0, 0};
      copy_row(k, j, p.args.k, job.copied->args.k);
      copy_row(k, j, p.args.v, job.copied->args.v);
    }
  }
}

// The problem with copies of some heads, once these are made.
inline Problem take_heads(const Problem& p, Heads heads, Arena* arena) {
  Problem copied = p;
  copied.args.k = take_copied(p, p.args.k, heads, arena);
  copied.args.v = take_copied(p, p.args.v, heads, arena);
  return copied;
}

inline void copy_heads(const Problem& far, const Problem& copied, Heads heads) {
  CopyJob job{&far, &copied, heads};
  if (copies(far)) run_tasks(far.pool, ceil_div(far.t, kCopiedRows), copy_task, &job);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_COPIED_H_
