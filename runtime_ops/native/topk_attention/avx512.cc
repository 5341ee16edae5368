// TopKAttention for avx512.
#include "kernel.h"
#include "kernels.h"
#include "../vector/avx512.h"

namespace graft {

const char* topk_attention_avx512(const Problem& p) { return run_kernel<Avx512>(p); }

}  // namespace graft
