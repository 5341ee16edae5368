// From the caller's arguments to a checked FeedForward.
#ifndef GRAFT_TOPK_FEED_FORWARD_PLAN_H_
#define GRAFT_TOPK_FEED_FORWARD_PLAN_H_

#include <string>

#include "problem.h"

namespace graft {

struct FeedForwardArgs {
  graft_topk_feed_forward given;
  const Near* near;  // or NULL
};

struct FeedForwardPlan {
  FeedForward problem;
};

// An empty string, or what was met and what is allowed.
std::string make_plan(const FeedForwardArgs& args, const graft_pool* pool, FeedForwardPlan* plan);

// What a caller that keeps its weights should give as `near`, rounded: w_in or w_gate, or NULL where it would not pay.
const graft_tensor* wants_near(const graft_topk_feed_forward& args);

// graft_run_topk_feed_forward with all that there is.
const char* run_feed_forward(const FeedForwardArgs& args, const char* isa, const graft_pool* pool);

}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_PLAN_H_
