// Checks the arguments of ExpandedAttention.
#include "plan.h"

#include "../refusal.h"
#include "../topk_attention/plan.h"

namespace graft {
namespace {

struct Wanted {
  const graft_tensor* x;
  const char *name, *axes;
  int32_t rank;
  int64_t shape[4];
};

std::string check_matrix(const Wanted& want, int32_t dtype) {
  const graft_tensor& x = *want.x;
  if (x.dtype != dtype) {
    return refuse(want.name, "element type " + std::to_string(x.dtype), "the type of q, " + std::to_string(dtype));
  }
  bool fits = x.rank == want.rank, empty = false;
  for (int i = 0; fits && i < want.rank; ++i) {
    fits = x.shape[i] == want.shape[i];
    empty = empty || x.shape[i] == 0;
  }
  if (!fits) {
    return refuse(want.name, "shape " + shape_text(x), want.axes + (" = " + shape_text(want.shape, want.rank)));
  }
  if (empty) return "";
  const int last = want.rank - 1;
  if (x.shape[last] > 1 && x.strides[last] != 1) {
    return refuse(want.name, "last stride " + std::to_string(x.strides[last]), "1 (a contiguous last axis)");
  }
  return x.data != nullptr ? "" : refuse(want.name, "no data", "a pointer to its elements");
}

std::string check_tensors(const graft_expanded_attention& a, Expanded* p) {
  if (a.q.rank != 4) return refuse("q", "rank " + std::to_string(a.q.rank), "4: q [n h s d]");
  if (!is_float(a.q.dtype)) {
    return refuse("q", "element type " + std::to_string(a.q.dtype), "1 (fp32), 10 (fp16), 16 (bf16)");
  }
  for (const graft_tensor* x : {&a.memory, &a.w_k, &a.w_v}) {
    if (x->rank == 3) continue;
    return refuse("memory, w_k, w_v", "rank " + std::to_string(x->rank), "3: memory [b t m], w_k [g d m], w_v [g e m]");
  }
  p->n = a.q.shape[0], p->h = a.q.shape[1], p->s = a.q.shape[2], p->d = a.q.shape[3];
  p->b = a.memory.shape[0], p->t = a.memory.shape[1], p->m = a.memory.shape[2];
  p->g = a.w_k.shape[0], p->e = a.w_v.shape[1];
  const Wanted wanted[] = {
      {&a.q, "q", "[n h s d]", 4, {p->n, p->h, p->s, p->d}},
      {&a.memory, "memory", "[b t m]", 3, {p->b, p->t, p->m}},
      {&a.w_k, "w_k", "[g d m]", 3, {p->g, p->d, p->m}},
      {&a.w_v, "w_v", "[g e m]", 3, {p->g, p->e, p->m}},
      {&a.out, "out", "[n h s e]", 4, {p->n, p->h, p->s, p->e}},
  };
  for (const Wanted& want : wanted) {
    const std::string error = check_matrix(want, a.q.dtype);
    if (!error.empty()) return error;
  }
  if (p->d < 1 || p->m < 1) return refuse("d and m", std::to_string(p->d) + " and " + std::to_string(p->m), "1 or more");
  if (p->t > INT32_MAX - 32) return refuse("t", std::to_string(p->t), "less than 2^31 - 32");
  if (p->g < 1 ? p->h != 0 : p->h % p->g != 0) {
    return refuse("heads", std::to_string(p->h) + " and " + std::to_string(p->g), "h a multiple of g");
  }
  return "";
}

struct Optional {
  graft_tensor* x;
  const char *name, *axes;
  int32_t dtype, rank;  // dtype 0: any of floats
  int64_t shape[4];
};

// Axes of length 1 are repeated.
std::string fit(const Optional& want) {
  graft_tensor& x = *want.x;
  if (x.data == nullptr) return "";
  if (want.dtype == 0 ? !is_float(x.dtype) : x.dtype != want.dtype) {
    const std::string allowed = want.dtype == 0 ? "1 (fp32), 10 (fp16), 16 (bf16)" : std::to_string(want.dtype);
    return refuse(want.name, "element type " + std::to_string(x.dtype), allowed);
  }
  bool fits = x.rank == want.rank;
  for (int i = 0; fits && i < want.rank; ++i) {
    fits = x.shape[i] == want.shape[i] || x.shape[i] == 1;
    if (x.shape[i] == 1) x.strides[i] = 0;
  }
  if (fits) return "";
  const std::string allowed = want.axes + (" = " + shape_text(want.shape, want.rank)) + ", or 1 along an axis";
  return refuse(want.name, "shape " + shape_text(x), allowed);
}

std::string check_optional(Expanded* p) {
  graft_expanded_attention& a = p->args;
  // without an index, the bias may be shared by those that read a row of the memory
  const bool shared = a.beam_index.data == nullptr && a.bias.rank == 4 && a.bias.shape[0] == p->b;
  const int64_t biases = shared ? p->b : p->n;
  const Optional given[] = {
      {&a.b_v, "b_v", "[g e]", a.q.dtype, 2, {p->g, p->e}},
      {&a.bias, "bias", "[n h s t]", 0, 4, {biases, p->h, p->s, p->t}},
      {&a.key_mask, "key_mask", "[b t]", GRAFT_BOOL, 2, {p->b, p->t}},
      {&a.past_length, "past_length", "[b]", GRAFT_I64, 1, {p->b}},
      {&a.beam_index, "beam_index", "[n]", GRAFT_I64, 1, {p->n}},
  };
  for (const Optional& one : given) {
    const std::string error = fit(one);
    if (!error.empty()) return error;
  }
  return "";
}

std::string check_rows(const Expanded& p) {
  const graft_tensor& index = p.args.beam_index;
  if (index.data == nullptr) {
    if (p.b < 1 ? p.n == 0 : p.n % p.b == 0) return "";
    return refuse("q", std::to_string(p.n) + " rows", "a multiple of the " + std::to_string(p.b) + " of memory");
  }
  for (int64_t i = 0; i < p.n; ++i) {
    const int64_t row = static_cast<const int64_t*>(index.data)[i * index.strides[0]];
    if (row < 0 || row >= p.b) {
      return refuse("beam_index", std::to_string(row), "0 to " + std::to_string(p.b - 1) + ", a row of memory");
    }
  }
  return "";
}

}  // namespace

std::string make_plan(const graft_expanded_attention& args, const graft_pool* pool, ExpandedPlan* plan) {
  Expanded& p = plan->problem;
  p = Expanded{};
  p.args = args;
  p.pool = pool;
  std::string error = check_tensors(args, &p);
  if (error.empty()) error = check_attention_attributes(args);
  if (error.empty()) error = check_optional(&p);
  if (error.empty()) error = check_rows(p);
  return error;
}

}  // namespace graft
