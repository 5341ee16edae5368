// CombinerAttention for avx512.
#include "../vector/avx512.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* combiner_attention_avx512(const Combiner& p) { return run_kernel<Avx512>(p); }

}  // namespace graft
