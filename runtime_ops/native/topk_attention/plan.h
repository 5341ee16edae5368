// From the caller's arguments to a checked Problem.
#ifndef GRAFT_PLAN_H_
#define GRAFT_PLAN_H_

#include <string>
#include <vector>

#include "problem.h"

namespace graft {

struct Plan {
  Problem problem;
  std::vector<float> key_bias;  // what problem.key_bias points to
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const graft_topk_attention& args, const graft_pool* pool, Plan* plan);

// The same for q and out in fp32, whatever k and v are.
std::string make_wide_plan(const graft_topk_attention& args, const graft_pool* pool, Plan* plan);

}  // namespace graft

#endif  // GRAFT_PLAN_H_
