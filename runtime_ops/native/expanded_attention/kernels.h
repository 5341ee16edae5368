// The products of ExpandedAttention on the CPU, one for each instruction set; capi.cc says which are built in.
#ifndef GRAFT_EXPANDED_KERNELS_H_
#define GRAFT_EXPANDED_KERNELS_H_

#include "problem.h"

namespace graft {

// NULL, or a sentence. They fail for lack of memory only.
const char* head_product_scalar(const HeadProduct& p);
const char* head_product_avx2(const HeadProduct& p);
const char* head_product_avx512(const HeadProduct& p);
const char* head_product_neon(const HeadProduct& p);

}  // namespace graft

#endif  // GRAFT_EXPANDED_KERNELS_H_
