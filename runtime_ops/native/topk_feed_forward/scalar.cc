// TopKFeedForward for scalar.
#include "../vector/scalar.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* topk_feed_forward_scalar(const FeedForward& p) { return run_kernel<Scalar>(p); }

}  // namespace graft
