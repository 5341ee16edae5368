// From the caller's arguments to a checked Problem.
#ifndef GRAFT_PLAN_H_
#define GRAFT_PLAN_H_

#include <math.h>

#include <string>
#include <vector>

#include "../refusal.h"
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

// Whether a type is one that kernels compute with.
inline bool is_float(int32_t dtype) { return dtype == GRAFT_F32 || dtype == GRAFT_F16 || dtype == GRAFT_BF16; }

// Checks the attributes that every attention over chosen keys has; an empty string, or what was met and what is allowed.
template <class Args>
std::string check_attention_attributes(const Args& a) {
  if (a.top_k < 0) return refuse("k", std::to_string(a.top_k), "0 (every key) or more");
  if (!(a.softcap >= 0.0f) || isinf(a.softcap)) {
    return refuse("softcap", std::to_string(a.softcap), "0 (none) or a positive number");
  }
  if (!isfinite(a.scale)) return refuse("scale", std::to_string(a.scale), "a finite number");
  if (a.causal != 0 && a.causal != 1) return refuse("causal", std::to_string(a.causal), "0 or 1");
  if (a.window < 0) return refuse("window", std::to_string(a.window), "0 (none) or more");
  return check_no_key(a.no_key);
}

}  // namespace graft

#endif  // GRAFT_PLAN_H_
