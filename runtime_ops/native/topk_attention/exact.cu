#include "plan.cuh"

namespace graft::gpu {
namespace {

template <class Core>
const char* run_core(const Problem& p, const Parts& parts, cudaStream_t stream) {
  const int64_t tiles = (p.rows + Core::kRows - 1) / Core::kRows;
  return launch(exact_kernel<Core>, tiles * p.b * p.g * parts.splits, kThreads, exact_shared_bytes<Core>(), stream, p,
                parts);
}

const char* run_parts(const Problem& p, const Plan& plan, const Parts& parts, cudaStream_t stream) {
  if (plan.tensor && exact_tall(plan.dim, p.rows) == 2) {
    if (plan.dtype == GRAFT_F16) return run_core<TensorCore<F16, 64, 2>>(p, parts, stream);
    return run_core<TensorCore<BF16, 64, 2>>(p, parts, stream);
  }
  return with_core(plan, [&](auto core) { return run_core<decltype(core)>(p, parts, stream); });
}

}  // namespace

const char* run_exact(const Problem& p, const Plan& plan, char* scratch, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.b) * p.g * p.rows, all = rows * plan.splits;
  float* const out = reinterpret_cast<float*>(scratch);
  const Parts parts{out, out + all * p.e, out + all * p.e + all, plan.splits};
  const char* error = run_parts(p, plan, parts, stream);
  if (error || plan.splits == 1) return error;
  return with_type(plan.dtype, [&](auto zero) {
    return launch(merge_kernel<decltype(zero)>, (rows + kWarps - 1) / kWarps, kThreads, 0, stream, p, parts);
  });
}

}  // namespace graft::gpu
