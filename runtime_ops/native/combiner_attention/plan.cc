// Checks the arguments of CombinerAttention and works out what all kernels need to know.
#include "plan.h"

#include <math.h>

#include <algorithm>

#include "../refusal.h"

namespace graft {
namespace {

constexpr const char* kVariants[] = {"fixed",           "axial-vertical", "axial-horizontal",
                                     "axial-row-major", "logsparse",      "mixture"};
constexpr const char* kPoolings[] = {"max", "mean"};
constexpr const char* kRegionLogits[] = {"paper", "counted"};

struct Wanted {
  const graft_tensor* x;
  const char *name, *axes;
  int64_t shape[4];
};

// shared: a batch axis of length 1 serves all.
std::string check_matrix(const Wanted& want, int32_t dtype, bool shared) {
  const graft_tensor& x = *want.x;
  if (x.dtype != dtype) {
    return refuse(want.name, "element type " + std::to_string(x.dtype), "the type of q, " + std::to_string(dtype));
  }
  const bool batch = x.shape[0] == want.shape[0] || (shared && x.shape[0] == 1);
  if (!batch || !std::equal(x.shape + 1, x.shape + 4, want.shape + 1)) {
    return refuse(want.name, "shape " + shape_text(x), want.axes + (" = " + shape_text(want.shape, 4)));
  }
  const bool empty = std::find(x.shape, x.shape + 4, 0) != x.shape + 4;
  if (!empty && x.shape[3] > 1 && x.strides[3] != 1) {
    return refuse(want.name, "last stride " + std::to_string(x.strides[3]), "1 (a contiguous last axis)");
  }
  return empty || x.data != nullptr ? "" : refuse(want.name, "no data", "a pointer to its elements");
}

std::string check_mask(const graft_tensor& x, const Combiner& p) {
  if (x.data == nullptr) return "";
  if (x.dtype != GRAFT_BOOL) return refuse("key_mask", "element type " + std::to_string(x.dtype), "9 (bool)");
  const int64_t want[] = {p.b, p.t};
  bool fits = x.rank == 2;
  for (int i = 0; fits && i < 2; ++i) fits = x.shape[i] == want[i] || x.shape[i] == 1;
  if (fits) return "";
  return refuse("key_mask", "shape " + shape_text(x), "[b t] = " + shape_text(want, 2) + ", or 1");
}

std::string check_tensors(const graft_combiner_attention& a, Combiner* p) {
  const graft_tensor *all[] = {&a.q, &a.k, &a.v, &a.out};
  for (const graft_tensor* x : all) {
    if (x->rank == 4) continue;
    const char* axes = "4: q [b h t d], k [b g t d], v [b g t e], out [b h t e]";
    return refuse("q, k, v, out", "rank " + std::to_string(x->rank), axes);
  }
  if (a.q.dtype != GRAFT_F32 && a.q.dtype != GRAFT_F16 && a.q.dtype != GRAFT_BF16) {
    return refuse("q", "element type " + std::to_string(a.q.dtype), "1 (fp32), 10 (fp16), 16 (bf16)");
  }
  p->b = a.q.shape[0], p->h = a.q.shape[1], p->t = a.q.shape[2], p->d = a.q.shape[3];
  for (const graft_tensor* x : {&a.k, &a.v}) p->b = p->b == 1 ? x->shape[0] : p->b;
  p->g = a.k.shape[1], p->e = a.v.shape[3];
  const Wanted wanted[] = {
      {&a.q, "q", "[b h t d]", {p->b, p->h, p->t, p->d}},
      {&a.k, "k", "[b g t d]", {p->b, p->g, p->t, p->d}},
      {&a.v, "v", "[b g t e]", {p->b, p->g, p->t, p->e}},
      {&a.out, "out", "[b h t e]", {p->b, p->h, p->t, p->e}},
  };
  for (const Wanted& want : wanted) {
    const std::string error = check_matrix(want, a.q.dtype, want.x != &a.out);
    if (!error.empty()) return error;
  }
  if (p->d < 1) return refuse("d", "0", "1 or more");
  if (p->t > INT32_MAX) return refuse("t", std::to_string(p->t), "less than 2^31");
  if (p->g < 1 ? p->h != 0 : p->h % p->g != 0) {
    return refuse("heads", std::to_string(p->h) + " and " + std::to_string(p->g), "h a multiple of g");
  }
  return check_mask(a.key_mask, *p);
}

std::string check_attributes(const graft_combiner_attention& a, Combiner* p) {
  int variant = 0, pooling = 0, region_logit = 0;
  std::string error = find_word("variant", a.variant, kVariants, &variant);
  if (error.empty()) error = find_word("pooling", a.pooling, kPoolings, &pooling);
  if (error.empty()) error = find_word("region_logit", a.region_logit, kRegionLogits, &region_logit);
  if (!error.empty()) return error;
  if (a.span < 0) return refuse("span", std::to_string(a.span), "0 (chosen by length) or more");
  if (!isfinite(a.scale)) return refuse("scale", std::to_string(a.scale), "a finite number");
  if (a.causal != 0 && a.causal != 1) return refuse("causal", std::to_string(a.causal), "0 or 1");
  if (const std::string error = check_no_key(a.no_key); !error.empty()) return error;
  p->variant = static_cast<Variant>(variant);
  p->mean = pooling == 1;
  p->counted = region_logit == 1;
  return "";
}

// span 0: the largest m with m * m <= factor * t. A row has no more columns than there are tokens.
Shape2 shape_for(const Combiner& p, int64_t factor) {
  int64_t m = p.args.span;
  if (m == 0) m = static_cast<int64_t>(sqrt(static_cast<double>(p.t * factor)));
  m = std::max<int64_t>(1, std::min(m, p.t));
  return {(p.t + m - 1) / m, m};
}

}  // namespace

std::string make_plan(const graft_combiner_attention& args, const graft_pool* pool, CombinerPlan* plan) {
  Combiner& p = plan->problem;
  p = Combiner{};
  p.args = args;
  p.pool = pool;
  std::string error = check_tensors(args, &p);
  if (error.empty()) error = check_attributes(args, &p);
  if (!error.empty()) return error;
  for (graft_tensor* x : {&p.args.q, &p.args.k, &p.args.v, &p.args.key_mask}) {
    for (int i = 0; i < 2; ++i) {
      if (x->shape[i] == 1 && (i == 0 || x == &p.args.key_mask)) x->strides[i] = 0;
    }
  }
  p.rows = shape_for(p, 2);
  p.grid = shape_for(p, 1);
  return "";
}

}  // namespace graft
