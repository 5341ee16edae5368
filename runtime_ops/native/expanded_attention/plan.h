// From the caller's arguments to a checked Expanded.
#ifndef GRAFT_EXPANDED_PLAN_H_
#define GRAFT_EXPANDED_PLAN_H_

#include <string>

#include "problem.h"

namespace graft {

struct ExpandedPlan {
  Expanded problem;
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const graft_expanded_attention& args, const graft_pool* pool, ExpandedPlan* plan);

}  // namespace graft

#endif  // GRAFT_EXPANDED_PLAN_H_
