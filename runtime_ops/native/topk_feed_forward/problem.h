// What a TopKFeedForward kernel is given: arguments already checked and resolved by plan.cc. Included by files built for
// different instruction sets, so nothing here may be an inline function or a template that the linker could share.
#ifndef GRAFT_TOPK_FEED_FORWARD_PROBLEM_H_
#define GRAFT_TOPK_FEED_FORWARD_PROBLEM_H_

#include "../services.h"

namespace graft {

constexpr int64_t kFew = 8;  // up to so many tokens reading the weights takes longer than computing

enum class Activation { relu, gelu, gelu_tanh, gelu_quick, silu, relu_squared, mish };
enum class SelectBy { preactivation, magnitude, contribution };

// The weights whose products the selection or a relu goes by, in bf16: a few tokens then read half as much.
struct Near {
  graft_tensor w;     // [f m]
  float error, norm;  // no row has lost more, and none is longer
};

struct FeedForward {
  graft_topk_feed_forward args;
  int64_t n, m, f, e;
  int64_t top_k;  // 0 = every neuron
  int64_t chunk;  // tokens whose coefficients [chunk f] are in memory at one time, at most
  Activation activation;
  SelectBy select_by;
  bool gated;
  bool near_few, near_many;  // whether near.h pays, for a few tokens and for many
  const Near* near;          // NULL: there is none
  const graft_pool* pool;
};

}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_PROBLEM_H_
