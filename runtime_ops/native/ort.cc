// ai.graft::TopKAttention as an ONNX Runtime custom operator on the CPU: its schema and its registration.
#include <stdio.h>

#include <atomic>

#include "ort_call.h"

namespace graft {

const OrtApi* g_api = nullptr;

namespace {

constexpr const char* kDomain = "ai.graft";
constexpr size_t kInputs = 6, kRequired = 3;  // q, k, v; bias, key_mask, past_length

struct Shape {
  graft_tensor x{};
  const char* names[GRAFT_MAX_RANK] = {};  // owned by the context, like the shape itself
};

void read_input_shape(const OrtShapeInferContext* context, size_t index, Shape* shape) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::call(g_api, ort::ShapeInferContext_GetInputTypeShape, context, index, &raw));
  read_shape(raw, "an input", &shape->x);
  check(ort::call(g_api, ort::GetSymbolicDimensions, raw, shape->names, static_cast<size_t>(shape->x.rank)));
}

Shape unknown(int32_t dtype) {
  Shape shape;
  shape.x.dtype = dtype;
  for (int i = 0; i < 4; ++i) shape.x.shape[i] = -1, shape.names[i] = "";
  return shape;
}

// An unknown length needs a name of its own: left as -1, the runtime would take two of them for equal.
const char* name_length(int64_t length, const char* name, std::string* fresh) {
  static std::atomic<int> count{0};
  if (length >= 0 || *name != '\0') return name;
  *fresh = "ai.graft." + std::to_string(++count);
  return fresh->c_str();
}

// out [b h s e] takes b, h and s from q and e from v.
OrtStatus* infer(const OrtCustomOp*, OrtShapeInferContext* context) {
  return guarded([&] {
    Shape q, v;
    read_input_shape(context, 0, &q);
    read_input_shape(context, 2, &v);
    // Even where nothing is known the type must be set: otherwise the runtime takes it from the last input.
    for (Shape* x : {&q, &v}) {
      if (x->x.rank != 4) *x = unknown(x->x.dtype);
    }
    int64_t shape[4] = {q.x.shape[0], q.x.shape[1], q.x.shape[2], v.x.shape[3]};
    const char* names[4] = {q.names[0], q.names[1], q.names[2], v.names[3]};
    if (shape[0] == 1) shape[0] = v.x.shape[0], names[0] = v.names[0];
    std::string fresh[4];
    for (int i = 0; i < 4; ++i) names[i] = name_length(shape[i], names[i], &fresh[i]);
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    check(ort::call(g_api, ort::CreateTensorTypeAndShapeInfo, &raw));
    const Info out(raw);
    check(ort::call(g_api, ort::SetTensorElementType, raw, static_cast<int>(q.x.dtype)));
    check(ort::call(g_api, ort::SetDimensions, raw, static_cast<const int64_t*>(shape), size_t{4}));
    check(ort::call(g_api, ort::SetSymbolicDimensions, raw, static_cast<const char**>(names), size_t{4}));
    check(ort::call(g_api, ort::ShapeInferContext_SetOutputTypeShape, context, size_t{0}, raw));
  });
}

// One operator per element type of q, k, v and out. A bias may be of any type: it stays open.
struct TypedOp : OrtCustomOp {
  int dtype;
};

int input_type(const OrtCustomOp* op, size_t i) {
  const int types[kInputs] = {0, 0, 0, ORT_UNDEFINED, GRAFT_BOOL, GRAFT_I64};
  return i < kRequired ? static_cast<const TypedOp*>(op)->dtype : types[i];
}

TypedOp make_op(int dtype, bool inferring) {
  TypedOp op{};
  op.dtype = dtype;
  op.version = ort::kOpVersion;
  op.GetName = [](const OrtCustomOp*) { return "TopKAttention"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const OrtCustomOp*) { return kInputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return static_cast<const TypedOp*>(self)->dtype; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.KernelDestroy = destroy_kernel;
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i < kRequired ? ORT_REQUIRED : ORT_OPTIONAL;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ORT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return ORT_MEM_DEFAULT; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = run_kernel;
  op.InferOutputShapeFn = inferring ? infer : nullptr;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1000; };
  return op;
}

// Up to 1.23 the runtime reads through a null pointer where it infers shapes for a node that leaves out an optional
// input before the last one (measured on 1.17.3 to 1.23.2; 1.24.1 does not). There, lengths stay unknown.
bool infers_safely(const char* version) {
  int major = 0, minor = 0;
  return sscanf(version, "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= 24);
}

// The domain must outlive every session, and nobody tells when the last one ends: it is made once and kept.
OrtCustomOpDomain* domain(const char* version) {
  static OrtCustomOpDomain* const made = [version] {
    const bool inferring = infers_safely(version);
    static const TypedOp ops[] = {make_op(GRAFT_F32, inferring), make_op(GRAFT_F16, inferring),
                                  make_op(GRAFT_BF16, inferring)};
    OrtCustomOpDomain* fresh = nullptr;
    check(ort::call(g_api, ort::CreateCustomOpDomain, kDomain, &fresh));
    for (const TypedOp& op : ops) check(ort::call(g_api, ort::CustomOpDomain_Add, fresh, &op));
    return fresh;
  }();
  return made;
}

// Registering a domain twice makes the session fail, so the options carry a note that it is in.
void register_in(OrtSessionOptions* options, const char* version) {
  constexpr const char* note = "ai.graft.registered";
  int known = 0;
  check(ort::call(g_api, ort::HasSessionConfigEntry, options, note, &known));
  if (known) return;
  check(ort::call(g_api, ort::AddCustomOpDomain, options, domain(version)));
  check(ort::call(g_api, ort::AddSessionConfigEntry, options, note, "1"));
}

}  // namespace
}  // namespace graft

extern "C" GRAFT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace graft;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // CreateStatus is in the same place since version 1.
    const std::string sentence = std::string("graft needs ONNX Runtime 1.18 or newer, got ") + base->GetVersionString();
    return ort::call(base->GetApi(1), ort::CreateStatus, ORT_FAIL, sentence.c_str());
  }
  g_api = api;
  return guarded([&] { register_in(options, base->GetVersionString()); });
}
