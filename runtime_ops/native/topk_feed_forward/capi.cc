// TopKFeedForward in the C interface: its table of kernels. Each takes everything.
#include "../dispatch.h"
#include "kernels.h"
#include "plan.h"

namespace graft {
namespace {

struct TopKFeedForward {
  using Args = FeedForwardArgs;
  using Plan = FeedForwardPlan;
  static constexpr const char* name = "TopKFeedForward";

  struct Row {
    const char* name;
    Isa isa;
    int rank;
    const char* (*run)(const FeedForward&);
  };

  static const auto& rows() {
    static constexpr Row table[] = {
#if defined(__x86_64__)
        {"topk_feed_forward_avx512bf16", Isa::avx512bf16, 3, topk_feed_forward_avx512bf16},
        {"topk_feed_forward_avx512", Isa::avx512, 2, topk_feed_forward_avx512},
        {"topk_feed_forward_avx2", Isa::avx2, 1, topk_feed_forward_avx2},
#endif
#if defined(__aarch64__)
        {"topk_feed_forward_neon", Isa::neon, 1, topk_feed_forward_neon},
#endif
        {"topk_feed_forward_scalar", Isa::scalar, 0, topk_feed_forward_scalar},
    };
    return table;
  }

  static const char* refusal(const Row&, const FeedForward&) { return nullptr; }
  static bool pays(const Row&, const FeedForward&) { return true; }
  static std::string limits(const Row&) { return ""; }
  static bool empty(const FeedForward& p) { return p.n == 0 || p.e == 0; }
};

}  // namespace

const char* run_feed_forward(const FeedForwardArgs& args, const char* isa, const graft_pool* pool) {
  return run<TopKFeedForward>(&args, isa, pool);
}

std::string topk_feed_forward_rows() { return rows_json<TopKFeedForward>(); }

}  // namespace graft

const char* graft_run_topk_feed_forward(const graft_topk_feed_forward* args, const char* isa, const graft_pool* pool) {
  return graft::run_feed_forward({*args, nullptr}, isa, pool);
}

const char* graft_pick_topk_feed_forward(const graft_topk_feed_forward* args, const char* isa, const char** reason) {
  const graft::FeedForwardArgs all{*args, nullptr};
  return graft::pick_name<graft::TopKFeedForward>(&all, isa, reason);
}
