// Registers ai.graft::TopKAttention for ONNX Runtime's CUDA provider beside the operators for the CPU: without those
// a session without CUDA would fail. All must be in one domain and have the same schema, so this file contains ort.cc
// and registers in its stead.
#define RegisterCustomOps register_cpu_alone
#include "ort.cc"
#undef RegisterCustomOps

namespace graft {

OrtStatus* run_kernel_on_gpu(void* kernel, OrtKernelContext* context);  // in cuda_ort_kernel.cc

namespace {

TypedOp make_gpu_op(int dtype, bool inferring) {
  TypedOp op = make_op(dtype, inferring);
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CUDAExecutionProvider"; };
  op.KernelComputeV2 = run_kernel_on_gpu;
  return op;
}

// ort.cc's domain, made once and kept, with more operators in it. The first call adds them.
OrtCustomOpDomain* domain_with_gpu(const char* version) {
  static OrtCustomOpDomain* const made = [version] {
    const bool inferring = infers_safely(version);
    static const TypedOp ops[] = {make_gpu_op(GRAFT_F32, inferring), make_gpu_op(GRAFT_F16, inferring),
                                  make_gpu_op(GRAFT_BF16, inferring)};
    OrtCustomOpDomain* both = domain(version);
    for (const TypedOp& op : ops) check(ort::call(g_api, ort::CustomOpDomain_Add, both, &op));
    return both;
  }();
  return made;
}

}  // namespace
}  // namespace graft

extern "C" GRAFT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace graft;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api != nullptr) {
    g_api = api;
    OrtStatus* status = guarded([&] { domain_with_gpu(base->GetVersionString()); });
    if (status != nullptr) return status;
  }
  return register_cpu_alone(options, base);
}
