// What a run of TopKAttention on the GPU consists of: which kernels, how much scratch memory.
#ifndef GRAFT_TOPK_ATTENTION_PLAN_CUH_
#define GRAFT_TOPK_ATTENTION_PLAN_CUH_

#include "../cuda_abi.h"
#include "backward.cuh"
#include "exact.cuh"
#include "pick.cuh"
#include "topk_tiles.cuh"

namespace graft::gpu {

enum class Path { kNothing, kExact, kTiles, kDecode };

struct Plan {
  Path path;
  int dtype;
  bool tensor;         // tensor cores, else fp32 arithmetic
  int dim;             // 64, 128 or 256: the widest of d and e, rounded up
  int splits;          // kExact: parts of the keys
  bool global_lists;   // kTiles: candidate lists in scratch memory
  int capacity, pitch; // kTiles: of one list
  int64_t blocks;      // kTiles
  int64_t bytes;       // of scratch memory
};

// An axis of length 1 gets stride 0.
View view(const graft_tensor& x);

// NULL, or a sentence. saved may be NULL.
const char* resolve(const graft_topk_attention& args, const graft_topk_attention_saved* saved, Problem* p, Plan* plan);

const char* run_exact(const Problem& p, const Plan& plan, char* scratch, cudaStream_t stream);
const char* run_tiles(const Problem& p, const Plan& plan, char* scratch, cudaStream_t stream);
const char* run_decode(const Problem& p, const Plan& plan, char* scratch, cudaStream_t stream);
const char* run_backward(const Problem& p, int dtype, const Gradients& gradients, cudaStream_t stream);
const char* run_narrow(const float* from, int pitch, const graft_tensor& to, int64_t rows, cudaStream_t stream);

// 16-row tiles per warp of the exact kernel: two share each load of keys, as long as registers last.
constexpr int exact_tall(int dim, int rows) { return dim == 64 && rows > 16 * kWarps ? 2 : 1; }

// Calls f(T{}) for the storage type of a dtype number.
template <class F>
const char* with_type(int dtype, const F& f) {
  if (dtype == GRAFT_F32) return f(float{});
  if (dtype == GRAFT_F16) return f(F16{});
  return f(BF16{});
}
template <class T, class F>
const char* with_plain_core(int dim, const F& f) {
  if (dim == 64) return f(PlainCore<T, 64>{});
  if (dim == 128) return f(PlainCore<T, 128>{});
  return f(PlainCore<T, 256>{});
}
template <class T, class F>
const char* with_tensor_core(int dim, const F& f) {
  if (dim == 64) return f(TensorCore<T, 64, 1>{});
  if (dim == 128) return f(TensorCore<T, 128, 1>{});
  return f(TensorCore<T, 256, 1>{});
}
template <class F>
const char* with_core(const Plan& plan, const F& f) {
  if (plan.tensor && plan.dtype == GRAFT_F16) return with_tensor_core<F16>(plan.dim, f);
  if (plan.tensor) return with_tensor_core<BF16>(plan.dim, f);
  return with_type(plan.dtype, [&](auto zero) { return with_plain_core<decltype(zero)>(plan.dim, f); });
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_PLAN_CUH_
