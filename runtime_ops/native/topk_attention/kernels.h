// The kernels of TopKAttention on the CPU; capi.cc says which are built in and what each accepts.
#ifndef GRAFT_KERNELS_H_
#define GRAFT_KERNELS_H_

#include "problem.h"

namespace graft {

// Blocks of rows that this process scored in 8 bits; those that needed a second, wider try; and those done in fp32 in
// the end. Counted by several threads at once.
struct Proofs {
  int64_t blocks, widened, in_fp32;
};
extern Proofs g_proofs;

const char* topk_attention_scalar(const Problem& p);
const char* topk_attention_avx2(const Problem& p);
const char* topk_attention_avxvnni(const Problem& p);
const char* topk_attention_avx512(const Problem& p);
const char* topk_attention_avx512vnni(const Problem& p);
const char* topk_attention_neon(const Problem& p);
const char* topk_attention_neondotprod(const Problem& p);

}  // namespace graft

#endif  // GRAFT_KERNELS_H_
