// The plain C interface of graft's kernel libraries. Kernel files, the ONNX Runtime glue and ctypes all
// speak these structs; nothing here depends on Python, torch or ONNX Runtime.
#ifndef GRAFT_ABI_H_
#define GRAFT_ABI_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GRAFT_EXPORT __declspec(dllexport)
#else
#define GRAFT_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever a struct below changes; Python refuses a library that answers another number.
#define GRAFT_ABI_VERSION 6

enum { GRAFT_MAX_RANK = 5 };

// Element types, numbered as in ONNX TensorProto.DataType.
enum graft_dtype { GRAFT_F32 = 1, GRAFT_I64 = 7, GRAFT_BOOL = 9, GRAFT_F16 = 10, GRAFT_BF16 = 16 };

// A strided view. data == NULL means that an optional tensor is absent. Strides count elements and are 0
// along a broadcast axis; the last axis of q, k, v and out always has stride 1.
typedef struct graft_tensor {
  void* data;
  int32_t dtype;
  int32_t rank;
  int64_t shape[GRAFT_MAX_RANK];
  int64_t strides[GRAFT_MAX_RANK];
} graft_tensor;

// How a kernel runs independent tasks: run(pool, total, task, state) calls task(state, i) once for every
// i in [0, total), on any thread, and returns when all have ended. `threads` is a hint for splitting work.
// `instance` gives a distinct number in [0, threads] to tasks running at the same time only where the
// caller can provide it; kernels that need scratch allocate it per task instead.
typedef void (*graft_task)(void* state, int64_t index);
typedef struct graft_pool {
  void* pool;
  void (*run)(void* pool, int64_t total, graft_task task, void* state);
  int32_t threads;
} graft_pool;

// What a query gets that sees no key: 0, or the mean of all values.
enum graft_no_key { GRAFT_NO_KEY_ZERO = 0, GRAFT_NO_KEY_MEAN = 1 };

// What becomes of the keys that were not chosen: nothing, or their mass in softmax over all visible keys goes to a
// mean, over the row to that of their values; in every block of 64 keys, but for the one in which the query stands, to
// that of the block's visible values, the chosen ones among them.
enum graft_remainder { GRAFT_REMAINDER_NONE = 0, GRAFT_REMAINDER_MEAN = 1, GRAFT_REMAINDER_BLOCKS = 2 };

// Arguments of ai.graft::TopKAttention. Axes by letter: q [b h s d], k [b g t d], v [b g t e],
// bias broadcast to [b h s t] (rank 4, stride 0 where broadcast), key_mask [b t] (1 = visible),
// past_length int64 [b] (stride 0 when one value serves all), out [b h s e]. The batch axis of q, k and v
// may be broadcast (stride 0). h % g == 0; query head i reads key head i / (h / g).
typedef struct graft_topk_attention {
  graft_tensor q, k, v, bias, key_mask, past_length, out;
  int64_t top_k;   // keys kept per row; 0 = all
  float scale;     // multiplies q.k
  float softcap;   // 0 = none; else score = softcap * tanh(score / softcap), before bias
  int32_t causal;  // 1: key j is visible to query i only if j <= i + past_length
  int32_t no_key;  // a graft_no_key: what a row gets that sees no key
  int64_t window;  // > 0: key j is visible to query i only if |j - (i + past_length)| < window
  int32_t remainder;  // a graft_remainder; without a choice (top_k = 0 or all keys) it changes nothing
} graft_topk_attention;

// Arguments of ai.graft::SegmentAttention. Axes by letter: q [b h t d], k [b g t d], v [b g t e], segments int64 [b t],
// bias broadcast to [b h t t], key_mask [b t] (1 = visible), out [b h t e]. Tokens see those of equal segments.
typedef struct graft_segment_attention {
  graft_tensor q, k, v, segments, bias, key_mask, out;
  float scale;    // multiplies q.k
  float softcap;  // 0 = none
} graft_segment_attention;

// Arguments of ai.graft::TopKFeedForward. Tokens are flattened: x [n m], out [n e]; w_in and w_gate [f m], w_out [f e], one
// row per neuron; b_in and b_gate [f], b_out [e]. w_gate, b_in, b_gate and b_out may be absent, b_gate must be without
// w_gate. All have the element type of x, and stride 1 along the last axis.
typedef struct graft_topk_feed_forward {
  graft_tensor x, w_in, w_out, b_in, b_out, w_gate, b_gate, out;
  int64_t top_k;           // neurons that take part for each token; 0 = all
  int64_t chunk;           // tokens worked on at a time; 0 = the library's choice
  const char* activation;  // "relu", "gelu", "gelu_tanh", "gelu_quick", "silu", "relu_squared", "mish"
  const char* select_by;   // "preactivation", "magnitude", "contribution"
} graft_topk_feed_forward;

// Arguments of ai.graft::CombinerAttention. Axes by letter: q [b h t d], k [b g t d], v [b g t e], key_mask [b t]
// (1 = visible), out [b h t e]. Batch axes may be broadcast. h % g == 0; query head i reads key head i / (h / g).
typedef struct graft_combiner_attention {
  graft_tensor q, k, v, key_mask, out;
  const char* variant;       // "fixed", "axial-vertical", "axial-horizontal", "axial-row-major", "logsparse", "mixture"
  const char* pooling;       // "max", "mean"
  const char* region_logit;  // "paper", "counted"
  int64_t span;              // tokens of a row of the grid; 0 = about the square root of 2t or t
  float scale;               // multiplies q.k
  int32_t causal;            // 1: key j is visible to query i only if j <= i
  int32_t no_key;            // a graft_no_key: what a query gets that sees no key
} graft_combiner_attention;

// Arguments of ai.graft::ExpandedAttention. Axes by letter: q [n h s d], memory [b t m], w_k [g d m], w_v [g e m],
// b_v [g e], bias broadcast to [n h s t], or without beam_index to [b h s t]: shared by beams, key_mask [b t]
// (1 = visible), past_length int64 [b], beam_index int64 [n], out [n h s e]. Row i of q reads row beam_index[i] of the
// memory; without beam_index row i / (n / b). h % g == 0; query head i is expanded by head i / (h / g) of the weights.
typedef struct graft_expanded_attention {
  graft_tensor q, memory, w_k, w_v, b_v, bias, key_mask, past_length, beam_index, out;
  int64_t top_k;   // keys kept per row; 0 = all
  float scale;     // multiplies q.k
  float softcap;   // 0 = none
  int32_t causal;  // 1: key j is visible to query i only if j <= i + past_length
  int32_t no_key;  // a graft_no_key: what a row gets that sees no key
  int64_t window;  // > 0: key j is visible to query i only if |j - (i + past_length)| < window
} graft_expanded_attention;

// Every function that can fail returns NULL, or a sentence that lives as long as the library.
GRAFT_EXPORT int32_t graft_abi_version(void);
GRAFT_EXPORT const char* graft_version(void);  // the distribution's version, e.g. "0.1.0"

// JSON array of kernel rows: {"op","name","isa","dtypes":[...],"limits":{...},"rank","usable":bool,"reason"}.
// limits says what the kernel accepts; below a min_... it runs only if it is asked for by name.
GRAFT_EXPORT const char* graft_list_kernels(void);

// isa: NULL or "" = the best usable row ("scalar", "avx2", "avx512", ... force one; unusable: an error).
// The environment variable GRAFT_ISA caps the choice when isa is NULL.
// pool: NULL = run on the calling thread.
GRAFT_EXPORT const char* graft_run_topk_attention(const graft_topk_attention* args, const char* isa,
                                                  const graft_pool* pool);

GRAFT_EXPORT const char* graft_run_segment_attention(const graft_segment_attention* args, const char* isa,
                                                     const graft_pool* pool);

GRAFT_EXPORT const char* graft_run_topk_feed_forward(const graft_topk_feed_forward* args, const char* isa,
                                                     const graft_pool* pool);

GRAFT_EXPORT const char* graft_run_combiner_attention(const graft_combiner_attention* args, const char* isa,
                                                      const graft_pool* pool);

GRAFT_EXPORT const char* graft_run_expanded_attention(const graft_expanded_attention* args, const char* isa,
                                                      const graft_pool* pool);

// The name of the row that graft_run_... would use, or NULL with *reason set.
GRAFT_EXPORT const char* graft_pick_topk_attention(const graft_topk_attention* args, const char* isa,
                                                   const char** reason);
GRAFT_EXPORT const char* graft_pick_segment_attention(const graft_segment_attention* args, const char* isa,
                                                      const char** reason);
GRAFT_EXPORT const char* graft_pick_topk_feed_forward(const graft_topk_feed_forward* args, const char* isa,
                                                      const char** reason);
GRAFT_EXPORT const char* graft_pick_combiner_attention(const graft_combiner_attention* args, const char* isa,
                                                       const char** reason);
GRAFT_EXPORT const char* graft_pick_expanded_attention(const graft_expanded_attention* args, const char* isa,
                                                       const char** reason);

// What the 8-bit kernels have proved in this process: blocks of rows scored in 8 bits, those among them that needed a
// second, wider try, and those that no bound could prove and that were scored in fp32. Results are the same either way.
GRAFT_EXPORT void graft_topk_attention_proofs(int64_t* blocks, int64_t* widened, int64_t* in_fp32);

#ifdef __cplusplus
}
#endif

#endif  // GRAFT_ABI_H_
