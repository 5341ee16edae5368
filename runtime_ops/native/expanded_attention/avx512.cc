// The products of ExpandedAttention for avx512.
#include "../vector/avx512.h"
#include "kernels.h"
#include "multiply.h"

namespace graft {

const char* head_product_avx512(const HeadProduct& p) { return run_product<Avx512>(p); }

}  // namespace graft
