// ai.graft::TopKFeedForward as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which goes
// from a node's attributes and tensors to the plain C interface.
#include "../ort_call.h"
#include "plan.h"

namespace graft {
namespace {

constexpr const char* kName = "TopKFeedForward";
constexpr size_t kInputs = 7, kRequired = 3;
constexpr size_t kIn = 1, kGate = 5;
constexpr const char* kNames[kInputs] = {"x", "w_in", "w_out", "b_in", "b_out", "w_gate", "b_gate"};

struct Node {
  int64_t k = 0, chunk = 0;
  std::string activation = "relu", select_by = "preactivation";
  bool constant_in = false, constant_gate = false;
  KeptNear kept;
};

int input_type(size_t, int dtype) { return dtype; }

// y has the axes of x, and the width of w_out. Where not even its rank is known, the type of the inputs is right, too.
OrtStatus* infer(const OrtCustomOp*, OrtShapeInferContext* context) {
  return guarded(kName, [&] {
    Shape x = read_shape(context, 0), w_out = read_shape(context, 2);
    if (x.lengths.empty()) return;
    if (w_out.lengths.size() != 2) w_out = {x.dtype, {-1, -1}, {"", ""}};
    x.lengths.back() = w_out.lengths[1], x.names.back() = w_out.names[1];
    set_shape(context, x);
  });
}

// What the call would refuse, said before the first run: a call without tokens checks the attributes too.
void check_values(const Node& node) {
  static char none;
  graft_topk_feed_forward args{};
  for (graft_tensor* x : {&args.x, &args.w_in, &args.w_out, &args.out}) *x = {&none, GRAFT_F32, 2, {}, {}};
  args.top_k = node.k, args.chunk = node.chunk;
  args.activation = node.activation.c_str(), args.select_by = node.select_by.c_str();
  const char* reason = nullptr;
  if (graft_pick_topk_feed_forward(&args, nullptr, &reason) != nullptr) return;
  check(ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, reason));
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] {
    auto node = std::make_unique<Node>();
    read_attribute(info, "k", &node->k);
    read_attribute(info, "chunk", &node->chunk);
    read_attribute(info, "activation", &node->activation);
    read_attribute(info, "select_by", &node->select_by);
    check_values(*node);
    node->constant_in = is_constant(info, kIn);
    node->constant_gate = is_constant(info, kGate);
    *kernel = node.release();
  });
}

void destroy(void* kernel) { delete static_cast<Node*>(kernel); }

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    Node& node = *static_cast<Node*>(kernel);
    graft_topk_feed_forward args{};
    graft_tensor* const inputs[kInputs] = {nullptr,     &args.w_in,   &args.w_out, &args.b_in,
                                           &args.b_out, &args.w_gate, &args.b_gate};
    std::vector<int64_t> shape = read_rows(context, 0, kNames[0], &args.x);
    for (size_t i = 1; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
    if (args.w_out.rank == 2) shape.back() = args.w_out.shape[1];
    args.out = {nullptr, args.x.dtype, 2, {args.x.shape[0], shape.back()}, {}};
    fill_strides(&args.out);
    args.out.data = make_output(context, shape.data(), shape.size());
    args.top_k = node.k, args.chunk = node.chunk;
    args.activation = node.activation.c_str(), args.select_by = node.select_by.c_str();
    SessionPool session(context);
    const bool constant = args.w_gate.data != nullptr ? node.constant_gate : node.constant_in;
    finish(session, run_feed_forward({args, constant ? &node.kept : nullptr}, nullptr, &session.pool));
  });
}

}  // namespace

extern const OpKind kTopKFeedForward{kName, kInputs, kRequired, input_type, create, run_node, destroy, infer};

}  // namespace graft
