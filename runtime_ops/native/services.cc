// Services for kernels: tasks on the caller's pool, and scratch memory shared by the tasks of one run.
#include "services.h"

#include <atomic>
#include <cstddef>
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

namespace {

struct Piece {
  void* data;
  size_t bytes;
};

constexpr std::align_val_t kAlign{64};

void release(const Piece& piece) { ::operator delete(piece.data, kAlign); }

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kKept = 0;  // writes behind the end of a block that is too large would go unseen
#else
constexpr size_t kKept = size_t{32} << 20;
#endif

// Memory of earlier runs, up to kKept bytes of it, the latest last: a system clears each page that it gives away, which
// took a quarter of some runs.
class Store {
 public:
  ~Store() {
    for (const Piece& piece : kept_) release(piece);
  }

  // At least so many bytes, and not more than twice as many; or none.
  Piece take(size_t bytes) {
    std::lock_guard<std::mutex> hold(lock_);
    for (size_t i = kept_.size(); i-- > 0;) {
      const Piece piece = kept_[i];
      if (piece.bytes < bytes || piece.bytes / 2 > bytes) continue;
      kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
      total_ -= piece.bytes;
      return piece;
    }
    return {nullptr, 0};
  }

  void give(const Piece& piece) {
    if (piece.bytes > kKept) return release(piece);
    std::lock_guard<std::mutex> hold(lock_);
    while (total_ + piece.bytes > kKept) drop_oldest();
    try {
      kept_.push_back(piece);
      total_ += piece.bytes;
    } catch (const std::bad_alloc&) {
      release(piece);
    }
  }

 private:
  void drop_oldest() {
    release(kept_.front());
    total_ -= kept_.front().bytes;
    kept_.erase(kept_.begin());
  }

  std::mutex lock_;
  std::vector<Piece> kept_;
  size_t total_ = 0;
};

Store& store() {
  static Store one;
  return one;
}

Piece take_piece(size_t bytes) {
  const Piece piece = store().take(bytes);
  return piece.data != nullptr ? piece : Piece{::operator new(bytes, kAlign), bytes};
}

}  // namespace

struct Workspaces::Free {
  std::mutex lock;
  std::vector<void*> idle;
  std::vector<Piece> all;
  std::atomic<bool> failed{false};
};

Workspaces::Workspaces(size_t bytes) : free_(new (std::nothrow) Free), bytes_(bytes) {}

Workspaces::~Workspaces() {
  if (free_ == nullptr) return;
  for (const Piece& piece : free_->all) store().give(piece);
  delete free_;
}

void* Workspaces::take() {
  if (free_ == nullptr) return nullptr;
  try {
    std::lock_guard<std::mutex> hold(free_->lock);
    if (free_->idle.empty()) {
      free_->all.reserve(free_->all.size() + 1);
      free_->idle.reserve(free_->all.size() + 1);  // so that give() cannot fail
      free_->all.push_back(take_piece(bytes_));
      free_->idle.push_back(free_->all.back().data);
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
