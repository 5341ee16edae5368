// TopKFeedForward for avx512bf16.
#include "../vector/avx512bf16.h"
#include "kernel.h"
#include "kernels.h"

namespace graft {

const char* topk_feed_forward_avx512bf16(const FeedForward& p) { return run_kernel<Avx512Bf16>(p); }

}  // namespace graft
