// ExpandedAttention in the C interface: its table of kernels, which are those of TopKAttention between two products.
#include "../dispatch.h"
#include "../topk_attention/kernels.h"
#include "kernels.h"
#include "plan.h"

namespace graft {
namespace {

struct ExpandedAttention {
  using Args = graft_expanded_attention;
  using Plan = ExpandedPlan;
  static constexpr const char* name = "ExpandedAttention";

  struct Row {
    const char* name;
    Isa isa;
    int rank;
    const char* (*run)(const Expanded&);
  };

  template <const char* (*multiply)(const HeadProduct&), Kernel attend>
  static const char* with(const Expanded& p) {
    return run_expanded(p, {multiply, attend});
  }

  static const auto& rows() {
    static constexpr Row table[] = {
#if defined(__x86_64__)
        {"expanded_attention_avx512", Isa::avx512, 2, with<head_product_avx512, topk_attention_avx512>},
        {"expanded_attention_avx2", Isa::avx2, 1, with<head_product_avx2, topk_attention_avx2>},
#endif
#if defined(__aarch64__)
        {"expanded_attention_neon", Isa::neon, 1, with<head_product_neon, topk_attention_neon>},
#endif
        {"expanded_attention_scalar", Isa::scalar, 0, with<head_product_scalar, topk_attention_scalar>},
    };
    return table;
  }

  static const char* refusal(const Row&, const Expanded&) { return nullptr; }
  static bool pays(const Row&, const Expanded&) { return true; }
  static std::string limits(const Row&) { return ""; }
  static bool empty(const Expanded& p) { return p.n == 0 || p.h == 0 || p.s == 0 || p.e == 0; }
};

}  // namespace

std::string expanded_attention_rows() { return rows_json<ExpandedAttention>(); }

}  // namespace graft

const char* graft_run_expanded_attention(const graft_expanded_attention* args, const char* isa,
                                         const graft_pool* pool) {
  return graft::run<graft::ExpandedAttention>(args, isa, pool);
}

const char* graft_pick_expanded_attention(const graft_expanded_attention* args, const char* isa,
                                          const char** reason) {
  return graft::pick_name<graft::ExpandedAttention>(args, isa, reason);
}
