// Checks the arguments of TopKAttention and works out what all kernels need to know.
#include "plan.h"

#include <math.h>

#include "kernels.h"
#include "../refusal.h"
#include "../vector/math.h"

namespace graft {
namespace {

constexpr int64_t kShortQuery = 32;  // below this, query heads of one key head are worked on together

std::string check_matrix(const graft_tensor& x, const char* name, const char* axes, int32_t dtype) {
  const std::string what = name;
  if (x.rank != 4) return refuse(what, "rank " + std::to_string(x.rank), std::string("4: ") + axes);
  if (!is_float(x.dtype)) {
    return refuse(what, "element type " + std::to_string(x.dtype), "1 (fp32), 10 (fp16), 16 (bf16)");
  }
  if (x.dtype != dtype) {
    return refuse(what, "element type " + std::to_string(x.dtype), "the type of q, " + std::to_string(dtype));
  }
  bool empty = false;
  for (int i = 0; i < 4; ++i) {
    if (x.shape[i] < 0) return refuse(what, "shape " + shape_text(x), "no negative length");
    empty = empty || x.shape[i] == 0;
  }
  if (!empty && x.shape[3] > 1 && x.strides[3] != 1) {
    return refuse(what, "last stride " + std::to_string(x.strides[3]), "1 (a contiguous last axis)");
  }
  return "";
}

// The common length of an axis along which 1 is repeated; -1 where they differ.
int64_t broadcast(int64_t a, int64_t b) { return a == b || b == 1 ? a : a == 1 ? b : -1; }

std::string check_remainder(int32_t remainder) {
  if (remainder >= GRAFT_REMAINDER_NONE && remainder <= GRAFT_REMAINDER_BLOCKS) return "";
  return refuse("remainder", std::to_string(remainder), "0 (none), 1 (mean) or 2 (blocks)");
}

std::string check_shapes(const graft_topk_attention& a, Problem* p) {
  const graft_tensor &q = a.q, &k = a.k, &v = a.v;
  const std::string shapes = "q " + shape_text(q) + ", k " + shape_text(k) + ", v " + shape_text(v);
  p->b = broadcast(broadcast(q.shape[0], k.shape[0]), v.shape[0]);
  p->h = q.shape[1], p->g = k.shape[1], p->s = q.shape[2], p->t = k.shape[2], p->d = q.shape[3], p->e = v.shape[3];
  if (p->b < 0) return refuse("the batch axis", shapes, "equal lengths, or 1");
  if (v.shape[1] != p->g || v.shape[2] != p->t) return refuse("v", shapes, "the g and t of k");
  if (k.shape[3] != p->d) return refuse("k", shapes, "the d of q");
  if (p->d < 1) return refuse("d", "0", "1 or more");
  if (p->g < 1 ? p->h != 0 : p->h % p->g != 0) return refuse("heads", shapes, "h a multiple of g");
  if (p->t > INT32_MAX - kShortQuery) return refuse("t", std::to_string(p->t), "less than 2^31 - 32");
  return "";
}

std::string check_out(const graft_tensor& out, const Problem& p) {
  const int64_t want[4] = {p.b, p.h, p.s, p.e};
  for (int i = 0; i < 4; ++i) {
    if (out.shape[i] == want[i]) continue;
    graft_tensor wanted = out;
    for (int j = 0; j < 4; ++j) wanted.shape[j] = want[j];
    return refuse("out", "shape " + shape_text(out), "[b h s e] = " + shape_text(wanted));
  }
  return "";
}

// An optional tensor whose axes are 1 or `lengths`; strides of repeated axes become 0.
std::string fit(graft_tensor* x, const char* name, const char* axes, int32_t rank, const int64_t* lengths) {
  if (x->rank != rank) return refuse(name, "rank " + std::to_string(x->rank), std::to_string(rank) + ": " + axes);
  for (int i = 0; i < rank; ++i) {
    if (x->shape[i] == 1) {
      x->strides[i] = 0;
    } else if (x->shape[i] != lengths[i]) {
      graft_tensor wanted = *x;
      for (int j = 0; j < rank; ++j) wanted.shape[j] = lengths[j];
      const std::string allowed = std::string(axes) + " = " + shape_text(wanted) + ", or 1 along an axis";
      return refuse(name, "shape " + shape_text(*x), allowed);
    }
  }
  return "";
}

std::string check_optional(Problem* p) {
  const int64_t scores[4] = {p->b, p->h, p->s, p->t}, keys[2] = {p->b, p->t};
  graft_topk_attention& a = p->args;
  std::string error;
  if (a.bias.data != nullptr) {
    if (!is_float(a.bias.dtype)) {
      return refuse("bias", "element type " + std::to_string(a.bias.dtype), "1 (fp32), 10 (fp16), 16 (bf16)");
    }
    error = fit(&a.bias, "bias", "[b h s t]", 4, scores);
  }
  if (error.empty() && a.key_mask.data != nullptr) {
    if (a.key_mask.dtype != GRAFT_BOOL) {
      return refuse("key_mask", "element type " + std::to_string(a.key_mask.dtype), "9 (bool)");
    }
    error = fit(&a.key_mask, "key_mask", "[b t]", 2, keys);
  }
  if (error.empty() && a.past_length.data != nullptr) {
    if (a.past_length.dtype != GRAFT_I64) {
      return refuse("past_length", "element type " + std::to_string(a.past_length.dtype), "7 (int64)");
    }
    error = fit(&a.past_length, "past_length", "[b]", 1, keys);
  }
  return error;
}

// One row of the combined bias that depends on the key alone.
void fill_keys(const Problem& p, bool biased, int64_t b, int64_t h, float* to) {
  const graft_tensor &bias = p.args.bias, &mask = p.args.key_mask;
  for (int64_t j = 0; j < p.t; ++j) to[j] = 0.0f;
  if (biased) {
    const int64_t start = b * bias.strides[0] + h * bias.strides[1];
    for (int64_t j = 0; j < p.t; ++j) to[j] = widen1(bias.data, bias.dtype, start + j * bias.strides[3]);
  }
  if (mask.data == nullptr) return;
  const uint8_t* visible = static_cast<const uint8_t*>(mask.data) + b * mask.strides[0];
  for (int64_t j = 0; j < p.t; ++j) {
    if (!visible[j * mask.strides[1]]) to[j] = -INFINITY;
  }
}

bool is_wide(const std::vector<float>& bias) {
  float low = INFINITY, high = -INFINITY;
  for (float x : bias) {
    if (!isfinite(x)) continue;
    low = least(low, x), high = most(high, x);
  }
  return high - low > kUnderflow;
}

// Whatever depends on the key alone is gathered once, so that kernels can leave keys out. A bias per query head
// cannot be, where a task spans several heads.
void resolve_bias(Plan* plan) {
  Problem& p = plan->problem;
  const graft_tensor &bias = p.args.bias, &mask = p.args.key_mask;
  const bool grouped = p.units < p.h;
  const bool biased = bias.data != nullptr && bias.strides[2] == 0 && (bias.strides[1] == 0 || !grouped);
  p.row_bias = bias.data != nullptr && !biased;
  if (!biased && mask.data == nullptr) return;
  const bool by_b = (biased && bias.strides[0] != 0) || (mask.data != nullptr && mask.strides[0] != 0);
  const bool by_h = biased && bias.strides[1] != 0;
  const int64_t bs = by_b ? p.b : 1, hs = by_h ? p.h : 1;
  plan->key_bias.resize(static_cast<size_t>(bs * hs * p.t));
  for (int64_t i = 0; i < bs * hs; ++i) fill_keys(p, biased, i / hs, i % hs, plan->key_bias.data() + i * p.t);
  p.key_bias = plan->key_bias.data();
  p.key_bias_b = by_b ? hs * p.t : 0;
  p.key_bias_h = by_h ? p.t : 0;
  p.key_bias_wide = is_wide(plan->key_bias);
}

std::string check_data(const Problem& p) {
  const graft_tensor* const all[] = {&p.args.q, &p.args.k, &p.args.v, &p.args.out};
  const char* const names[] = {"q", "k", "v", "out"};
  for (int i = 0; i < 4; ++i) {
    int64_t size = 1;
    for (int j = 0; j < 4; ++j) size *= all[i]->shape[j];
    if (size != 0 && all[i]->data == nullptr) return refuse(names[i], "no data", "a pointer to its elements");
  }
  return "";
}

// kind: the element type of k and v.
std::string plan_for(const graft_topk_attention& args, const graft_pool* pool, int32_t kind, Plan* plan) {
  Problem& p = plan->problem;
  p = Problem{};
  p.args = args;
  p.pool = pool;
  std::string error = check_matrix(args.q, "q", "[b h s d]", args.q.dtype);
  if (error.empty()) error = check_matrix(args.k, "k", "[b g t d]", kind);
  if (error.empty()) error = check_matrix(args.v, "v", "[b g t e]", kind);
  if (error.empty()) error = check_matrix(args.out, "out", "[b h s e]", args.q.dtype);
  if (error.empty()) error = check_attention_attributes(args);
  if (error.empty()) error = check_remainder(args.remainder);
  if (error.empty()) error = check_shapes(args, &p);
  if (error.empty()) error = check_out(args.out, p);
  if (error.empty()) error = check_optional(&p);
  if (error.empty()) error = check_data(p);
  if (!error.empty()) return error;
  for (graft_tensor* x : {&p.args.q, &p.args.k, &p.args.v}) {
    if (x->shape[0] == 1) x->strides[0] = 0;
  }
  p.units = p.s < kShortQuery ? p.g : p.h;
  p.rows = p.units > 0 ? p.h / p.units * p.s : 0;
  p.top_k = args.top_k < p.t ? args.top_k : 0;
  if (p.top_k == 0) p.args.remainder = GRAFT_REMAINDER_NONE;
  resolve_bias(plan);
  return "";
}

}  // namespace

std::string make_plan(const graft_topk_attention& args, const graft_pool* pool, Plan* plan) {
  return plan_for(args, pool, args.q.dtype, plan);
}

std::string make_wide_plan(const graft_topk_attention& args, const graft_pool* pool, Plan* plan) {
  return plan_for(args, pool, args.k.dtype, plan);
}

Proofs g_proofs;

}  // namespace graft

void graft_topk_attention_proofs(int64_t* blocks, int64_t* widened, int64_t* in_fp32) {
  *blocks = __atomic_load_n(&graft::g_proofs.blocks, __ATOMIC_RELAXED);
  *widened = __atomic_load_n(&graft::g_proofs.widened, __ATOMIC_RELAXED);
  *in_fp32 = __atomic_load_n(&graft::g_proofs.in_fp32, __ATOMIC_RELAXED);
}
