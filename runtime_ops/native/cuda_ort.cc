// Registers ai.graft::TopKAttention for ONNX Runtime's CUDA provider beside the operators for the CPU: without those a
// session without CUDA would fail, and all must be in one domain. Takes the place of ort.cc.
#include "ort_domain.h"

namespace graft {

extern const OpKind kTopKAttention;
OrtStatus* run_kernel_on_gpu(void* kernel, OrtKernelContext* context);  // in cuda_ort_kernel.cc

namespace {

TypedOp make_gpu_op(int dtype, const char* version) {
  TypedOp op = make_op(kTopKAttention, dtype, version);
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CUDAExecutionProvider"; };
  op.KernelComputeV2 = run_kernel_on_gpu;
  return op;
}

// The domain for the CPU, made once and kept, with more operators in it. The first call adds them.
OrtCustomOpDomain* domain_with_gpu(const char* version) {
  static OrtCustomOpDomain* const made = [version] {
    static const TypedOp ops[] = {make_gpu_op(GRAFT_F32, version), make_gpu_op(GRAFT_F16, version),
                                  make_gpu_op(GRAFT_BF16, version)};
    OrtCustomOpDomain* both = cpu_domain(version);
    for (const TypedOp& op : ops) check(ort::call(g_api, ort::CustomOpDomain_Add, both, &op));
    return both;
  }();
  return made;
}

}  // namespace
}  // namespace graft

extern "C" GRAFT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return graft::register_domain(options, base, graft::domain_with_gpu);
}
