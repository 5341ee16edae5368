// TopKAttention for AVX2 with AVX-VNNI: top-k only, scored in 8-bit integers first.
#include "../vector/avxvnni.h"
#include "plain8.h"
#include "run8.h"

namespace graft {

const char* topk_attention_avxvnni(const Problem& p) { return run_kernel8<Plain8<AvxVnni>>(p); }

}  // namespace graft
