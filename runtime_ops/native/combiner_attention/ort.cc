// ai.graft::CombinerAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which
// goes from a node's attributes and tensors to the plain C interface.
#include <math.h>

#include "../ort_call.h"

namespace graft {
namespace {

constexpr const char* kName = "CombinerAttention";
constexpr size_t kInputs = 4, kRequired = 3;
constexpr const char* kNames[kInputs] = {"q", "k", "v", "key_mask"};

struct Node {
  std::string variant = "fixed", pooling = "max", region_logit = "paper";
  int64_t span = 0, causal = 0;
  float scale = 1.0f;
  bool scaled = false;  // else scale is 1 / sqrt(d)
};

int input_type(size_t i, int dtype) { return i == 3 ? static_cast<int>(GRAFT_BOOL) : dtype; }

// out [b h t e] takes b, h and t from q and e from v.
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

void set_attributes(const Node& node, graft_combiner_attention* args) {
  args->variant = node.variant.c_str();
  args->pooling = node.pooling.c_str();
  args->region_logit = node.region_logit.c_str();
  args->span = node.span;
  args->causal = static_cast<int32_t>(node.causal);
  args->scale = node.scaled ? node.scale : 1.0f / sqrtf(static_cast<float>(args->q.shape[3]));
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
    node.scaled = read_attribute(info, "scale", &node.scale);
    check_values(node);
    *kernel = new Node(node);
  });
}

void destroy(void* kernel) { delete static_cast<Node*>(kernel); }

void add_output(OrtKernelContext* context, graft_combiner_attention* args) {
  const graft_tensor &q = args->q, &k = args->k, &v = args->v;
  if (q.rank != 4 || k.rank != 4 || v.rank != 4) {
    fail("q, k, v got ranks " + std::to_string(q.rank) + ", " + std::to_string(k.rank) + ", " +
         std::to_string(v.rank) + ", allowed 4: q [b h t d], k [b g t d], v [b g t e]");
  }
  int64_t b = q.shape[0];
  for (const graft_tensor* x : {&k, &v}) b = b == 1 ? x->shape[0] : b;
  args->out = {nullptr, q.dtype, 4, {b, q.shape[1], q.shape[2], v.shape[3]}, {}};
  fill_strides(&args->out);
  args->out.data = make_output(context, args->out.shape, 4);
}

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    graft_combiner_attention args{};
    graft_tensor* const inputs[kInputs] = {&args.q, &args.k, &args.v, &args.key_mask};
    for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
    add_output(context, &args);
    set_attributes(*static_cast<Node*>(kernel), &args);
    SessionPool session(context);
    finish(session, graft_run_combiner_attention(&args, nullptr, &session.pool));
  });
}

}  // namespace

extern const OpKind kCombinerAttention{kName, kInputs, kRequired, input_type, create, run_node, destroy, infer};

}  // namespace graft
