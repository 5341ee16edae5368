// The function that ONNX Runtime looks for in a library of custom operators.
#include "ort_domain.h"

extern "C" GRAFT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return graft::register_domain(options, base, graft::cpu_domain);
}
