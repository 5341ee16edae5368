// What the C interface has once, whatever the operations: versions, the list of all kernels, and what dispatch shares.
#include <stdlib.h>

#include <mutex>
#include <set>

#include "dispatch.h"

namespace graft {

// One line per operation, each from the capi.cc in its folder.
std::string topk_attention_rows();
std::string topk_feed_forward_rows();
std::string segment_attention_rows();
std::string combiner_attention_rows();
std::string expanded_attention_rows();

namespace {
constexpr std::string (*kRows[])() = {
    topk_attention_rows,
    topk_feed_forward_rows,
    segment_attention_rows,
    combiner_attention_rows,
    expanded_attention_rows,
};
}  // namespace

const char* keep(const std::string& sentence) {
  static std::mutex lock;
  static std::set<std::string> sentences;
  std::lock_guard<std::mutex> hold(lock);
  return sentences.insert(sentence).first->c_str();
}

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

}  // namespace graft

int32_t graft_abi_version(void) { return GRAFT_ABI_VERSION; }

const char* graft_version(void) { return GRAFT_VERSION; }

const char* graft_list_kernels(void) {
  try {
    std::string text;
    for (const auto rows : graft::kRows) text += rows();
    text[0] = '[';
    return graft::keep(text + "]");
  } catch (const std::bad_alloc&) {
    return "[]";
  }
}
