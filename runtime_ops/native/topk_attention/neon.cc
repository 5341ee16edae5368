// TopKAttention for neon.
#include "kernel.h"
#include "kernels.h"
#include "simd_neon.h"

namespace graft {

const char* topk_attention_neon(const Problem& p) { return run_kernel<Neon>(p); }

}  // namespace graft
