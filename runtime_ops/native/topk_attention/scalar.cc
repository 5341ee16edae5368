// TopKAttention for scalar.
#include "kernel.h"
#include "kernels.h"
#include "../vector/scalar.h"

namespace graft {

const char* topk_attention_scalar(const Problem& p) { return run_kernel<Scalar>(p); }

}  // namespace graft
