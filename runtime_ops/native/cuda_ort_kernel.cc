// The kernel of ai.graft::TopKAttention for ONNX Runtime's CUDA provider. Nodes are read as on the CPU.
#include "cuda_abi.h"
#include "topk_attention/ort.h"

struct OrtMemoryInfo;
struct OrtAllocator;

namespace ort {
constexpr Slot<OrtStatus*(const char*, int, int, int, OrtMemoryInfo**)> CreateMemoryInfo{68};
constexpr Slot<OrtStatus*(OrtAllocator*, size_t, void**)> AllocatorAlloc{75};
constexpr Slot<OrtStatus*(OrtAllocator*, void*)> AllocatorFree{76};
constexpr Slot<void(OrtMemoryInfo*)> ReleaseMemoryInfo{94};
constexpr Slot<void(OrtAllocator*)> ReleaseAllocator{132};
constexpr Slot<OrtStatus*(const OrtKernelContext*, void**)> KernelContext_GetGPUComputeStream{193};
constexpr Slot<OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**)> KernelContext_GetAllocator{253};
}  // namespace ort

namespace graft {
namespace {

constexpr int kDeviceAllocator = 0, kDefaultMemory = 0;

// Scratch memory from the session's own CUDA arena. Freed when the kernels are enqueued, not when they are done:
// whoever gets the memory next uses it on the same stream, later.
class Scratch {
 public:
  Scratch(const OrtKernelContext* context, int64_t bytes) {
    if (bytes <= 0) return;
    int device = 0;
    OrtMemoryInfo* info = nullptr;
    if (graft_cuda_current_device(&device) != nullptr) fail("there is no CUDA device");
    check(ort::call(g_api, ort::CreateMemoryInfo, "Cuda", kDeviceAllocator, device, kDefaultMemory, &info));
    OrtStatus* status = ort::call(g_api, ort::KernelContext_GetAllocator, context, static_cast<const OrtMemoryInfo*>(info),
                                  &allocator_);
    ort::call(g_api, ort::ReleaseMemoryInfo, info);
    check(status);
    status = ort::call(g_api, ort::AllocatorAlloc, allocator_, static_cast<size_t>(bytes), &data_);
    if (status != nullptr) ort::call(g_api, ort::ReleaseAllocator, allocator_);
    check(status);
  }
  ~Scratch() {
    if (allocator_ == nullptr) return;
    OrtStatus* status = ort::call(g_api, ort::AllocatorFree, allocator_, data_);
    if (status != nullptr) ort::call(g_api, ort::ReleaseStatus, status);
    ort::call(g_api, ort::ReleaseAllocator, allocator_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace

OrtStatus* run_kernel_on_gpu(void* kernel, OrtKernelContext* context) {
  return guarded("TopKAttention", [&] {
    const graft_topk_attention args = read_call(*static_cast<TopKAttentionNode*>(kernel), context);
    void* stream = nullptr;
    check(ort::call(g_api, ort::KernelContext_GetGPUComputeStream, context, &stream));
    const int64_t bytes = graft_cuda_topk_attention_workspace(&args);
    const Scratch scratch(context, bytes);
    const char* error =
        graft_cuda_run_topk_attention(&args, stream, scratch.data(), static_cast<size_t>(bytes > 0 ? bytes : 0));
    if (error != nullptr) check(ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, error));
  });
}

}  // namespace graft
