// Fibers, rendezvous and barriers of the emulated GPU. Blocks run one after the other. The environment
// variable GRAFT_EMULATOR_SEED shuffles the order in which warps run, to bring out missing barriers.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "../../../runtime_ops/native/topk_attention/device.cuh"

dim3_like threadIdx, blockIdx, blockDim, gridDim;

namespace graft::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  jmp_buf state;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  std::vector<Copy> copies;
  bool started = false, done = false;
  int parity = 0;
};

struct Warp {
  char slots[2][32][64];
  int arrived = 0;
  int64_t round = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<char> shared_bytes;
jmp_buf scheduler;
const std::function<void()>* kernel;
int threads, in_barrier, counted;
int64_t barrier_round, progress;

void yield() {
  if (_setjmp(fibers[threadIdx.x]->state) == 0) _longjmp(scheduler, 1);
}

void start() {
  (*kernel)();
  fibers[threadIdx.x]->done = true;
  _longjmp(scheduler, 1);
}

void resume(int i) {
  Fiber& fiber = *fibers[i];
  threadIdx.x = static_cast<unsigned>(i);
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  ++progress;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
  setcontext(&context);
}

void run_block(std::mt19937* order) {
  in_barrier = counted = 0;
  warps.assign(threads / 32, Warp{});
  for (int i = 0; i < threads; ++i) {
    if (i == static_cast<int>(fibers.size())) fibers.push_back(std::make_unique<Fiber>());
    fibers[i]->started = fibers[i]->done = false;
    fibers[i]->parity = 0;
  }
  std::vector<int> turn(warps.size());
  std::iota(turn.begin(), turn.end(), 0);
  for (int alive = threads; alive > 0;) {
    const int64_t before = progress;
    if (order) std::shuffle(turn.begin(), turn.end(), *order);
    for (const int w : turn)
      for (int i = 32 * w; i < 32 * w + 32; ++i) {
        if (fibers[i]->done) continue;
        resume(i);
        if (fibers[i]->done) --alive, ++progress;
      }
    if (progress != before) continue;
    fprintf(stderr, "emulator: block %u: %d threads wait at a barrier or for a lane that never comes\n", blockIdx.x,
            alive);
    abort();
  }
}

}  // namespace

const char (*exchange(const void* mine, size_t bytes))[64] {
  Warp& warp = warps[threadIdx.x / 32];
  Fiber& fiber = *fibers[threadIdx.x];
  char(*slots)[64] = warp.slots[fiber.parity];
  fiber.parity ^= 1;
  memcpy(slots[threadIdx.x % 32], mine, bytes);
  const int64_t round = warp.round;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.round;
    ++progress;
  }
  while (warp.round == round) yield();
  return slots;
}

void block_barrier() {
  const int64_t round = barrier_round;
  if (++in_barrier == threads) {
    in_barrier = 0;
    ++barrier_round;
    ++progress;
  }
  while (barrier_round == round) yield();
}

void add_copy(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    fprintf(stderr, "emulator: a 16-byte copy is not aligned\n");
    abort();
  }
  fibers[threadIdx.x]->copies.push_back(Copy{to, from});
}

void land_copies() {
  for (const Copy& copy : fibers[threadIdx.x]->copies) {
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
  }
  fibers[threadIdx.x]->copies.clear();
}

char* shared() { return shared_bytes.data() + (128 - reinterpret_cast<uintptr_t>(shared_bytes.data()) % 128); }

const char* run(const std::function<void()>& call, int64_t blocks, int block_threads, size_t bytes) {
  const char* const seed = getenv("GRAFT_EMULATOR_SEED");
  std::mt19937 order(seed ? static_cast<unsigned>(atoi(seed)) : 0);
  kernel = &call;
  threads = block_threads;
  blockDim.x = static_cast<unsigned>(threads);
  gridDim.x = static_cast<unsigned>(blocks);
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(i);
    shared_bytes.assign(bytes + 256, static_cast<char>(0xff));  // NaN, so that nothing unwritten goes unnoticed
    run_block(seed ? &order : nullptr);
  }
  return nullptr;
}

}  // namespace graft::emulator

int __syncthreads_count(int predicate) {
  using namespace graft::emulator;
  counted += predicate != 0;
  block_barrier();
  const int all = counted;
  block_barrier();
  if (threadIdx.x == 0) counted = 0;
  block_barrier();
  return all;
}

// A small GPU, so that few rows already reach every path. GRAFT_EMULATOR_SHARED sets its shared memory.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* bytes = getenv("GRAFT_EMULATOR_SHARED");
  if (attribute == cudaDevAttrMultiProcessorCount) *value = 4;
  else *value = bytes ? atoi(bytes) : 227 * 1024;
  return cudaSuccess;
}
