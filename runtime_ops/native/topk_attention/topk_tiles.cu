#include "plan.cuh"

namespace graft::gpu {

const char* run_tiles(const Problem& p, const Plan& plan, char* scratch, cudaStream_t stream) {
  return with_core(plan, [&](auto core) {
    using Core = decltype(core);
    const int64_t works = static_cast<int64_t>((p.rows + Core::kRows - 1) / Core::kRows) * p.b * p.g;
    const Lists lists{plan.global_lists ? scratch : nullptr, plan.capacity, plan.pitch};
    const size_t tiles = topk_tile_bytes<Core>(), in_block = static_cast<size_t>(Core::kRows) * plan.pitch * 8;
    if (plan.global_lists) return launch(topk_kernel<Core, false>, plan.blocks, kThreads, tiles, stream, p, lists, works);
    return launch(topk_kernel<Core, true>, plan.blocks, kThreads, tiles + in_block, stream, p, lists, works);
  });
}

}  // namespace graft::gpu
