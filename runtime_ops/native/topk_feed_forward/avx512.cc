// TopKFeedForward for avx512.
#include "../vector/avx512.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* topk_feed_forward_avx512(const FeedForward& p) { return run_kernel<Avx512>(p); }

}  // namespace graft
