// The kernels of TopKFeedForward on the CPU; capi.cc says which are built in.
#ifndef GRAFT_TOPK_FEED_FORWARD_KERNELS_H_
#define GRAFT_TOPK_FEED_FORWARD_KERNELS_H_

#include "problem.h"

namespace graft {

// NULL, or a sentence. Kernels fail for lack of memory only.
const char* topk_feed_forward_scalar(const FeedForward& p);
const char* topk_feed_forward_avx2(const FeedForward& p);
const char* topk_feed_forward_avx512(const FeedForward& p);
const char* topk_feed_forward_avx512bf16(const FeedForward& p);
const char* topk_feed_forward_neon(const FeedForward& p);

}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_KERNELS_H_
