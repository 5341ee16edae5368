// TopKAttention for neon.
#include "kernel.h"
#include "kernels.h"
#include "../vector/neon.h"

namespace graft {

const char* topk_attention_neon(const Problem& p) { return run_kernel<Neon>(p); }

}  // namespace graft
