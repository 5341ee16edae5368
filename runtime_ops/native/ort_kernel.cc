// The kernel of ai.graft::TopKAttention inside ONNX Runtime: from a node's attributes and tensors to the plain C
// interface, on the session's own threads.
#include <math.h>
#include <string.h>

#include "ort_call.h"

namespace graft {
namespace {

constexpr size_t kInputs = 6;  // q, k, v, bias, key_mask, past_length

template <class T, class Signature>
bool read(const OrtKernelInfo* info, ort::Slot<Signature> slot, const char* name, T* value) {
  OrtStatus* status = ort::call(g_api, slot, info, name, value);
  if (status != nullptr) ort::call(g_api, ort::ReleaseStatus, status);
  return status == nullptr;
}

int64_t int_attribute(const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  float other;
  if (read(info, ort::KernelInfoGetAttribute_int64, name, &value)) return value;
  if (read(info, ort::KernelInfoGetAttribute_float, name, &other)) {
    fail(std::string("TopKAttention: attribute ") + name + " got a float, allowed an int");
  }
  return 0;
}

// False where the node does not have it.
bool float_attribute(const OrtKernelInfo* info, const char* name, float* value) {
  int64_t other;
  if (read(info, ort::KernelInfoGetAttribute_float, name, value)) return true;
  if (read(info, ort::KernelInfoGetAttribute_int64, name, &other)) {
    fail(std::string("TopKAttention: attribute ") + name + " got an int, allowed a float");
  }
  return false;
}

struct Attributes {
  int64_t k, causal;
  float scale, softcap;
  bool scaled;  // else scale is 1 / sqrt(d)
};

void refuse(const char* name, const std::string& got, const char* allowed) {
  fail(std::string("TopKAttention: attribute ") + name + " got " + got + ", allowed " + allowed);
}

void check_values(const Attributes& a) {
  if (a.k < 0) refuse("k", std::to_string(a.k), "0 (every key) or more");
  if (a.causal != 0 && a.causal != 1) refuse("causal", std::to_string(a.causal), "0 or 1");
  if (!isfinite(a.scale)) refuse("scale", std::to_string(a.scale), "a finite number");
  if (!(a.softcap >= 0.0f) || isinf(a.softcap)) {
    refuse("softcap", std::to_string(a.softcap), "0 (none) or a positive number");
  }
}

// ---- tensors ----

void fill_strides(graft_tensor* x) {
  int64_t stride = 1;
  for (int32_t i = x->rank - 1; i >= 0; --i) {
    x->strides[i] = stride;
    stride *= x->shape[i];
  }
}

void read_value(const OrtValue* value, const char* name, graft_tensor* x) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::call(g_api, ort::GetTensorTypeAndShape, value, &raw));
  const Info info(raw);
  read_shape(info.get(), name, x);
  fill_strides(x);
  check(ort::call(g_api, ort::GetTensorMutableData, const_cast<OrtValue*>(value), &x->data));
  static char empty;  // a present tensor without elements must not look absent
  if (x->data == nullptr) x->data = &empty;
}

// Gives x `rank` axes, new ones in front.
void align(const char* name, int32_t rank, graft_tensor* x) {
  if (x->data == nullptr || x->rank == rank) return;
  if (x->rank > rank || (x->rank == 0 && rank != 1)) {
    fail(std::string("TopKAttention: ") + name + " got rank " + std::to_string(x->rank) + ", allowed 1 to " +
         std::to_string(rank));
  }
  const int32_t more = rank - x->rank;
  for (int32_t i = rank - 1; i >= 0; --i) x->shape[i] = i >= more ? x->shape[i - more] : 1;
  x->rank = rank;
  fill_strides(x);
}

void read_inputs(OrtKernelContext* context, graft_topk_attention* args) {
  static constexpr const char* names[kInputs] = {"q", "k", "v", "bias", "key_mask", "past_length"};
  graft_tensor* const inputs[kInputs] = {&args->q,    &args->k,        &args->v,
                                         &args->bias, &args->key_mask, &args->past_length};
  size_t count = 0;
  check(ort::call(g_api, ort::KernelContext_GetInputCount, context, &count));
  for (size_t i = 0; i < kInputs && i < count; ++i) {
    const OrtValue* value = nullptr;
    check(ort::call(g_api, ort::KernelContext_GetInput, context, i, &value));
    if (value != nullptr) read_value(value, names[i], inputs[i]);
  }
  align("bias", 4, &args->bias);
  align("past_length", 1, &args->past_length);
}

void make_output(OrtKernelContext* context, graft_topk_attention* args) {
  if (args->q.rank != 4 || args->k.rank != 4 || args->v.rank != 4) {
    fail("TopKAttention: q, k, v got ranks " + std::to_string(args->q.rank) + ", " + std::to_string(args->k.rank) +
         ", " + std::to_string(args->v.rank) + ", allowed 4: q [b h s d], k [b g t d], v [b g t e]");
  }
  int64_t b = args->q.shape[0];
  for (const graft_tensor* x : {&args->k, &args->v}) b = b == 1 ? x->shape[0] : b;
  graft_tensor& out = args->out;
  out.rank = 4;
  out.dtype = args->q.dtype;
  const int64_t shape[4] = {b, args->q.shape[1], args->q.shape[2], args->v.shape[3]};
  memcpy(out.shape, shape, sizeof shape);
  fill_strides(&out);
  OrtValue* value = nullptr;
  check(ort::call(g_api, ort::KernelContext_GetOutput, context, size_t{0}, shape, size_t{4}, &value));
  check(ort::call(g_api, ort::GetTensorMutableData, value, &out.data));
}

// ---- threads: the session's own ----

struct SessionPool {
  OrtKernelContext* context;
  OrtStatus* status;
};

struct Share {
  graft_task task;
  void* state;
};

void run_share(void* share, size_t index) {
  const Share& s = *static_cast<Share*>(share);
  s.task(s.state, static_cast<int64_t>(index));
}

void run_on_session(void* pool, int64_t total, graft_task task, void* state) {
  SessionPool& p = *static_cast<SessionPool*>(pool);
  Share share{task, state};
  OrtStatus* status = ort::call(g_api, ort::KernelContext_ParallelFor, p.context, run_share, static_cast<size_t>(total),
                                size_t{0}, &share);
  if (status == nullptr) return;
  if (p.status != nullptr) ort::call(g_api, ort::ReleaseStatus, p.status);
  p.status = status;
}

}  // namespace

OrtStatus* create_kernel(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded([&] {
    Attributes a{};
    a.k = int_attribute(info, "k");
    a.causal = int_attribute(info, "causal");
    a.scaled = float_attribute(info, "scale", &a.scale);
    float_attribute(info, "softcap", &a.softcap);
    check_values(a);
    *kernel = new Attributes(a);
  });
}

void destroy_kernel(void* kernel) { delete static_cast<Attributes*>(kernel); }

OrtStatus* run_kernel(void* kernel, OrtKernelContext* context) {
  return guarded([&] {
    const Attributes& a = *static_cast<Attributes*>(kernel);
    graft_topk_attention args{};
    read_inputs(context, &args);
    make_output(context, &args);
    args.top_k = a.k;
    args.causal = static_cast<int32_t>(a.causal);
    args.softcap = a.softcap;
    args.scale = a.scaled ? a.scale : 1.0f / sqrtf(static_cast<float>(args.q.shape[3]));
    SessionPool session{context, nullptr};
    const graft_pool pool{&session, run_on_session, 0};
    const char* error = graft_run_topk_attention(&args, nullptr, &pool);
    check(session.status);
    if (error != nullptr) fail(error);
  });
}

}  // namespace graft
