// What ExpandedAttention is given: arguments already checked by plan.cc. Included by files built for different
// instruction sets, so nothing here may be an inline function or a template that the linker could share.
#ifndef GRAFT_EXPANDED_PROBLEM_H_
#define GRAFT_EXPANDED_PROBLEM_H_

#include "../topk_attention/problem.h"

namespace graft {

struct Expanded {
  graft_expanded_attention args;  // strides of repeated axes are 0; bias [n h s t], or [b h s t] without beam_index
  int64_t n, b, h, g, s, t, d, e, m;
  const graft_pool* pool;
};

// y = x · w, each head by its own weights: x [n h s from], y [n h s to].
struct HeadProduct {
  graft_tensor x, w, y;
  bool rows_are_to;      // w is [g to from], else [g from to]
  const graft_tensor* bias;  // [g to], or NULL
  const uint8_t* biased;     // [n h s]: to which rows it is added; NULL = to all
  const graft_pool* pool;
};

// What instruction sets differ in.
struct ExpandedKernel {
  const char* (*multiply)(const HeadProduct&);
  Kernel attend;  // of TopKAttention
};

const char* run_expanded(const Expanded& p, const ExpandedKernel& kernel);

}  // namespace graft

#endif  // GRAFT_EXPANDED_PROBLEM_H_
