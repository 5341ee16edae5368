// ai.graft::ExpandedAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which goes
// from a node's attributes and tensors to the plain C interface.
#include "../topk_attention/ort.h"

namespace graft {
namespace {

constexpr const char* kName = "ExpandedAttention";
constexpr size_t kInputs = 9, kRequired = 4;
constexpr const char* kNames[kInputs] = {"q",        "memory",      "w_k",       "w_v", "b_v", "bias",
                                         "key_mask", "past_length", "beam_index"};

using Node = TopKAttentionNode;  // it has the same attributes

// A bias may be of any type: it stays open.
int input_type(size_t i, int dtype) {
  const int types[kInputs] = {dtype,         dtype,      dtype,     dtype,    dtype,
                              ORT_UNDEFINED, GRAFT_BOOL, GRAFT_I64, GRAFT_I64};
  return types[i];
}

// out [n h s e] takes n, h and s from q and e from w_v.
OrtStatus* infer(const OrtCustomOp*, OrtShapeInferContext* context) {
  return guarded(kName, [&] {
    const TokensFirst first = read_tokens_first(context);
    Shape q = read_shape(context, 0), w = read_shape(context, 3);
    // Even where nothing is known the type must be set: otherwise the runtime takes it from the last input.
    if (q.lengths.size() != 4) q = {q.dtype, {-1, -1, -1, -1}, {"", "", "", ""}};
    const bool known = w.lengths.size() == 3;
    q.lengths[3] = known ? w.lengths[1] : -1, q.names[3] = known ? w.names[1] : "";
    if (first.q != first.out) turn(&q);
    set_shape(context, q);
  });
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] {
    const Node node = read_node(info);
    if (node.first.k || node.first.v) refuse_attribute("tokens_first", node.first.k ? "k" : "v", "some of q out");
    *kernel = new Node(node);
  });
}

void destroy(void* kernel) { delete static_cast<Node*>(kernel); }

void add_output(OrtKernelContext* context, const TokensFirst& first, graft_expanded_attention* args) {
  graft_tensor &q = args->q, &w = args->w_v;
  if (q.rank != 4 || w.rank != 3) {
    fail("q, w_v got ranks " + std::to_string(q.rank) + ", " + std::to_string(w.rank) +
         ", allowed 4, 3: q [n h s d], w_v [g e m]");
  }
  if (first.q) turn(&q);
  args->out = {nullptr, q.dtype, 4, {q.shape[0], q.shape[1], q.shape[2], w.shape[1]}, {}};
  make_turned_output(context, first.out, &args->out);
}

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    const Node& a = *static_cast<Node*>(kernel);
    graft_expanded_attention args{};
    graft_tensor* const inputs[kInputs] = {&args.q,    &args.memory,   &args.w_k,         &args.w_v,       &args.b_v,
                                           &args.bias, &args.key_mask, &args.past_length, &args.beam_index};
    for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
    align("bias", 4, &args.bias);
    align("past_length", 1, &args.past_length);
    add_output(context, a.first, &args);
    args.top_k = a.k, args.causal = static_cast<int32_t>(a.causal);
    args.window = a.window, args.no_key = a.no_key;
    args.softcap = a.softcap, args.scale = scale_for(a.scale, args.q);
    SessionPool session(context);
    finish(session, graft_run_expanded_attention(&args, nullptr, &session.pool));
  });
}

}  // namespace

extern const OpKind kExpandedAttention{kName, kInputs, kRequired, input_type, create, run_node, destroy, infer};

}  // namespace graft
