// The products of ExpandedAttention for scalar.
#include "../vector/scalar.h"
#include "kernels.h"
#include "multiply.h"

namespace graft {

const char* head_product_scalar(const HeadProduct& p) { return run_product<Scalar>(p); }

}  // namespace graft
