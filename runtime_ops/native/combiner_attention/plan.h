// From the caller's arguments to a checked Combiner.
#ifndef GRAFT_COMBINER_ATTENTION_PLAN_H_
#define GRAFT_COMBINER_ATTENTION_PLAN_H_

#include <string>

#include "problem.h"

namespace graft {

struct CombinerPlan {
  Combiner problem;
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const graft_combiner_attention& args, const graft_pool* pool, CombinerPlan* plan);

}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_PLAN_H_
