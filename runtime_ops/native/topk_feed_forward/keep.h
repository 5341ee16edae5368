// What an operator whose weights never change keeps of them.
#ifndef GRAFT_TOPK_FEED_FORWARD_KEEP_H_
#define GRAFT_TOPK_FEED_FORWARD_KEEP_H_

#include <mutex>
#include <vector>

#include "problem.h"

namespace graft {

// Made when a call first wants it, which only calls with a few tokens do: it takes half the memory of the weights.
class KeptNear {
 public:
  const Near* of(const graft_tensor& w, const graft_pool* pool);

 private:
  void make(const graft_tensor& w, const graft_pool* pool);

  std::once_flag once_;
  std::vector<uint16_t> rows_;
  Near near_{};
};

}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_KEEP_H_
