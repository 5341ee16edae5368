// What the files that talk to ONNX Runtime share: calls that throw, and the edge where that must end.
#ifndef GRAFT_ORT_CALL_H_
#define GRAFT_ORT_CALL_H_

#include <exception>
#include <memory>
#include <string>

#include "abi.h"
#include "ort_abi.h"

namespace graft {

extern const OrtApi* g_api;  // the runtime in this process; set before anything else can be called

// Thrown inside the library only: carries a status of the runtime's, or makes one from a sentence.
struct Failure {
  OrtStatus* status;
};

[[noreturn]] inline void fail(const std::string& sentence) {
  throw Failure{ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, sentence.c_str())};
}

inline void check(OrtStatus* status) {
  if (status != nullptr) throw Failure{status};
}

// Exceptions must not cross the C interface.
template <class Body>
OrtStatus* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return ort::call(g_api, ort::CreateStatus, ORT_FAIL, error.what());
  }
}

struct ReleaseInfo {
  void operator()(OrtTensorTypeAndShapeInfo* info) const {
    ort::call(g_api, ort::ReleaseTensorTypeAndShapeInfo, info);
  }
};
using Info = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo>;

inline void read_shape(const OrtTensorTypeAndShapeInfo* info, const char* name, graft_tensor* x) {
  size_t rank = 0;
  int dtype = 0;
  check(ort::call(g_api, ort::GetDimensionsCount, info, &rank));
  check(ort::call(g_api, ort::GetTensorElementType, info, &dtype));
  if (rank > GRAFT_MAX_RANK) {
    fail(std::string("TopKAttention: ") + name + " got rank " + std::to_string(rank) + ", allowed at most 4");
  }
  check(ort::call(g_api, ort::GetDimensions, info, x->shape, rank));
  x->rank = static_cast<int32_t>(rank);
  x->dtype = dtype;
}

// The operator's kernel, in ort_kernel.cc.
OrtStatus* create_kernel(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel);
OrtStatus* run_kernel(void* kernel, OrtKernelContext* context);
void destroy_kernel(void* kernel);

}  // namespace graft

#endif  // GRAFT_ORT_CALL_H_
