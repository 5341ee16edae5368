// CombinerAttention for scalar.
#include "../vector/scalar.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* combiner_attention_scalar(const Combiner& p) { return run_kernel<Scalar>(p); }

}  // namespace graft
