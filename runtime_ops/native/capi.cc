// The C interface: one table of kernels, from which dispatch, the list and every refusal are made.
#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <new>
#include <set>
#include <string>

#include "abi.h"
#include "cpu.h"
#include "topk_attention/kernels.h"
#include "topk_attention/plan.h"

namespace graft {
namespace {

// What a kernel accepts. A row that refuses a problem leaves it to the next one.
struct Limits {
  bool every_key;  // k = 0
  bool softcap;
  bool row_bias;  // a bias that varies along s
};

// From where on a kernel's preparation pays: below, it runs only if it is asked for by name.
struct Worth {
  int64_t keys;
  int64_t rows;  // per key head
};

struct Row {
  const char* name;
  Isa isa;
  Limits limits;
  Worth worth;
  int rank;  // the highest usable one runs
  Kernel run;
};

constexpr Limits kAnything{true, true, true};

constexpr Row kRows[] = {
#if defined(__x86_64__)
    {"topk_attention_avx512vnni", Isa::avx512vnni, {false, false, false}, {1024, 64}, 3, topk_attention_avx512vnni},
    {"topk_attention_avx512", Isa::avx512, kAnything, {}, 2, topk_attention_avx512},
    {"topk_attention_avx2", Isa::avx2, kAnything, {}, 1, topk_attention_avx2},
#endif
#if defined(__aarch64__)
    {"topk_attention_neon", Isa::neon, kAnything, {}, 1, topk_attention_neon},
#endif
    {"topk_attention_scalar", Isa::scalar, kAnything, {}, 0, topk_attention_scalar},
};

// Sentences live as long as the library, each once.
const char* keep(const std::string& sentence) {
  static std::mutex lock;
  static std::set<std::string> sentences;
  std::lock_guard<std::mutex> hold(lock);
  return sentences.insert(sentence).first->c_str();
}

const char* no_memory() { return "TopKAttention: out of memory"; }

// NULL, or why the row does not take the problem.
const char* refusal(const Limits& limits, const Problem& p) {
  if (!limits.every_key && p.top_k == 0) return "it needs 0 < k < t";
  if (!limits.softcap && p.args.softcap != 0.0f) return "it takes no softcap";
  if (!limits.row_bias && p.row_bias) return "it takes no bias that varies along s";
  return nullptr;
}

bool pays(const Worth& worth, const Problem& p) {
  return p.t >= worth.keys && (p.g == 0 || p.s * (p.h / p.g) >= worth.rows);
}

// The highest level to use; false with the reason in *error.
bool allowed_isa(Isa* isa, std::string* error) {
  *isa = detected_isa();
  const char* cap = getenv("GRAFT_ISA");
  if (cap == nullptr || *cap == '\0') return true;
  Isa wanted;
  if (!parse_isa(cap, &wanted)) {
    *error = std::string("GRAFT_ISA: got ") + cap + ", allowed " + isa_names();
    return false;
  }
  if (wanted < *isa) *isa = wanted;
  return true;
}

const Row* best_row(const Problem& p, std::string* error) {
  Isa isa;
  if (!allowed_isa(&isa, error)) return nullptr;
  const Row* best = nullptr;
  for (const Row& row : kRows) {
    if (row.isa > isa || refusal(row.limits, p) != nullptr || !pays(row.worth, p)) continue;
    if (best == nullptr || row.rank > best->rank) best = &row;
  }
  return best;  // the scalar row takes anything
}

const Row* forced_row(const Problem& p, const char* name, std::string* error) {
  Isa isa;
  if (!parse_isa(name, &isa)) {
    *error = std::string("TopKAttention: isa got ") + name + ", allowed " + isa_names();
    return nullptr;
  }
  if (isa > detected_isa()) {
    *error = std::string("TopKAttention: isa got ") + name + ", allowed up to " + isa_name(detected_isa()) +
             " on this processor";
    return nullptr;
  }
  for (const Row& row : kRows) {
    if (row.isa != isa) continue;
    const char* reason = refusal(row.limits, p);
    if (reason == nullptr) return &row;
    *error = std::string("TopKAttention: kernel ") + row.name + " does not take this problem: " + reason;
    return nullptr;
  }
  *error = std::string("TopKAttention: isa got ") + name + ", which this library was built without";
  return nullptr;
}

const Row* pick(const graft_topk_attention* args, const char* isa, const graft_pool* pool, Plan* plan,
                std::string* error) {
  *error = make_plan(*args, pool, plan);
  if (!error->empty()) return nullptr;
  if (isa != nullptr && *isa != '\0') return forced_row(plan->problem, isa, error);
  return best_row(plan->problem, error);
}

std::string row_json(const Row& row) {
  const auto flag = [](bool x) { return x ? "true" : "false"; };
  const bool usable = row.isa <= detected_isa();
  std::string text = std::string("{\"op\":\"TopKAttention\",\"name\":\"") + row.name;
  text += std::string("\",\"isa\":\"") + isa_name(row.isa);
  text += "\",\"dtypes\":[\"float32\",\"float16\",\"bfloat16\"],\"limits\":{\"every_key\":";
  text += std::string(flag(row.limits.every_key)) + ",\"softcap\":" + flag(row.limits.softcap) + ",\"row_bias\":" +
          flag(row.limits.row_bias) + ",\"min_keys\":" + std::to_string(row.worth.keys) + ",\"min_rows\":" +
          std::to_string(row.worth.rows) + "},\"rank\":" + std::to_string(row.rank);
  text += std::string(",\"usable\":") + flag(usable);
  text += ",\"reason\":\"";
  if (!usable) text += std::string("this processor offers ") + isa_name(detected_isa());
  return text + "\"}";
}

std::string rows_json() {
  std::string text;
  for (const Row& row : kRows) text += (text.empty() ? "[" : ",") + row_json(row);
  return text + "]";
}

}  // namespace
}  // namespace graft

using namespace graft;

int32_t graft_abi_version(void) { return GRAFT_ABI_VERSION; }

const char* graft_version(void) { return GRAFT_VERSION; }

const char* graft_list_kernels(void) {
  try {
    return keep(rows_json());
  } catch (const std::bad_alloc&) {
    return "[]";
  }
}

const char* graft_run_topk_attention(const graft_topk_attention* args, const char* isa, const graft_pool* pool) {
  try {
    Plan plan;
    std::string error;
    const Row* row = pick(args, isa, pool, &plan, &error);
    if (row == nullptr) return keep(error);
    const Problem& p = plan.problem;
    if (p.b == 0 || p.h == 0 || p.s == 0 || p.e == 0) return nullptr;
    const char* failure = row->run(p);
    return failure == nullptr ? nullptr : keep(failure);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

const char* graft_pick_topk_attention(const graft_topk_attention* args, const char* isa, const char** reason) {
  try {
    Plan plan;
    std::string error;
    const Row* row = pick(args, isa, nullptr, &plan, &error);
    if (row == nullptr && reason != nullptr) *reason = keep(error);
    return row == nullptr ? nullptr : row->name;
  } catch (const std::bad_alloc&) {
    if (reason != nullptr) *reason = no_memory();
    return nullptr;
  }
}
