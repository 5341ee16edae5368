// TopKAttention for avx2.
#include "kernel.h"
#include "kernels.h"
#include "../vector/avx2.h"

namespace graft {

const char* topk_attention_avx2(const Problem& p) { return run_kernel<Avx2>(p); }

}  // namespace graft
