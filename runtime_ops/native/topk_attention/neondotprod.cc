// TopKAttention for NEON with dot products: top-k only, scored in 8-bit integers first.
#include "../vector/neondotprod.h"
#include "plain8.h"
#include "run8.h"

namespace graft {

const char* topk_attention_neondotprod(const Problem& p) { return run_kernel8<Plain8<NeonDotprod>>(p); }

}  // namespace graft
