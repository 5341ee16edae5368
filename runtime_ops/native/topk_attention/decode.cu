#include "plan.cuh"

namespace graft::gpu {
namespace {

int64_t score_blocks(const Problem& p, int strip) {
  const int64_t keys = score_block_keys(strip);
  return (p.t + keys - 1) / keys * p.b * p.g;
}

template <class T, int kDim>
const char* run_direct(const Problem& p, const Scores& scores, cudaStream_t stream) {
  return launch(direct_scores_kernel<T, kDim>, score_blocks(p, DirectScores<T, kDim>::kStrip), kScoreThreads, 0,
                stream, p, scores);
}

template <class T>
const char* run_direct(const Problem& p, int dim, const Scores& scores, cudaStream_t stream) {
  if (dim == 64) return run_direct<T, 64>(p, scores, stream);
  if (dim == 128) return run_direct<T, 128>(p, scores, stream);
  return run_direct<T, 256>(p, scores, stream);
}

const char* run_scores(const Problem& p, const Plan& plan, const Scores& scores, cudaStream_t stream) {
  if (plan.tensor && plan.dtype == GRAFT_F16) return run_direct<F16>(p, plan.dim, scores, stream);
  if (plan.tensor) return run_direct<BF16>(p, plan.dim, scores, stream);
  return with_type(plan.dtype, [&](auto zero) {
    return launch(plain_scores_kernel<decltype(zero)>, score_blocks(p, kPlainStrip), kScoreThreads,
                  static_cast<size_t>(p.rows) * kMaxWidth * 4, stream, p, scores);
  });
}

}  // namespace

const char* run_decode(const Problem& p, const Plan& plan, char* scratch, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.b) * p.g * p.rows;
  const Scores scores{reinterpret_cast<float*>(scratch), plan.pitch};
  float* const spill = scores.data + rows * plan.pitch;
  const char* error = run_scores(p, plan, scores, stream);
  if (error) return error;
  const Candidates kept{spill, reinterpret_cast<int*>(spill + rows * p.top_k)};
  return with_type(plan.dtype, [&](auto zero) {
    return launch(pick_kernel<decltype(zero)>, rows, kPickThreads, sizeof(PickMemory), stream, p, scores, kept);
  });
}

}  // namespace graft::gpu
