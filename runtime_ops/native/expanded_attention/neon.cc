// The products of ExpandedAttention for neon.
#include "../vector/neon.h"
#include "kernels.h"
#include "multiply.h"

namespace graft {

const char* head_product_neon(const HeadProduct& p) { return run_product<Neon>(p); }

}  // namespace graft
