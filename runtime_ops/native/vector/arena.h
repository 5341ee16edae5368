// Scratch memory of one task. Internal linkage: see scalar.h.
#ifndef GRAFT_VECTOR_ARENA_H_
#define GRAFT_VECTOR_ARENA_H_

#include "math.h"

namespace graft {
namespace {

// Scratch memory, cut into pieces of whole cache lines.
class Arena {
 public:
  explicit Arena(void* base) : at_(reinterpret_cast<uintptr_t>(base)) {}
  template <class T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(at_);
    at_ += static_cast<uintptr_t>(round_up(n * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
  size_t bytes() const { return at_; }  // taken so far, by an arena that began at NULL

 private:
  uintptr_t at_;
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_ARENA_H_
