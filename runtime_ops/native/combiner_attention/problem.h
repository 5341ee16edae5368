// What a CombinerAttention kernel is given: arguments already checked and resolved by plan.cc. Included by files built
// for different instruction sets, so nothing here may be an inline function or a template that the linker could share.
#ifndef GRAFT_COMBINER_ATTENTION_PROBLEM_H_
#define GRAFT_COMBINER_ATTENTION_PROBLEM_H_

#include "../services.h"

namespace graft {

enum class Variant { fixed, vertical, horizontal, row_major, logsparse, mixture };

// Tokens in n rows of m columns, row after row.
struct Shape2 {
  int64_t n, m;
};

struct Combiner {
  graft_combiner_attention args;
  int64_t b, h, g, t, d, e;
  Variant variant;
  bool mean;     // else regions are pooled by their maximum
  bool counted;  // a region's logit grows with the logarithm of its number of keys
  Shape2 rows;   // the grid of `fixed`
  Shape2 grid;   // the grid of the axial variants
  const graft_pool* pool;
};

}  // namespace graft

#endif  // GRAFT_COMBINER_ATTENTION_PROBLEM_H_
