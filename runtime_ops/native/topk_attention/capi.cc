// TopKAttention in the C interface: its table of kernels.
#include <algorithm>

#include "../dispatch.h"
#include "kernels.h"
#include "plan.h"

namespace graft {
namespace {

// What a kernel accepts.
struct Limits {
  bool every_key;  // k = 0
  bool softcap;
  bool row_bias;  // a bias that varies along s
  bool remainder;
};

// From where on a kernel's preparation pays.
struct Worth {
  int64_t keys;
  int64_t rows;  // per key head
};

constexpr Limits kAnything{true, true, true, true};

struct TopKAttention {
  using Args = graft_topk_attention;
  using Plan = graft::Plan;
  static constexpr const char* name = "TopKAttention";

  struct Row {
    const char* name;
    Isa isa;
    Limits limits;
    Worth worth;
    int rank;
    Kernel run;
  };

  static const auto& rows() {
    static constexpr Row table[] = {
#if defined(__x86_64__)
        {"topk_attention_avx512vnni", Isa::avx512vnni, {}, {512, 64}, 4, topk_attention_avx512vnni},
        {"topk_attention_avx512", Isa::avx512, kAnything, {}, 2, topk_attention_avx512},
#if defined(GRAFT_AVXVNNI)
        {"topk_attention_avxvnni", Isa::avxvnni, {}, {512, 64}, 3, topk_attention_avxvnni},
#endif
        {"topk_attention_avx2", Isa::avx2, kAnything, {}, 1, topk_attention_avx2},
#endif
#if defined(__aarch64__)
        {"topk_attention_neondotprod", Isa::neondotprod, {}, {1024, 64}, 2, topk_attention_neondotprod},
        {"topk_attention_neon", Isa::neon, kAnything, {}, 1, topk_attention_neon},
#endif
        {"topk_attention_scalar", Isa::scalar, kAnything, {}, 0, topk_attention_scalar},
    };
    return table;
  }

  static const char* refusal(const Row& row, const Problem& p) {
    if (!row.limits.every_key && p.top_k == 0) return "it needs 0 < k < t";
    if (!row.limits.softcap && p.args.softcap != 0.0f) return "it takes no softcap";
    if (!row.limits.row_bias && p.row_bias) return "it takes no bias that varies along s";
    if (!row.limits.remainder && p.args.remainder != GRAFT_REMAINDER_NONE) return "it takes no remainder";
    return nullptr;
  }

  static bool pays(const Row& row, const Problem& p) {
    const int64_t window = p.args.window > 0 && p.args.window < p.t ? 2 * p.args.window : p.t;
    return std::min(p.t, window) >= row.worth.keys && (p.g == 0 || p.s * (p.h / p.g) >= row.worth.rows);
  }

  static std::string limits(const Row& row) {
    const auto flag = [](bool x) { return x ? "true" : "false"; };
    return std::string("\"every_key\":") + flag(row.limits.every_key) + ",\"softcap\":" + flag(row.limits.softcap) +
           ",\"row_bias\":" + flag(row.limits.row_bias) + ",\"remainder\":" + flag(row.limits.remainder) +
           ",\"min_keys\":" + std::to_string(row.worth.keys) + ",\"min_rows\":" + std::to_string(row.worth.rows);
  }

  static bool empty(const Problem& p) { return p.b == 0 || p.h == 0 || p.s == 0 || p.e == 0; }
};

}  // namespace

std::string topk_attention_rows() { return rows_json<TopKAttention>(); }

}  // namespace graft

const char* graft_run_topk_attention(const graft_topk_attention* args, const char* isa, const graft_pool* pool) {
  return graft::run<graft::TopKAttention>(args, isa, pool);
}

const char* graft_pick_topk_attention(const graft_topk_attention* args, const char* isa, const char** reason) {
  return graft::pick_name<graft::TopKAttention>(args, isa, reason);
}
