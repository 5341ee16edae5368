// The part of ONNX Runtime's C interface that graft uses, by position: no package index ships its headers, and
// the interface only ever appends. Floor: ONNX Runtime 1.18; 1.17 has every function used here, but
// cannot tell operators apart that share a name and differ in type. tests/test_ort_abi.py reads the slots below and
// proves each one against the installed runtime.
#ifndef GRAFT_ORT_ABI_H_
#define GRAFT_ORT_ABI_H_

#include <stddef.h>
#include <stdint.h>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtCustomOp;  // below
struct OrtApi;  // an array of function pointers

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // NULL: the runtime is older than `version`
  const char* (*GetVersionString)();
};

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtElementType { ORT_UNDEFINED = 0 };  // others are numbered as in graft_dtype
enum OrtCharacteristic { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };
enum OrtOpAttrType { ORT_OP_ATTR_STRING = 5 };
enum OrtMemType { ORT_MEM_DEFAULT = 0 };

namespace ort {

constexpr uint32_t kApiVersion = 18;  // that the runtime must offer
constexpr uint32_t kOpVersion = 17;   // of OrtCustomOp below

template <class Signature>
struct Slot {
  int index;
};

// The function in `slot`, called.
template <class Result, class... Parameters, class... Arguments>
Result call(const OrtApi* api, Slot<Result(Parameters...)> slot, Arguments... arguments) {
  using Function = Result (*)(Parameters...);
  return reinterpret_cast<const Function*>(api)[slot.index](arguments...);
}

using Info = OrtTensorTypeAndShapeInfo;

constexpr Slot<OrtStatus*(OrtErrorCode, const char*)> CreateStatus{0};
constexpr Slot<OrtStatus*(const char*, OrtCustomOpDomain**)> CreateCustomOpDomain{26};
constexpr Slot<OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add{27};
constexpr Slot<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain{28};
constexpr Slot<OrtStatus*(OrtValue*, void**)> GetTensorMutableData{51};
constexpr Slot<OrtStatus*(Info**)> CreateTensorTypeAndShapeInfo{57};
constexpr Slot<OrtStatus*(Info*, int)> SetTensorElementType{58};
constexpr Slot<OrtStatus*(Info*, const int64_t*, size_t)> SetDimensions{59};
constexpr Slot<OrtStatus*(const Info*, int*)> GetTensorElementType{60};
constexpr Slot<OrtStatus*(const Info*, size_t*)> GetDimensionsCount{61};
constexpr Slot<OrtStatus*(const Info*, int64_t*, size_t)> GetDimensions{62};
constexpr Slot<OrtStatus*(const Info*, const char**, size_t)> GetSymbolicDimensions{63};
constexpr Slot<OrtStatus*(const OrtValue*, Info**)> GetTensorTypeAndShape{65};
constexpr Slot<OrtStatus*(const OrtKernelInfo*, const char*, float*)> KernelInfoGetAttribute_float{85};
constexpr Slot<OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64{86};
constexpr Slot<OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)> KernelInfoGetAttribute_string{87};
constexpr Slot<OrtStatus*(const OrtKernelContext*, size_t*)> KernelContext_GetInputCount{88};
constexpr Slot<OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> KernelContext_GetInput{90};
constexpr Slot<OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)> KernelContext_GetOutput{91};
constexpr Slot<void(OrtStatus*)> ReleaseStatus{93};
constexpr Slot<void(Info*)> ReleaseTensorTypeAndShapeInfo{99};
constexpr Slot<OrtStatus*(OrtSessionOptions*, const char*, const char*)> AddSessionConfigEntry{130};
constexpr Slot<OrtStatus*(const OrtSessionOptions*, const char*, int*)> HasSessionConfigEntry{237};
constexpr Slot<OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)> KernelInfoGetConstantInput_tensor{249};
constexpr Slot<OrtStatus*(const OrtShapeInferContext*, size_t, Info**)> ShapeInferContext_GetInputTypeShape{268};
constexpr Slot<OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)> ShapeInferContext_GetAttribute{269};
constexpr Slot<OrtStatus*(const OrtShapeInferContext*, size_t, const Info*)> ShapeInferContext_SetOutputTypeShape{270};
constexpr Slot<OrtStatus*(Info*, const char**, size_t)> SetSymbolicDimensions{271};
constexpr Slot<OrtStatus*(const OrtOpAttr*, OrtOpAttrType, void*, size_t, size_t*)> ReadOpAttr{272};
constexpr Slot<OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>
    KernelContext_ParallelFor{274};

}  // namespace ort

// Every field up to version kOpVersion, in order; `version` tells the runtime to read no further.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);  // NULL: CPU
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};

#endif  // GRAFT_ORT_ABI_H_
