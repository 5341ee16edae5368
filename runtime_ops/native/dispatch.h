// From a table of kernels to a choice, a list and every refusal: the same for all operations. An operation is a
// struct Op with
//   Args, Plan         what the caller passes, and what make_plan makes of it; plan.problem is what kernels take
//   name               of the operation
//   Row                name, isa, rank (the highest usable one runs), run, and whatever limits it needs
//   rows()             the table; the scalar row takes any problem
//   refusal(row, p)    NULL, or why the row does not take the problem, which is then left to the next one
//   pays(row, p)       false where the row would run, but only if it is asked for by name
//   limits(row)        what refusal and pays look at, as the inside of a JSON object
//   empty(p)           whether there is nothing to compute
#ifndef GRAFT_DISPATCH_H_
#define GRAFT_DISPATCH_H_

#include <new>
#include <string>

#include "abi.h"
#include "cpu.h"

namespace graft {

// Sentences live as long as the library, each once.
const char* keep(const std::string& sentence);

// The highest level to use; false with the reason in *error.
bool allowed_isa(Isa* isa, std::string* error);

template <class Op, class Problem>
const typename Op::Row* best_row(const Problem& p, std::string* error) {
  Isa isa;
  if (!allowed_isa(&isa, error)) return nullptr;
  const typename Op::Row* best = nullptr;
  for (const auto& row : Op::rows()) {
    if (row.isa > isa || !offers(row.isa) || Op::refusal(row, p) != nullptr || !Op::pays(row, p)) continue;
    if (best == nullptr || row.rank > best->rank) best = &row;
  }
  return best;
}

template <class Op, class Problem>
const typename Op::Row* forced_row(const Problem& p, const char* name, std::string* error) {
  const std::string got = std::string(Op::name) + ": isa got " + name;
  Isa isa;
  if (!parse_isa(name, &isa)) {
    *error = got + ", allowed " + isa_names();
    return nullptr;
  }
  if (!offers(isa)) {
    *error = got + ", allowed " + offered_isas() + " on this processor";
    return nullptr;
  }
  for (const auto& row : Op::rows()) {
    if (row.isa != isa) continue;
    const char* reason = Op::refusal(row, p);
    if (reason == nullptr) return &row;
    *error = std::string(Op::name) + ": kernel " + row.name + " does not take this problem: " + reason;
    return nullptr;
  }
  *error = got + ", for which this library has no kernel";
  return nullptr;
}

template <class Op>
const typename Op::Row* pick(const typename Op::Args* args, const char* isa, const graft_pool* pool,
                             typename Op::Plan* plan, std::string* error) {
  const std::string refused = make_plan(*args, pool, plan);
  if (!refused.empty()) {
    *error = std::string(Op::name) + ": " + refused;
    return nullptr;
  }
  if (isa != nullptr && *isa != '\0') return forced_row<Op>(plan->problem, isa, error);
  return best_row<Op>(plan->problem, error);
}

template <class Op>
const char* run(const typename Op::Args* args, const char* isa, const graft_pool* pool) {
  try {
    typename Op::Plan plan;
    std::string error;
    const typename Op::Row* row = pick<Op>(args, isa, pool, &plan, &error);
    if (row == nullptr) return keep(error);
    if (Op::empty(plan.problem)) return nullptr;
    const char* failure = row->run(plan.problem);
    return failure == nullptr ? nullptr : keep(std::string(Op::name) + ": " + failure);
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

template <class Op>
const char* pick_name(const typename Op::Args* args, const char* isa, const char** reason) {
  try {
    typename Op::Plan plan;
    std::string error;
    const typename Op::Row* row = pick<Op>(args, isa, nullptr, &plan, &error);
    if (row == nullptr && reason != nullptr) *reason = keep(error);
    return row == nullptr ? nullptr : row->name;
  } catch (const std::bad_alloc&) {
    if (reason != nullptr) *reason = "out of memory";
    return nullptr;
  }
}

// The operation's rows as JSON objects, each after a comma.
template <class Op>
std::string rows_json() {
  std::string text;
  for (const auto& row : Op::rows()) {
    const bool usable = offers(row.isa);
    text += std::string(",{\"op\":\"") + Op::name + "\",\"name\":\"" + row.name + "\",\"isa\":\"" + isa_name(row.isa);
    text += "\",\"dtypes\":[\"float32\",\"float16\",\"bfloat16\"],\"limits\":{" + Op::limits(row) + "},\"rank\":";
    text += std::to_string(row.rank) + ",\"usable\":" + (usable ? "true" : "false") + ",\"reason\":\"";
    if (!usable) text += "this processor offers only " + offered_isas();
    text += "\"}";
  }
  return text;
}

}  // namespace graft

#endif  // GRAFT_DISPATCH_H_
