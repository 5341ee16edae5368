// What SegmentAttention is given: arguments already checked by plan.cc.
#ifndef GRAFT_SEGMENT_PROBLEM_H_
#define GRAFT_SEGMENT_PROBLEM_H_

#include "../topk_attention/problem.h"

namespace graft {

struct SegmentProblem {
  graft_segment_attention args;  // strides of repeated axes are 0
  int64_t b, h, t, e;
  const graft_pool* pool;
};

// Runs a kernel of TopKAttention, over every key, on what each run of equal segments sees.
const char* run_segments(const SegmentProblem& p, Kernel kernel);

// The same call without segments.
graft_topk_attention whole(const graft_segment_attention& args);

}  // namespace graft

#endif  // GRAFT_SEGMENT_PROBLEM_H_
