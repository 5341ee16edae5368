// The kernels of TopKAttention on the CPU; rows.cc says which are built in and what each accepts.
#ifndef GRAFT_KERNELS_H_
#define GRAFT_KERNELS_H_

#include "problem.h"

namespace graft {

const char* topk_attention_scalar(const Problem& p);
const char* topk_attention_avx2(const Problem& p);
const char* topk_attention_avx512(const Problem& p);
const char* topk_attention_avx512vnni(const Problem& p);

}  // namespace graft

#endif  // GRAFT_KERNELS_H_
