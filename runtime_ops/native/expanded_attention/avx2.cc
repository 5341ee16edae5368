// The products of ExpandedAttention for avx2.
#include "../vector/avx2.h"
#include "kernels.h"
#include "multiply.h"

namespace graft {

const char* head_product_avx2(const HeadProduct& p) { return run_product<Avx2>(p); }

}  // namespace graft
