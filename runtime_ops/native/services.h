// The few services (tasks, scratch memory) that kernels need. Included by files built for different instruction sets,
// so nothing here may be an inline function or a template that the linker could share between them.
#ifndef GRAFT_SERVICES_H_
#define GRAFT_SERVICES_H_

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

namespace graft {

void run_tasks(const graft_pool* pool, int64_t total, graft_task task, void* state);

// Equal blocks of 64-byte aligned memory, as many as tasks run at one time; theirs until the end of the run, when some of
// it is kept for later ones.
class Workspaces {
 public:
  explicit Workspaces(size_t bytes);
  ~Workspaces();
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;
  void* take();  // NULL when there is no memory: the task returns, error() tells
  void give(void* block);
  const char* error() const;

 private:
  struct Free;
  Free* free_;
  size_t bytes_;
};

}  // namespace graft

#endif  // GRAFT_SERVICES_H_
