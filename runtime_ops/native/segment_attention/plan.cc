// Checks the arguments of SegmentAttention. All but the segments are those of TopKAttention, and checked there.
#include "plan.h"

#include "../refusal.h"
#include "../topk_attention/plan.h"

namespace graft {
namespace {

std::string check_segments(const Problem& all, graft_tensor* x) {
  if (all.s != all.t) {
    return refuse("q and k", std::to_string(all.s) + " and " + std::to_string(all.t) + " tokens", "the same tokens");
  }
  if (x->dtype != GRAFT_I64) return refuse("segments", "element type " + std::to_string(x->dtype), "7 (int64)");
  if (x->rank != 2) return refuse("segments", "rank " + std::to_string(x->rank), "2: [b t]");
  const int64_t lengths[2] = {all.b, all.t};
  for (int i = 0; i < 2; ++i) {
    if (x->shape[i] == 1) {
      x->strides[i] = 0;
    } else if (x->shape[i] != lengths[i]) {
      return refuse("segments", shape_text(*x), "[b t] = " + shape_text(lengths, 2) + ", or 1 along an axis");
    }
  }
  if (x->data == nullptr && all.b * all.t != 0) return refuse("segments", "no data", "a pointer to its elements");
  return "";
}

}  // namespace

graft_topk_attention whole(const graft_segment_attention& a) {
  graft_topk_attention all{};
  all.q = a.q, all.k = a.k, all.v = a.v, all.bias = a.bias, all.key_mask = a.key_mask, all.out = a.out;
  all.scale = a.scale, all.softcap = a.softcap;
  return all;
}

std::string make_plan(const graft_segment_attention& args, const graft_pool* pool, SegmentPlan* plan) {
  SegmentProblem& p = plan->problem;
  p = SegmentProblem{};
  p.args = args;
  p.pool = pool;
  Plan all;
  std::string error = make_plan(whole(args), pool, &all);
  if (!error.empty()) return error;
  error = check_segments(all.problem, &p.args.segments);
  if (!error.empty()) return error;
  const graft_topk_attention& checked = all.problem.args;
  p.args.q = checked.q, p.args.k = checked.k, p.args.v = checked.v;
  p.args.bias = checked.bias, p.args.key_mask = checked.key_mask;
  p.b = all.problem.b, p.h = all.problem.h, p.t = all.problem.t, p.e = all.problem.e;
  return "";
}

}  // namespace graft
