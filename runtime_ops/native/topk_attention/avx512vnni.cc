#include "kernel.h"
#include "kernels.h"
#include "simd_avx512.h"

namespace graft {

const char* topk_attention_avx512vnni(const Problem& p) { return run_kernel<Avx512>(p); }

}  // namespace graft
