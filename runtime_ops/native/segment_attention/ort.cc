// ai.graft::SegmentAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which goes
// from a node's attributes and tensors to the plain C interface.
#include <math.h>

#include "../ort_call.h"

namespace graft {
namespace {

constexpr const char* kName = "SegmentAttention";
constexpr size_t kInputs = 6, kRequired = 4;
constexpr const char* kNames[kInputs] = {"q", "k", "v", "segments", "bias", "key_mask"};

struct Node {
  bool scaled;  // a scale is given
  float scale, softcap;
};

// A bias may be of any type: it stays open.
int input_type(size_t i, int dtype) {
  const int types[kInputs] = {dtype, dtype, dtype, GRAFT_I64, ORT_UNDEFINED, GRAFT_BOOL};
  return types[i];
}

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

void check_values(const Node& a) {
  if (!isfinite(a.scale)) refuse_attribute("scale", std::to_string(a.scale), "a finite number");
  if (!(a.softcap >= 0.0f) || isinf(a.softcap)) {
    refuse_attribute("softcap", std::to_string(a.softcap), "0 (none) or a positive number");
  }
}

void read_inputs(OrtKernelContext* context, graft_segment_attention* args) {
  graft_tensor* const inputs[kInputs] = {&args->q,        &args->k,    &args->v,
                                         &args->segments, &args->bias, &args->key_mask};
  for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
  align("bias", 4, &args->bias);
}

void add_output(OrtKernelContext* context, graft_segment_attention* args) {
  if (args->q.rank != 4 || args->k.rank != 4 || args->v.rank != 4) {
    fail("q, k, v got ranks " + std::to_string(args->q.rank) + ", " + std::to_string(args->k.rank) + ", " +
         std::to_string(args->v.rank) + ", allowed 4: q [b h t d], k [b g t d], v [b g t e]");
  }
  int64_t b = args->q.shape[0];
  for (const graft_tensor* x : {&args->k, &args->v}) b = b == 1 ? x->shape[0] : b;
  args->out = {nullptr, args->q.dtype, 4, {b, args->q.shape[1], args->q.shape[2], args->v.shape[3]}, {}};
  fill_strides(&args->out);
  args->out.data = make_output(context, args->out.shape, 4);
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] {
    Node a{};
    a.scaled = read_attribute(info, "scale", &a.scale);
    read_attribute(info, "softcap", &a.softcap);
    check_values(a);
    *kernel = new Node(a);
  });
}

void destroy(void* kernel) { delete static_cast<Node*>(kernel); }

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    const Node& a = *static_cast<Node*>(kernel);
    graft_segment_attention args{};
    read_inputs(context, &args);
    add_output(context, &args);
    args.softcap = a.softcap;
    args.scale = a.scaled ? a.scale : 1.0f / sqrtf(static_cast<float>(args.q.shape[3]));
    SessionPool session(context);
    finish(session, graft_run_segment_attention(&args, nullptr, &session.pool));
  });
}

}  // namespace

extern const OpKind kSegmentAttention{kName, kInputs, kRequired, input_type, create, run_node, destroy, infer};

}  // namespace graft
