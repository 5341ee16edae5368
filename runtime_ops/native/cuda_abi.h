// The plain C interface of libruntime_ops_cuda.so: abi.h with a stream. Every tensor lies on the current
// device; calls only enqueue work on the stream, they never allocate and never synchronise.
#ifndef GRAFT_CUDA_ABI_H_
#define GRAFT_CUDA_ABI_H_

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever a struct or a function below changes, apart from abi.h's own number.
#define GRAFT_CUDA_ABI_VERSION 3

// What training keeps of a forward pass, contiguous [b h s top_k]: the kept scores (scaled, capped, biased)
// and their keys. Rows that see fewer than top_k keys are padded with -inf and -1.
typedef struct graft_topk_attention_saved {
  float* scores;
  int32_t* keys;
} graft_topk_attention_saved;

// Gradients of one forward pass with top_k > 0. q, k, v, out, top_k, scale and softcap of `forward` are read
// (bias and masks are already in the saved scores). d_out, d_q, d_k and d_v have q's element type; d_k and d_v
// are contiguous and as wide as the batch of the result.
typedef struct graft_topk_attention_backward {
  graft_topk_attention forward;
  graft_topk_attention_saved saved;
  graft_tensor d_out, d_q, d_k, d_v;
} graft_topk_attention_backward;

GRAFT_EXPORT int32_t graft_cuda_abi_version(void);

// The calling thread's current device; NULL, or what CUDA says.
GRAFT_EXPORT const char* graft_cuda_current_device(int32_t* device);

// JSON array of kernel rows, as graft_list_kernels.
GRAFT_EXPORT const char* graft_cuda_list_kernels(void);

// Bytes of scratch memory (256-byte aligned) that a run needs; -1 for arguments that it would refuse.
GRAFT_EXPORT int64_t graft_cuda_topk_attention_workspace(const graft_topk_attention* args);
GRAFT_EXPORT int64_t graft_cuda_topk_attention_backward_workspace(const graft_topk_attention_backward* args);

// NULL, or a sentence. stream is a cudaStream_t. The same inputs give the same bits.
GRAFT_EXPORT const char* graft_cuda_run_topk_attention(const graft_topk_attention* args, void* stream,
                                                       void* workspace, size_t workspace_bytes);

// The same, keeping what the backward pass needs; top_k must be between 1 and t.
GRAFT_EXPORT const char* graft_cuda_run_topk_attention_saving(const graft_topk_attention* args,
                                                              const graft_topk_attention_saved* saved, void* stream,
                                                              void* workspace, size_t workspace_bytes);

// d_k and d_v are summed by fp32 atomics: their last bits can differ from run to run. d_q cannot.
GRAFT_EXPORT const char* graft_cuda_run_topk_attention_backward(const graft_topk_attention_backward* args,
                                                                void* stream, void* workspace,
                                                                size_t workspace_bytes);

#ifdef __cplusplus
}
#endif

#endif  // GRAFT_CUDA_ABI_H_
