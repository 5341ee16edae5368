#include "plan.cuh"

namespace graft::gpu {

const char* run_backward(const Problem& p, int dtype, const Gradients& gradients, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.b) * p.h * p.s;
  return with_type(dtype, [&](auto zero) {
    return launch(backward_kernel<decltype(zero)>, (rows + kBackwardWarps - 1) / kBackwardWarps, kBackwardThreads, 0,
                  stream, p, gradients);
  });
}

const char* run_narrow(const float* from, int pitch, const graft_tensor& to, int64_t rows, cudaStream_t stream) {
  const int width = static_cast<int>(to.shape[3]);
  const int64_t total = rows * width, blocks = (total + 255) / 256;
  return with_type(to.dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(narrow_kernel<T>, blocks < 65536 ? blocks : 65536, 256, 0, stream, from, pitch,
                  static_cast<T*>(to.data), width, total);
  });
}

}  // namespace graft::gpu
