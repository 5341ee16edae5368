// ai.graft::SegmentAttention as an ONNX Runtime operator on the CPU: types, shape inference, and its kernel, which goes
// from a node's attributes and tensors to the plain C interface.
#include "../ort_call.h"

namespace graft {
namespace {

constexpr const char* kName = "SegmentAttention";
constexpr size_t kInputs = 6, kRequired = 4;
constexpr const char* kNames[kInputs] = {"q", "k", "v", "segments", "bias", "key_mask"};

struct Node {
  Scale scale;
  TokensFirst first;
  float softcap;
};

// A bias may be of any type: it stays open.
int input_type(size_t i, int dtype) {
  const int types[kInputs] = {dtype, dtype, dtype, GRAFT_I64, ORT_UNDEFINED, GRAFT_BOOL};
  return types[i];
}

void read_inputs(OrtKernelContext* context, graft_segment_attention* args) {
  graft_tensor* const inputs[kInputs] = {&args->q,        &args->k,    &args->v,
                                         &args->segments, &args->bias, &args->key_mask};
  for (size_t i = 0; i < kInputs; ++i) read_input(context, i, kNames[i], inputs[i]);
  align("bias", 4, &args->bias);
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded(kName, [&] {
    *kernel = new Node{read_scale(info), read_tokens_first(info), read_softcap(info)};
  });
}

void destroy(void* kernel) { delete static_cast<Node*>(kernel); }

OrtStatus* run_node(void* kernel, OrtKernelContext* context) {
  return guarded(kName, [&] {
    const Node& a = *static_cast<Node*>(kernel);
    graft_segment_attention args{};
    read_inputs(context, &args);
    const char* const axes = "q [b h t d], k [b g t d], v [b g t e]";
    make_attention_output(context, a.first, axes, &args.q, &args.k, &args.v, &args.out);
    args.softcap = a.softcap;
    args.scale = scale_for(a.scale, args.q);
    SessionPool session(context);
    finish(session, graft_run_segment_attention(&args, nullptr, &session.pool));
  });
}

}  // namespace

extern const OpKind kSegmentAttention{kName,    kInputs,  kRequired, input_type,
                                       create,   run_node, destroy,   infer_attention};

}  // namespace graft
