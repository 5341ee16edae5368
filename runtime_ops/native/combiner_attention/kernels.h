// The kernels of CombinerAttention on the CPU; capi.cc says which are built in.
#ifndef GRAFT_COMBINER_ATTENTION_KERNELS_H_
#define GRAFT_COMBINER_ATTENTION_KERNELS_H_

#include "problem.h"

namespace graft {

// NULL, or a sentence. Kernels fail for lack of memory only.
const char* combiner_attention_scalar(const Combiner& p);
const char* combiner_attention_avx2(const Combiner& p);
const char* combiner_attention_avx512(const Combiner& p);

}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_KERNELS_H_
