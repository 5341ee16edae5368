// From the caller's arguments to a checked FeedForward.
#ifndef GRAFT_TOPK_FEED_FORWARD_PLAN_H_
#define GRAFT_TOPK_FEED_FORWARD_PLAN_H_

#include <string>

#include "keep.h"

namespace graft {

struct FeedForwardArgs {
  graft_topk_feed_forward given;
  KeptNear* kept;  // of w_gate or w_in, whose numbers never change; or NULL
};

struct FeedForwardPlan {
  FeedForward problem;
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const FeedForwardArgs& args, const graft_pool* pool, FeedForwardPlan* plan);

// graft_run_topk_feed_forward with all that there is.
const char* run_feed_forward(const FeedForwardArgs& args, const char* isa, const graft_pool* pool);

}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_PLAN_H_
