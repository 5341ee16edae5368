// Services for kernels: tasks on the caller's pool, and scratch memory shared by the tasks of one run.
#include "services.h"

#include <atomic>
#include <mutex>
#include <new>
#include <vector>

namespace graft {

void run_tasks(const graft_pool* pool, int64_t total, graft_task task, void* state) {
  if (pool != nullptr && pool->run != nullptr && total > 1) {
    pool->run(pool->pool, total, task, state);
    return;
  }
  for (int64_t i = 0; i < total; ++i) task(state, i);
}

struct Workspaces::Free {
  std::mutex lock;
  std::vector<void*> idle, all;
  std::atomic<bool> failed{false};
};

namespace {
constexpr std::align_val_t kAlign{64};
}

Workspaces::Workspaces(size_t bytes) : free_(new (std::nothrow) Free), bytes_(bytes) {}

Workspaces::~Workspaces() {
  if (free_ == nullptr) return;
  for (void* block : free_->all) ::operator delete(block, kAlign);
  delete free_;
}

void* Workspaces::take() {
  if (free_ == nullptr) return nullptr;
  try {
    std::lock_guard<std::mutex> hold(free_->lock);
    if (free_->idle.empty()) {
      free_->all.reserve(free_->all.size() + 1);
      free_->idle.reserve(free_->all.size() + 1);  // so that give() cannot fail
      free_->idle.push_back(::operator new(bytes_, kAlign));
      free_->all.push_back(free_->idle.back());
    }
    void* block = free_->idle.back();
    free_->idle.pop_back();
    return block;
  } catch (const std::bad_alloc&) {
    free_->failed = true;
    return nullptr;
  }
}

void Workspaces::give(void* block) {
  std::lock_guard<std::mutex> hold(free_->lock);
  free_->idle.push_back(block);
}

const char* Workspaces::error() const {
  if (free_ != nullptr && !free_->failed) return nullptr;
  return "out of memory for scratch space";
}

}  // namespace graft
