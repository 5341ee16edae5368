// CombinerAttention in the C interface: its table of kernels. Each takes everything.
#include "../dispatch.h"
#include "kernels.h"
#include "plan.h"

namespace graft {
namespace {

struct CombinerAttention {
  using Args = graft_combiner_attention;
  using Plan = CombinerPlan;
  static constexpr const char* name = "CombinerAttention";

  struct Row {
    const char* name;
    Isa isa;
    int rank;
    const char* (*run)(const Combiner&);
  };

  static const auto& rows() {
    static constexpr Row table[] = {
#if defined(__x86_64__)
        {"combiner_attention_avx512", Isa::avx512, 2, combiner_attention_avx512},
        {"combiner_attention_avx2", Isa::avx2, 1, combiner_attention_avx2},
#endif
        {"combiner_attention_scalar", Isa::scalar, 0, combiner_attention_scalar},
    };
    return table;
  }

  static const char* refusal(const Row&, const Combiner&) { return nullptr; }
  static bool pays(const Row&, const Combiner&) { return true; }
  static std::string limits(const Row&) { return ""; }
  static bool empty(const Combiner& p) { return p.b == 0 || p.h == 0 || p.t == 0 || p.e == 0; }
};

}  // namespace

std::string combiner_attention_rows() { return rows_json<CombinerAttention>(); }

}  // namespace graft

const char* graft_run_combiner_attention(const graft_combiner_attention* args, const char* isa,
                                         const graft_pool* pool) {
  return graft::run<graft::CombinerAttention>(args, isa, pool);
}

const char* graft_pick_combiner_attention(const graft_combiner_attention* args, const char* isa,
                                          const char** reason) {
  return graft::pick_name<graft::CombinerAttention>(args, isa, reason);
}
