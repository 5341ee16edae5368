// A node of TopKAttention in ONNX Runtime, read the same way for the CPU and for CUDA.
#ifndef GRAFT_TOPK_ATTENTION_ORT_H_
#define GRAFT_TOPK_ATTENTION_ORT_H_

#include "../ort_call.h"

namespace graft {

struct TopKAttentionNode {
  int64_t k, causal, window;
  Scale scale;
  TokensFirst first;
  float softcap;
  int32_t no_key, remainder;
};

// Its attributes.
TopKAttentionNode read_node(const OrtKernelInfo* info);

// Inputs, output and attributes of one run; the output is made here.
graft_topk_attention read_call(const TopKAttentionNode& node, OrtKernelContext* context);

}  // namespace graft

#endif  // GRAFT_TOPK_ATTENTION_ORT_H_
