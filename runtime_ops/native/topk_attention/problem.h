// What a TopKAttention kernel is given: arguments already checked and resolved by plan.cc. Included by files built for
// different instruction sets, so nothing here may be an inline function or a template that the linker could share.
#ifndef GRAFT_PROBLEM_H_
#define GRAFT_PROBLEM_H_

#include "../services.h"

namespace graft {

// Queries are cut into units of rows that read the same keys: one query head, or, when s is small, all
// query heads of one key head (decoding then reads every key once, not once per query head).
struct Problem {
  graft_topk_attention args;
  int64_t b, h, g, s, t, d, e;
  int64_t units;          // per batch entry
  int64_t rows;           // per unit
  int64_t top_k;          // 0 = every key
  int64_t block_rows;     // rows of one task where every key is read; 0 = the kernel's choice
  const float* key_bias;  // [b or 1][h or 1][t], -inf where key_mask hides; NULL = none
  int64_t key_bias_b, key_bias_h;  // its strides
  bool key_bias_wide;     // some finite entry is so low that it may underflow: worth proving
  bool row_bias;          // args.bias varies along s and is read tile by tile
  const graft_pool* pool;
};

// Below this distance from the row's maximum, exp gives exactly 0 in fp32, denormals included.
constexpr float kUnderflow = 110.0f;

// NULL, or a sentence. Kernels fail for lack of memory only.
using Kernel = const char* (*)(const Problem&);

}  // namespace graft

#endif  // GRAFT_PROBLEM_H_
