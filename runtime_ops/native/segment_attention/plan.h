// From the caller's arguments to a checked SegmentProblem.
#ifndef GRAFT_SEGMENT_PLAN_H_
#define GRAFT_SEGMENT_PLAN_H_

#include <string>

#include "problem.h"

namespace graft {

struct SegmentPlan {
  SegmentProblem problem;
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const graft_segment_attention& args, const graft_pool* pool, SegmentPlan* plan);

}  // namespace graft

#endif  // GRAFT_SEGMENT_PLAN_H_
