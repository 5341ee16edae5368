// The operators of ai.graft on the CPU: what all of them have in common, and their registration.
#include "ort_domain.h"

#include <stdio.h>

namespace graft {

const OrtApi* g_api = nullptr;

// One line per operator, each from the ort.cc in its folder.
extern const OpKind kTopKAttention, kTopKFeedForward, kCombinerAttention, kSegmentAttention, kExpandedAttention;

namespace {

constexpr const char* kDomain = "ai.graft";
const OpKind* const kOps[] = {
    &kTopKAttention,
    &kTopKFeedForward,
    &kSegmentAttention,
    &kCombinerAttention,
    &kExpandedAttention,
};

const OpKind& kind_of(const OrtCustomOp* op) { return *static_cast<const TypedOp*>(op)->kind; }

// Up to 1.23 the runtime reads through a null pointer where it infers shapes for a node that leaves out an optional
// input before the last one (measured on 1.17.3 to 1.23.2; 1.24.1 does not). There, lengths stay unknown.
bool infers_safely(const char* version) {
  int major = 0, minor = 0;
  return sscanf(version, "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= 24);
}

// Registering a domain twice makes the session fail, so the options carry a note that it is in.
void register_in(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  constexpr const char* note = "ai.graft.registered";
  int known = 0;
  check(ort::call(g_api, ort::HasSessionConfigEntry, options, note, &known));
  if (known) return;
  check(ort::call(g_api, ort::AddCustomOpDomain, options, domain));
  check(ort::call(g_api, ort::AddSessionConfigEntry, options, note, "1"));
}

}  // namespace

TypedOp make_op(const OpKind& kind, int dtype, const char* version) {
  TypedOp op{};
  op.kind = &kind;
  op.dtype = dtype;
  op.version = ort::kOpVersion;
  op.GetName = [](const OrtCustomOp* self) { return kind_of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const OrtCustomOp* self, size_t i) {
    return kind_of(self).input_type(i, static_cast<const TypedOp*>(self)->dtype);
  };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return kind_of(self).inputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return static_cast<const TypedOp*>(self)->dtype; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.KernelDestroy = kind.destroy;
  op.GetInputCharacteristic = [](const OrtCustomOp* self, size_t i) -> int {
    return i < kind_of(self).required ? ORT_REQUIRED : ORT_OPTIONAL;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ORT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return ORT_MEM_DEFAULT; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = kind.create;
  op.KernelComputeV2 = kind.run;
  op.InferOutputShapeFn = infers_safely(version) ? kind.infer : nullptr;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1000; };
  return op;
}

// It must outlive every session, and nobody tells when the last one ends.
OrtCustomOpDomain* cpu_domain(const char* version) {
  static OrtCustomOpDomain* const made = [version] {
    static std::vector<TypedOp> ops;
    for (const OpKind* kind : kOps) {
      for (int dtype : kFloats) ops.push_back(make_op(*kind, dtype, version));
    }
    OrtCustomOpDomain* fresh = nullptr;
    check(ort::call(g_api, ort::CreateCustomOpDomain, kDomain, &fresh));
    for (const TypedOp& op : ops) check(ort::call(g_api, ort::CustomOpDomain_Add, fresh, &op));
    return fresh;
  }();
  return made;
}

OrtStatus* register_domain(OrtSessionOptions* options, const OrtApiBase* base,
                           OrtCustomOpDomain* (*make)(const char* version)) {
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // CreateStatus is in the same place since version 1.
    const std::string sentence = std::string("graft needs ONNX Runtime 1.18 or newer, got ") + base->GetVersionString();
    return ort::call(base->GetApi(1), ort::CreateStatus, ORT_FAIL, sentence.c_str());
  }
  g_api = api;
  return guarded("graft", [&] { register_in(options, make(base->GetVersionString())); });
}

}  // namespace graft
