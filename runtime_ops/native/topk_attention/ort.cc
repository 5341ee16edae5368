// ai.graft::TopKAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which goes
// from a node's attributes and tensors to the plain C interface.
#include <math.h>

#include "ort.h"

namespace graft {
namespace {

constexpr const char* kName = "TopKAttention";
constexpr size_t kInputs = 6, kRequired = 3;
constexpr const char* kNames[kInputs] = {"q", "k", "v", "bias", "key_mask", "past_length"};

// A bias may be of any type: it stays open.
int input_type(size_t i, int dtype) {
  const int types[kInputs] = {dtype, dtype, dtype, ORT_UNDEFINED, GRAFT_BOOL, GRAFT_I64};
  return types[i];
}

// out [b h s e] takes b, h and s from q and e from v.
OrtStatus* infer(const OrtCustomOp*, OrtShapeInferContext* context) {
  return guarded(kName, [&] {
    Shape q = read_shape(context, 0), v = read_shape(context, 2);
    // Even where nothing is known the type must be set: otherwise the runtime takes it from the last input.
    for (Shape* x : {&q, &v}) {
      if (x->lengths.size() != 4) *x = {x->dtype, {-1, -1, -1, -1}, {"", "", "", ""}};
    }
    q.lengths[3] = v.lengths[3], q.names[3] = v.names[3];
    if (q.lengths[0] == 1) q.lengths[0] = v.lengths[0], q.names[0] = v.names[0];
    set_shape(context, q);
  });
}

void check_values(const TopKAttentionNode& a) {
  if (a.k < 0) refuse_attribute("k", std::to_string(a.k), "0 (every key) or more");
  if (a.causal != 0 && a.causal != 1) refuse_attribute("causal", std::to_string(a.causal), "0 or 1");
  if (!isfinite(a.scale)) refuse_attribute("scale", std::to_string(a.scale), "a finite number");
  if (!(a.softcap >= 0.0f) || isinf(a.softcap)) {
    refuse_attribute("softcap", std::to_string(a.softcap), "0 (none) or a positive number");
  }
}

void read_inputs(OrtKernelContext* context, graft_topk_attention* args) {
  graft_tensor* const inputs[kInputs] = {&args->q,    &args->k,        &args->v,
                                         &args->bias, &args->key_mask, &args->past_length};
  for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
  align("bias", 4, &args->bias);
  align("past_length", 1, &args->past_length);
}

void add_output(OrtKernelContext* context, graft_topk_attention* args) {
  if (args->q.rank != 4 || args->k.rank != 4 || args->v.rank != 4) {
    fail("q, k, v got ranks " + std::to_string(args->q.rank) + ", " + std::to_string(args->k.rank) + ", " +
         std::to_string(args->v.rank) + ", allowed 4: q [b h s d], k [b g t d], v [b g t e]");
  }
  int64_t b = args->q.shape[0];
  for (const graft_tensor* x : {&args->k, &args->v}) b = b == 1 ? x->shape[0] : b;
  args->out = {nullptr, args->q.dtype, 4, {b, args->q.shape[1], args->q.shape[2], args->v.shape[3]}, {}};
  fill_strides(&args->out);
  args->out.data = make_output(context, args->out.shape, 4);
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] {
    TopKAttentionNode a{};
    read_attribute(info, "k", &a.k);
    read_attribute(info, "causal", &a.causal);
    a.scaled = read_attribute(info, "scale", &a.scale);
    read_attribute(info, "softcap", &a.softcap);
    check_values(a);
    *kernel = new TopKAttentionNode(a);
  });
}

void destroy(void* kernel) { delete static_cast<TopKAttentionNode*>(kernel); }

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    const graft_topk_attention args = read_call(*static_cast<TopKAttentionNode*>(kernel), context);
    SessionPool session(context);
    finish(session, graft_run_topk_attention(&args, nullptr, &session.pool));
  });
}

}  // namespace

graft_topk_attention read_call(const TopKAttentionNode& a, OrtKernelContext* context) {
  graft_topk_attention args{};
  read_inputs(context, &args);
  add_output(context, &args);
  args.top_k = a.k;
  args.causal = static_cast<int32_t>(a.causal);
  args.softcap = a.softcap;
  args.scale = a.scaled ? a.scale : 1.0f / sqrtf(static_cast<float>(args.q.shape[3]));
  return args;
}

extern const OpKind kTopKAttention{kName, kInputs, kRequired, input_type, create, run_node, destroy, infer};

}  // namespace graft
