// Checks the arguments of TopKFeedForward and works out what all kernels need to know.
#include "plan.h"

#include <algorithm>

#include "../refusal.h"

namespace graft {
namespace {

// Coefficients [chunk f] in memory: few enough to be small beside the weights, tokens enough to pay for packing these.
constexpr int64_t kCoefficients = int64_t{8} << 20, kFewestTokens = 32, kEnoughTokens = 128, kMostTokens = 512;

constexpr const char* kActivations[] = {"relu", "gelu", "gelu_tanh", "gelu_quick", "silu", "relu_squared", "mish"};
constexpr const char* kSelections[] = {"preactivation", "magnitude", "contribution"};

struct Wanted {
  const graft_tensor* x;
  const char *name, *axes;
  int32_t rank;
  int64_t shape[2];
  bool optional;
};

std::string check_tensor(const Wanted& want, int32_t dtype) {
  const graft_tensor& x = *want.x;
  if (x.data == nullptr && want.optional) return "";
  if (x.rank != want.rank) {
    return refuse(want.name, "rank " + std::to_string(x.rank), std::to_string(want.rank) + ": " + want.axes);
  }
  if (x.dtype != dtype) {
    return refuse(want.name, "element type " + std::to_string(x.dtype), "the type of x, " + std::to_string(dtype));
  }
  if (!std::equal(x.shape, x.shape + x.rank, want.shape)) {
    return refuse(want.name, "shape " + shape_text(x),
                  std::string(want.axes) + " = " + shape_text(want.shape, want.rank));
  }
  const int32_t last = x.rank - 1;
  const bool empty = std::find(x.shape, x.shape + x.rank, 0) != x.shape + x.rank;
  if (!empty && x.shape[last] > 1 && x.strides[last] != 1) {
    return refuse(want.name, "last stride " + std::to_string(x.strides[last]), "1 (a contiguous last axis)");
  }
  return empty || x.data != nullptr ? "" : refuse(want.name, "no data", "a pointer to its elements");
}

std::string check_tensors(const graft_topk_feed_forward& a, FeedForward* p) {
  if (a.x.rank != 2 || a.w_in.rank != 2 || a.w_out.rank != 2) {
    const std::string got = std::to_string(a.x.rank) + ", " + std::to_string(a.w_in.rank) + ", " +
                            std::to_string(a.w_out.rank);
    return refuse("x, w_in, w_out", "ranks " + got, "2: [n m], [f m], [f e]");
  }
  if (a.x.dtype != GRAFT_F32 && a.x.dtype != GRAFT_F16 && a.x.dtype != GRAFT_BF16) {
    return refuse("x", "element type " + std::to_string(a.x.dtype), "1 (fp32), 10 (fp16), 16 (bf16)");
  }
  p->n = a.x.shape[0], p->m = a.x.shape[1], p->f = a.w_in.shape[0], p->e = a.w_out.shape[1];
  p->gated = a.w_gate.data != nullptr;
  if (p->n < 0 || p->m < 0 || p->f < 0 || p->e < 0 || p->f > INT32_MAX - 64) {
    return refuse("lengths", "n, m, f, e = " + std::to_string(p->n) + ", " + std::to_string(p->m) + ", " +
                  std::to_string(p->f) + ", " + std::to_string(p->e), "0 or more, and f less than 2^31 - 64");
  }
  const Wanted all[] = {
      {&a.x, "x", "[n m]", 2, {p->n, p->m}, false},          {&a.w_in, "w_in", "[f m]", 2, {p->f, p->m}, false},
      {&a.w_out, "w_out", "[f e]", 2, {p->f, p->e}, false},  {&a.b_in, "b_in", "[f]", 1, {p->f, 0}, true},
      {&a.b_out, "b_out", "[e]", 1, {p->e, 0}, true},        {&a.w_gate, "w_gate", "[f m]", 2, {p->f, p->m}, true},
      {&a.b_gate, "b_gate", "[f]", 1, {p->f, 0}, true},      {&a.out, "out", "[n e]", 2, {p->n, p->e}, false},
  };
  for (const Wanted& want : all) {
    const std::string error = check_tensor(want, a.x.dtype);
    if (!error.empty()) return error;
  }
  if (a.b_gate.data != nullptr && !p->gated) return refuse("b_gate", "a tensor", "none without w_gate");
  return "";
}

std::string check_attributes(const graft_topk_feed_forward& a, FeedForward* p) {
  if (a.top_k < 0) return refuse("k", std::to_string(a.top_k), "0 (every neuron) or more");
  if (a.chunk < 0) return refuse("chunk", std::to_string(a.chunk), "0 (the library's choice) or more");
  int activation = 0, select_by = 0;
  std::string error = find_word("activation", a.activation, kActivations, &activation);
  if (error.empty()) error = find_word("select_by", a.select_by, kSelections, &select_by);
  p->activation = static_cast<Activation>(activation);
  p->select_by = static_cast<SelectBy>(select_by);
  return error;
}

// Chunks of about one size, so that the last is not a small one.
int64_t chunk_for(const FeedForward& p) {
  const int64_t few = std::max(kFewestTokens, std::min(kEnoughTokens, 4 * kCoefficients / std::max<int64_t>(p.f, 1)));
  const int64_t fit = std::min(kMostTokens, std::max(few, kCoefficients / std::max<int64_t>(p.f, 1)));
  const int64_t most = p.args.chunk > 0 ? p.args.chunk : fit;
  const int64_t count = std::max<int64_t>(1, (p.n + most - 1) / most);
  return (p.n + count - 1) / count;
}

// Rounded products tell enough where a selection goes by them, and where a relu silences neurons.
void choose_near(FeedForward* p) {
  const bool silences = p->activation == Activation::relu || p->activation == Activation::relu_squared;
  const bool selects = p->top_k > 0 && p->select_by == SelectBy::preactivation;
  p->near_few = selects ? p->top_k <= p->f / 4 : p->top_k == 0 && silences && !p->gated;
  p->near_many = selects && p->top_k <= p->f / 16;
}

bool wants_near(const FeedForward& p) { return p.near_few && p.n > 0 && p.n <= kFew && p.args.x.dtype == GRAFT_F32; }

}  // namespace

std::string make_plan(const FeedForwardArgs& args, const graft_pool* pool, FeedForwardPlan* plan) {
  FeedForward& p = plan->problem;
  p = FeedForward{};
  p.args = args.given;
  p.pool = pool;
  std::string error = check_tensors(p.args, &p);
  if (error.empty()) error = check_attributes(p.args, &p);
  if (!error.empty()) return error;
  p.top_k = p.args.top_k < p.f ? p.args.top_k : 0;
  p.chunk = chunk_for(p);
  choose_near(&p);
  if (args.kept != nullptr && wants_near(p)) p.near = args.kept->of(p.gated ? p.args.w_gate : p.args.w_in, pool);
  return "";
}

}  // namespace graft
