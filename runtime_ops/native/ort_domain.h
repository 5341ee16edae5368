// The operators of ai.graft as ONNX Runtime takes them; for ort.cc and, with more of them, for cuda_ort.cc.
#ifndef GRAFT_ORT_DOMAIN_H_
#define GRAFT_ORT_DOMAIN_H_

#include "ort_call.h"

namespace graft {

// One per operator and element type of its first input and output.
struct TypedOp : OrtCustomOp {
  const OpKind* kind;
  int dtype;
};

constexpr int kFloats[] = {GRAFT_F32, GRAFT_F16, GRAFT_BF16};

// version: of the runtime.
TypedOp make_op(const OpKind& kind, int dtype, const char* version);

// The domain with all operators for the CPU, made once and kept.
OrtCustomOpDomain* cpu_domain(const char* version);

// What RegisterCustomOps does, with the domain that `make` gives.
OrtStatus* register_domain(OrtSessionOptions* options, const OrtApiBase* base,
                           OrtCustomOpDomain* (*make)(const char* version));

}  // namespace graft

#endif  // GRAFT_ORT_DOMAIN_H_
