// TopKFeedForward for neon.
#include "../vector/neon.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* topk_feed_forward_neon(const FeedForward& p) { return run_kernel<Neon>(p); }

}  // namespace graft
