// CombinerAttention for avx2.
#include "../vector/avx2.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* combiner_attention_avx2(const Combiner& p) { return run_kernel<Avx2>(p); }

}  // namespace graft
