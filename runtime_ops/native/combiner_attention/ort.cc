// ai.graft::CombinerAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which
// goes from a node's attributes and tensors to the plain C interface.
#include "../ort_call.h"

namespace graft {
namespace {

constexpr const char* kName = "CombinerAttention";
constexpr size_t kInputs = 4, kRequired = 3;
constexpr const char* kNames[kInputs] = {"q", "k", "v", "key_mask"};

struct Node {
  std::string variant = "fixed", pooling = "max", region_logit = "paper";
  int64_t span = 0, causal = 0;
  int32_t no_key = GRAFT_NO_KEY_ZERO;
  Scale scale;
  TokensFirst first;
};

int input_type(size_t i, int dtype) { return i == 3 ? static_cast<int>(GRAFT_BOOL) : dtype; }

void set_attributes(const Node& node, graft_combiner_attention* args) {
  args->variant = node.variant.c_str();
  args->pooling = node.pooling.c_str();
  args->region_logit = node.region_logit.c_str();
  args->span = node.span;
  args->causal = static_cast<int32_t>(node.causal);
  args->no_key = node.no_key;
  args->scale = scale_for(node.scale, args->q);
}

// What the call would refuse, said before the first run: a call without tokens checks the attributes too.
void check_values(const Node& node) {
  if (node.causal != 0 && node.causal != 1) refuse_attribute("causal", std::to_string(node.causal), "0 or 1");
  graft_combiner_attention args{};
  for (graft_tensor* x : {&args.q, &args.k, &args.v, &args.out}) *x = {nullptr, GRAFT_F32, 4, {1, 1, 0, 1}, {}};
  set_attributes(node, &args);
  const char* reason = nullptr;
  if (graft_pick_combiner_attention(&args, nullptr, &reason) != nullptr) return;
  check(ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, reason));
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] {
    Node node;
    read_attribute(info, "variant", &node.variant);
    read_attribute(info, "span", &node.span);
    read_attribute(info, "pooling", &node.pooling);
    read_attribute(info, "region_logit", &node.region_logit);
    read_attribute(info, "causal", &node.causal);
    node.no_key = read_no_key(info);
    node.scale = read_scale(info);
    node.first = read_tokens_first(info);
    check_values(node);
    *kernel = new Node(node);
  });
}

void destroy(void* kernel) { delete static_cast<Node*>(kernel); }

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    const Node& node = *static_cast<Node*>(kernel);
    graft_combiner_attention args{};
    graft_tensor* const inputs[kInputs] = {&args.q, &args.k, &args.v, &args.key_mask};
    for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
    const char* const axes = "q [b h t d], k [b g t d], v [b g t e]";
    make_attention_output(context, node.first, axes, &args.q, &args.k, &args.v, &args.out);
    set_attributes(node, &args);
    SessionPool session(context);
    finish(session, graft_run_combiner_attention(&args, nullptr, &session.pool));
  });
}

}  // namespace

extern const OpKind kCombinerAttention{kName,    kInputs,  kRequired, input_type,
                                       create,   run_node, destroy,   infer_attention};

}  // namespace graft
