// From the C structs to a problem and a plan.
#include <initializer_list>

#include "plan.cuh"

namespace graft::gpu {
namespace {

constexpr int64_t kListBudget = int64_t{512} << 20;  // bytes of scratch memory for candidate lists
constexpr int64_t kMostKeys = 1 << 30, kMostDecodeKeys = 1 << 24;

struct Device {
  int multiprocessors = 1, shared_per_block = 0, shared_bytes = 0;
};

const char* current_device(Device* device) {
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, id);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, id);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

bool is_float(int32_t dtype) { return dtype == GRAFT_F32 || dtype == GRAFT_F16 || dtype == GRAFT_BF16; }

bool broadcasts(const graft_tensor& x, std::initializer_list<int64_t> shape) {
  int i = 0;
  for (const int64_t length : shape) {
    if (x.shape[i] != 1 && x.shape[i] != length) return false;
    ++i;
  }
  return x.rank == i;
}

const char* check_masks(const graft_topk_attention& a) {
  const int64_t b = a.out.shape[0], t = a.k.shape[2];
  if (a.bias.data && (!is_float(a.bias.dtype) || !broadcasts(a.bias, {b, a.out.shape[1], a.out.shape[2], t})))
    return "TopKAttention on CUDA: bias must be a float tensor that broadcasts to [b h s t]";
  if (a.key_mask.data && (a.key_mask.dtype != GRAFT_BOOL || !broadcasts(a.key_mask, {b, t})))
    return "TopKAttention on CUDA: key_mask must be a bool tensor [b t]";
  if (a.past_length.data && (a.past_length.dtype != GRAFT_I64 || !broadcasts(a.past_length, {b})))
    return "TopKAttention on CUDA: past_length must be int64, [b] or one value";
  return nullptr;
}

const char* check(const graft_topk_attention& a) {
  for (const graft_tensor* x : {&a.q, &a.k, &a.v, &a.out}) {
    if (x->rank != 4) return "TopKAttention on CUDA: q, k, v and the result must have rank 4";
    if (x->dtype != a.q.dtype) return "TopKAttention on CUDA: q, k, v and the result must have one element type";
    const bool empty = x->shape[0] * x->shape[1] * x->shape[2] == 0;  // whose strides may be anything
    if (x->shape[3] > 1 && x->strides[3] != 1 && !empty) return "TopKAttention on CUDA: the last axis must have stride 1";
  }
  if (!is_float(a.q.dtype)) return "TopKAttention on CUDA takes float, float16 and bfloat16";
  if (a.q.shape[3] != a.k.shape[3] || a.v.shape[3] != a.out.shape[3] || a.k.shape[2] != a.v.shape[2] ||
      a.q.shape[1] != a.out.shape[1] || a.q.shape[2] != a.out.shape[2])
    return "TopKAttention on CUDA: the widths or lengths of q, k, v and the result do not fit together";
  if (a.q.shape[3] > kMaxWidth || a.v.shape[3] > kMaxWidth)
    return "TopKAttention on CUDA: heads may be up to 256 wide";
  for (const graft_tensor* x : {&a.q, &a.k, &a.v})
    if (x->shape[0] != 1 && x->shape[0] != a.out.shape[0])
      return "TopKAttention on CUDA: the batches of q, k, v and the result do not fit together";
  if (a.k.shape[1] != a.v.shape[1] || a.k.shape[1] < 1 || a.q.shape[1] % a.k.shape[1] != 0)
    return "TopKAttention on CUDA: the number of query heads must be a multiple of the number of key heads";
  if (a.k.shape[2] > kMostKeys || a.q.shape[1] * a.q.shape[2] > kMostKeys)
    return "TopKAttention on CUDA: s and t may be up to 2^30";
  if (a.top_k < 0) return "TopKAttention on CUDA: k must be 0 (all keys) or more";
  if (a.window < 0) return "TopKAttention on CUDA: window must be 0 (none) or more";
  if (a.no_key != GRAFT_NO_KEY_ZERO && a.no_key != GRAFT_NO_KEY_MEAN)
    return "TopKAttention on CUDA: no_key must be 0 (zero) or 1 (mean)";
  if (a.remainder != GRAFT_REMAINDER_NONE && a.top_k > 0 && a.top_k < a.k.shape[2])
    return "TopKAttention on CUDA: remainder must be none; mean and blocks run on the CPU";
  return check_masks(a);
}

// An axis of length 1 serves every index.
int64_t stride(const graft_tensor& x, int axis) { return x.shape[axis] == 1 ? 0 : x.strides[axis]; }

Problem problem_of(const graft_topk_attention& a) {
  Problem p = {};
  p.q = view(a.q), p.k = view(a.k), p.v = view(a.v), p.out = view(a.out);
  if (a.bias.data) p.bias = view(a.bias);
  p.bias_dtype = a.bias.dtype;
  p.key_mask = static_cast<const uint8_t*>(a.key_mask.data);
  p.mask_stride[0] = stride(a.key_mask, 0), p.mask_stride[1] = stride(a.key_mask, 1);
  p.past = static_cast<const int64_t*>(a.past_length.data);
  p.past_stride = stride(a.past_length, 0);
  p.b = static_cast<int>(a.out.shape[0]), p.h = static_cast<int>(a.out.shape[1]);
  p.s = static_cast<int>(a.out.shape[2]), p.e = static_cast<int>(a.out.shape[3]);
  p.g = static_cast<int>(a.k.shape[1]), p.t = static_cast<int>(a.k.shape[2]), p.d = static_cast<int>(a.q.shape[3]);
  p.group = p.h / p.g;
  p.rows = p.group * p.s;
  p.top_k = a.top_k >= p.t ? 0 : static_cast<int>(a.top_k);
  p.causal = a.causal, p.scale = a.scale, p.softcap = a.softcap;
  p.mean = a.no_key == GRAFT_NO_KEY_MEAN, p.window = a.window < kFar ? a.window : kFar;
  return p;
}

bool fits_tensor_cores(const graft_topk_attention& a) {
  if (a.q.dtype == GRAFT_F32 || a.q.shape[3] % 8 != 0 || a.v.shape[3] % 8 != 0) return false;
  for (const graft_tensor* x : {&a.q, &a.k, &a.v}) {
    if (reinterpret_cast<uintptr_t>(x->data) % 16 != 0) return false;
    for (int i = 0; i < 3; ++i)
      if (x->shape[i] > 1 && x->strides[i] % 8 != 0) return false;
  }
  return true;
}

int64_t works_of(const Problem& p, int tile_rows) {
  return static_cast<int64_t>((p.rows + tile_rows - 1) / tile_rows) * p.b * p.g;
}

// Too few tiles of queries to fill the GPU: cut the keys as well, but not below 256 keys per part.
void plan_exact(const Problem& p, const Device& device, Plan* plan) {
  const int tall = plan->tensor ? exact_tall(plan->dim, p.rows) : 1;
  const int64_t works = works_of(p, 16 * kWarps * tall), wanted = 4 * device.multiprocessors;
  if (2 * works >= wanted) return;
  const int64_t most = p.t / 256 > 1 ? p.t / 256 : 1;
  plan->splits = static_cast<int>(wanted / works < most ? wanted / works : most);
  if (plan->splits > 1) plan->bytes = static_cast<int64_t>(plan->splits) * p.b * p.g * p.rows * (p.e + 2) * 4;
}

constexpr int kListBytes = 16 * kWarps * 8;  // of one candidate per row of a block

// How long a block's lists can be with up to four blocks per multiprocessor; 0 if even one has no room. Lists
// should have room for 48 more than k: 32 are offered at a time, and cutting a list is worth it for some only.
int shared_capacity(int top_k, int tile_bytes, const Device& device) {
  for (int blocks = 4; blocks > 0; --blocks) {
    const int each = device.shared_bytes / blocks - 1024;  // the system takes 1 KiB per block
    const int room = ((each < device.shared_per_block ? each : device.shared_per_block) - tile_bytes) / kListBytes - 1;
    if (room >= int64_t{top_k} + 48) return room < 2 * top_k + 64 ? room : 2 * top_k + 64;
  }
  return 0;
}

void plan_tiles(const Problem& p, const Device& device, Plan* plan) {
  size_t tile_bytes = 0;
  with_core(*plan, [&](auto core) -> const char* {
    tile_bytes = topk_tile_bytes<decltype(core)>();
    return nullptr;
  });
  const int64_t works = works_of(p, 16 * kWarps), wide = 2 * int64_t{p.top_k} + 64;
  plan->blocks = works;
  plan->capacity = shared_capacity(p.top_k, static_cast<int>(tile_bytes), device);
  plan->global_lists = plan->capacity == 0;
  if (plan->global_lists) {
    plan->capacity = static_cast<int>(wide);
    const int64_t bytes = (wide + 1) * kListBytes, most = kListBudget / bytes > 1 ? kListBudget / bytes : 1;
    const int64_t wanted = works < 4 * device.multiprocessors ? works : 4 * device.multiprocessors;
    plan->blocks = wanted < most ? wanted : most;
    plan->bytes = plan->blocks * bytes;
  }
  plan->pitch = plan->capacity | 1;  // odd: rows of a tile start in different banks
}

void plan_decode(const Problem& p, Plan* plan) {
  plan->pitch = (p.t + 3) / 4 * 4;
  const int64_t rows = static_cast<int64_t>(p.b) * p.g * p.rows;
  const int64_t spill = p.top_k > kPickThreads ? 2 * int64_t{p.top_k} : 0;
  plan->bytes = rows * (plan->pitch + spill) * 4;
}

const char* make_plan(const graft_topk_attention& a, const Problem& p, Plan* plan) {
  Device device;
  const char* error = current_device(&device);
  if (error) return error;
  const int widest = p.d > p.e ? p.d : p.e;
  *plan = Plan{Path::kNothing, a.q.dtype, fits_tensor_cores(a), widest <= 64 ? 64 : widest <= 128 ? 128 : 256, 1};
  if (p.b == 0 || p.rows == 0 || p.e == 0) return nullptr;
  if (p.top_k == 0) {
    plan->path = Path::kExact;
    plan_exact(p, device, plan);
  } else if (p.rows <= kDecodeRows && p.t < kMostDecodeKeys) {
    plan->path = Path::kDecode;
    plan_decode(p, plan);
  } else {
    plan->path = Path::kTiles;
    plan_tiles(p, device, plan);
  }
  return nullptr;
}

}  // namespace

View view(const graft_tensor& x) {
  View v{static_cast<char*>(x.data), {0, 0, 0, 0}};
  for (int i = 0; i < x.rank && i < 4; ++i) v.stride[i] = stride(x, i);
  return v;
}

const char* resolve(const graft_topk_attention& args, const graft_topk_attention_saved* saved, Problem* p,
                    Plan* plan) {
  const char* error = check(args);
  if (error) return error;
  *p = problem_of(args);
  if (saved) {
    if (p->mean) return "TopKAttention on CUDA: training gives 0 where no key is seen, not the mean";
    if (args.top_k < 1 || args.top_k > p->t) return "TopKAttention on CUDA: training needs k between 1 and t";
    p->top_k = static_cast<int>(args.top_k);
    p->saved_scores = saved->scores;
    p->saved_keys = saved->keys;
  }
  return make_plan(args, *p, plan);
}

}  // namespace graft::gpu
