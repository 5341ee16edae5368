// The C interface of cuda_abi.h.
#include "plan.cuh"

namespace graft::gpu {
namespace {

const char* run(const graft_topk_attention& args, const graft_topk_attention_saved* saved, void* stream,
                void* workspace, size_t workspace_bytes) {
  Problem p;
  Plan plan;
  const char* error = resolve(args, saved, &p, &plan);
  if (error) return error;
  if (plan.bytes > static_cast<int64_t>(workspace_bytes)) return "TopKAttention on CUDA: the workspace is too small";
  char* const scratch = static_cast<char*>(workspace);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (plan.path == Path::kExact) return run_exact(p, plan, scratch, on);
  if (plan.path == Path::kTiles) return run_tiles(p, plan, scratch, on);
  if (plan.path == Path::kDecode) return run_decode(p, plan, scratch, on);
  return nullptr;
}

// Where fp32 sums of d_k or d_v are made: in the gradient itself, or in scratch memory.
struct Sums {
  int pitch;
  int64_t rows, scratch_bytes;
  explicit Sums(const graft_tensor& x)
      : pitch(static_cast<int>(x.shape[3] + 3) / 4 * 4), rows(x.shape[0] * x.shape[1] * x.shape[2]) {
    const bool direct = x.dtype == GRAFT_F32 && x.shape[3] % 4 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
    scratch_bytes = direct ? 0 : (bytes() + 255) / 256 * 256;
  }
  int64_t bytes() const { return rows * pitch * 4; }
};

const char* run_gradients(const graft_topk_attention_backward& a, Problem p, char* scratch, cudaStream_t stream) {
  const Sums k(a.d_k), v(a.d_v);
  float* const d_k = static_cast<float*>(k.scratch_bytes ? static_cast<void*>(scratch) : a.d_k.data);
  float* const d_v = static_cast<float*>(v.scratch_bytes ? static_cast<void*>(scratch + k.scratch_bytes) : a.d_v.data);
  for (cudaError_t error : {cudaMemsetAsync(d_k, 0, k.bytes(), stream), cudaMemsetAsync(d_v, 0, v.bytes(), stream)})
    if (error != cudaSuccess) return cudaGetErrorString(error);
  const Gradients to{view(a.d_out), view(a.d_q), d_k, d_v, k.pitch, v.pitch};
  const char* error = run_backward(p, a.forward.q.dtype, to, stream);
  if (!error && k.scratch_bytes) error = run_narrow(d_k, k.pitch, a.d_k, k.rows, stream);
  if (!error && v.scratch_bytes) error = run_narrow(d_v, v.pitch, a.d_v, v.rows, stream);
  return error;
}

}  // namespace
}  // namespace graft::gpu

using graft::gpu::Plan;
using graft::gpu::Problem;

int32_t graft_cuda_abi_version(void) { return GRAFT_CUDA_ABI_VERSION; }

const char* graft_cuda_current_device(int32_t* device) {
  int id = 0;
  const cudaError_t error = cudaGetDevice(&id);
  *device = id;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* graft_cuda_list_kernels(void) {
  return R"([{"op":"TopKAttention","name":"tensor","isa":"sm_80","dtypes":["float16","bfloat16"],)"
         R"("limits":{"d":256,"e":256,"multiple_of":8,"aligned":16},"worth":{},"rank":20,"usable":true,"reason":""},)"
         R"({"op":"TopKAttention","name":"plain","isa":"sm_80","dtypes":["float32","float16","bfloat16"],)"
         R"("limits":{"d":256,"e":256},"worth":{},"rank":10,"usable":true,"reason":""}])";
}

int64_t graft_cuda_topk_attention_workspace(const graft_topk_attention* args) {
  // The needs of training do not differ, but k = t takes another path there: ask for the larger.
  Problem p;
  Plan plan, training;
  if (graft::gpu::resolve(*args, nullptr, &p, &plan)) return -1;
  const graft_topk_attention_saved saved = {};
  if (args->top_k < 1 || args->top_k > p.t || graft::gpu::resolve(*args, &saved, &p, &training)) return plan.bytes;
  return plan.bytes > training.bytes ? plan.bytes : training.bytes;
}

int64_t graft_cuda_topk_attention_backward_workspace(const graft_topk_attention_backward* args) {
  return graft::gpu::Sums(args->d_k).scratch_bytes + graft::gpu::Sums(args->d_v).scratch_bytes;
}

const char* graft_cuda_run_topk_attention(const graft_topk_attention* args, void* stream, void* workspace,
                                          size_t workspace_bytes) {
  return graft::gpu::run(*args, nullptr, stream, workspace, workspace_bytes);
}

const char* graft_cuda_run_topk_attention_saving(const graft_topk_attention* args,
                                                 const graft_topk_attention_saved* saved, void* stream,
                                                 void* workspace, size_t workspace_bytes) {
  return graft::gpu::run(*args, saved, stream, workspace, workspace_bytes);
}

const char* graft_cuda_run_topk_attention_backward(const graft_topk_attention_backward* args, void* stream,
                                                   void* workspace, size_t workspace_bytes) {
  Problem p;
  Plan plan;
  const char* error = graft::gpu::resolve(args->forward, &args->saved, &p, &plan);
  if (error) return error;
  if (graft_cuda_topk_attention_backward_workspace(args) > static_cast<int64_t>(workspace_bytes))
    return "TopKAttention on CUDA: the workspace is too small";
  if (plan.path == graft::gpu::Path::kNothing) return nullptr;
  return graft::gpu::run_gradients(*args, p, static_cast<char*>(workspace), static_cast<cudaStream_t>(stream));
}
