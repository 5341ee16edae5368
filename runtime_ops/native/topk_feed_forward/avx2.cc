// TopKFeedForward for avx2.
#include "../vector/avx2.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* topk_feed_forward_avx2(const FeedForward& p) { return run_kernel<Avx2>(p); }

}  // namespace graft
