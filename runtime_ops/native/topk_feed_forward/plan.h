// From the caller's arguments to a checked FeedForward.
#ifndef GRAFT_TOPK_FEED_FORWARD_PLAN_H_
#define GRAFT_TOPK_FEED_FORWARD_PLAN_H_

#include <string>

#include "problem.h"

namespace graft {

struct FeedForwardPlan {
  FeedForward problem;
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const graft_topk_feed_forward& args, const graft_pool* pool, FeedForwardPlan* plan);

}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_PLAN_H_
