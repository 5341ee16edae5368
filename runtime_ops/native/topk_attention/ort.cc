// ai.graft::TopKAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which goes
// from a node's attributes and tensors to the plain C interface.
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

void check_values(const TopKAttentionNode& a) {
  if (a.k < 0) refuse_attribute("k", std::to_string(a.k), "0 (every key) or more");
  if (a.causal != 0 && a.causal != 1) refuse_attribute("causal", std::to_string(a.causal), "0 or 1");
  if (a.window < 0) refuse_attribute("window", std::to_string(a.window), "0 (none) or more");
}

constexpr const char* kRemainder[] = {"none", "mean", "blocks"};  // as in graft_remainder

void read_inputs(OrtKernelContext* context, graft_topk_attention* args) {
  graft_tensor* const inputs[kInputs] = {&args->q,    &args->k,        &args->v,
                                         &args->bias, &args->key_mask, &args->past_length};
  for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
  align("bias", 4, &args->bias);
  align("past_length", 1, &args->past_length);
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] { *kernel = new TopKAttentionNode(read_node(info)); });
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

TopKAttentionNode read_node(const OrtKernelInfo* info) {
  TopKAttentionNode a{};
  read_attribute(info, "k", &a.k);
  read_attribute(info, "causal", &a.causal);
  read_attribute(info, "window", &a.window);
  a.scale = read_scale(info);
  a.first = read_tokens_first(info);
  a.softcap = read_softcap(info);
  a.no_key = read_no_key(info);
  a.remainder = read_word(info, "remainder", kRemainder);
  check_values(a);
  return a;
}

graft_topk_attention read_call(const TopKAttentionNode& a, OrtKernelContext* context) {
  graft_topk_attention args{};
  read_inputs(context, &args);
  const char* const axes = "q [b h s d], k [b g t d], v [b g t e]";
  make_attention_output(context, a.first, axes, &args.q, &args.k, &args.v, &args.out);
  args.top_k = a.k;
  args.causal = static_cast<int32_t>(a.causal);
  args.no_key = a.no_key;
  args.remainder = a.remainder;
  args.window = a.window;
  args.softcap = a.softcap;
  args.scale = scale_for(a.scale, args.q);
  return args;
}

extern const OpKind kTopKAttention{kName, kInputs, kRequired, input_type, create, run_node, destroy, infer_attention};

}  // namespace graft
