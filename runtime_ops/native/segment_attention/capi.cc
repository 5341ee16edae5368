// SegmentAttention in the C interface: its table of kernels, which are those of TopKAttention run on parts.
#include "../dispatch.h"
#include "../topk_attention/kernels.h"
#include "plan.h"

namespace graft {
namespace {

template <Kernel kernel>
const char* on_runs(const SegmentProblem& p) { return run_segments(p, kernel); }

struct SegmentAttention {
  using Args = graft_segment_attention;
  using Plan = SegmentPlan;
  static constexpr const char* name = "SegmentAttention";

  struct Row {
    const char* name;
    Isa isa;
    int rank;
    const char* (*run)(const SegmentProblem&);
  };

  static const auto& rows() {
    static constexpr Row table[] = {
#if defined(__x86_64__)
        {"segment_attention_avx512", Isa::avx512, 2, on_runs<topk_attention_avx512>},
        {"segment_attention_avx2", Isa::avx2, 1, on_runs<topk_attention_avx2>},
#endif
#if defined(__aarch64__)
        {"segment_attention_neon", Isa::neon, 1, on_runs<topk_attention_neon>},
#endif
        {"segment_attention_scalar", Isa::scalar, 0, on_runs<topk_attention_scalar>},
    };
    return table;
  }

  static const char* refusal(const Row&, const SegmentProblem&) { return nullptr; }
  static bool pays(const Row&, const SegmentProblem&) { return true; }
  static std::string limits(const Row&) { return ""; }
  static bool empty(const SegmentProblem& p) { return p.b == 0 || p.h == 0 || p.t == 0 || p.e == 0; }
};

}  // namespace

std::string segment_attention_rows() { return rows_json<SegmentAttention>(); }

}  // namespace graft

const char* graft_run_segment_attention(const graft_segment_attention* args, const char* isa, const graft_pool* pool) {
  return graft::run<graft::SegmentAttention>(args, isa, pool);
}

const char* graft_pick_segment_attention(const graft_segment_attention* args, const char* isa, const char** reason) {
  return graft::pick_name<graft::SegmentAttention>(args, isa, reason);
}
