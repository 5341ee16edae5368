// ai.graft::TopKAttention as an ONNX Runtime custom operator on the CPU. Its types are left open in the
// schema and checked here, so that one operator takes fp32, fp16 and bf16 and any of them as a bias.
#include <math.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>

#include "abi.h"
#include "ort_abi.h"

namespace graft {
namespace {

constexpr const char* kDomain = "ai.graft";
constexpr size_t kInputs = 6, kRequired = 3;  // q, k, v; bias, key_mask, past_length

// Thrown inside this file only: carries a status of the runtime's, or makes one from a sentence.
struct Failure {
  OrtStatus* status;
};

const OrtApi* g_api = nullptr;  // the same for every library user in the process

[[noreturn]] void fail(const std::string& sentence) {
  throw Failure{ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, sentence.c_str())};
}

void check(OrtStatus* status) {
  if (status != nullptr) throw Failure{status};
}

// Exceptions must not cross the C interface.
template <class Body>
OrtStatus* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return ort::call(g_api, ort::CreateStatus, ORT_FAIL, error.what());
  }
}

struct ReleaseInfo {
  void operator()(OrtTensorTypeAndShapeInfo* info) const {
    ort::call(g_api, ort::ReleaseTensorTypeAndShapeInfo, info);
  }
};
using Info = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo>;

// ---- attributes ----

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

float float_attribute(const OrtKernelInfo* info, const char* name, float otherwise) {
  float value = otherwise;
  int64_t other;
  if (read(info, ort::KernelInfoGetAttribute_float, name, &value)) return value;
  if (read(info, ort::KernelInfoGetAttribute_int64, name, &other)) {
    fail(std::string("TopKAttention: attribute ") + name + " got an int, allowed a float");
  }
  return otherwise;
}

struct Attributes {
  int64_t k, causal;
  float scale, softcap;  // scale NaN: 1 / sqrt(d)
};

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return guarded([&] {
    const Attributes a{int_attribute(info, "k"), int_attribute(info, "causal"), float_attribute(info, "scale", NAN),
                       float_attribute(info, "softcap", 0.0f)};
    if (a.k < 0) fail("TopKAttention: attribute k got " + std::to_string(a.k) + ", allowed 0 (every key) or more");
    if (a.causal != 0 && a.causal != 1) {
      fail("TopKAttention: attribute causal got " + std::to_string(a.causal) + ", allowed 0 or 1");
    }
    if (!(a.softcap >= 0.0f) || isinf(a.softcap)) {
      fail("TopKAttention: attribute softcap got " + std::to_string(a.softcap) + ", allowed 0 (none) or a positive number");
    }
    *kernel = new Attributes(a);
  });
}

void destroy(void* kernel) { delete static_cast<Attributes*>(kernel); }

// ---- tensors ----

void read_shape(const OrtTensorTypeAndShapeInfo* info, const char* name, graft_tensor* x) {
  size_t rank = 0;
  int dtype = 0;
  check(ort::call(g_api, ort::GetDimensionsCount, info, &rank));
  check(ort::call(g_api, ort::GetTensorElementType, info, &dtype));
  if (rank > GRAFT_MAX_RANK) fail(std::string("TopKAttention: ") + name + " got rank " + std::to_string(rank) + ", allowed at most 4");
  check(ort::call(g_api, ort::GetDimensions, info, x->shape, rank));
  x->rank = static_cast<int32_t>(rank);
  x->dtype = dtype;
}

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
    fail(std::string("TopKAttention: ") + name + " got rank " + std::to_string(x->rank) + ", allowed 1 to " + std::to_string(rank));
  }
  const int32_t more = rank - x->rank;
  for (int32_t i = rank - 1; i >= 0; --i) x->shape[i] = i >= more ? x->shape[i - more] : 1;
  x->rank = rank;
  fill_strides(x);
}

void read_inputs(OrtKernelContext* context, graft_topk_attention* args) {
  static constexpr const char* names[kInputs] = {"q", "k", "v", "bias", "key_mask", "past_length"};
  graft_tensor* const inputs[kInputs] = {&args->q, &args->k, &args->v, &args->bias, &args->key_mask, &args->past_length};
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
    fail("TopKAttention: q, k, v got ranks " + std::to_string(args->q.rank) + ", " + std::to_string(args->k.rank) + ", " +
         std::to_string(args->v.rank) + ", allowed 4: q [b h s d], k [b g t d], v [b g t e]");
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

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  return guarded([&] {
    const Attributes& a = *static_cast<Attributes*>(kernel);
    graft_topk_attention args{};
    read_inputs(context, &args);
    make_output(context, &args);
    args.top_k = a.k;
    args.causal = static_cast<int32_t>(a.causal);
    args.softcap = a.softcap;
    args.scale = isnan(a.scale) ? 1.0f / sqrtf(static_cast<float>(args.q.shape[3])) : a.scale;
    SessionPool session{context, nullptr};
    const graft_pool pool{&session, run_on_session, 0};
    const char* error = graft_run_topk_attention(&args, nullptr, &pool);
    check(session.status);
    if (error != nullptr) fail(error);
  });
}

// ---- the schema ----

struct Shape {
  graft_tensor x{};
  const char* names[GRAFT_MAX_RANK] = {};  // owned by the context, like the shape itself
};

void read_input_shape(const OrtShapeInferContext* context, size_t index, Shape* shape) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::call(g_api, ort::ShapeInferContext_GetInputTypeShape, context, index, &raw));
  read_shape(raw, "an input", &shape->x);
  check(ort::call(g_api, ort::GetSymbolicDimensions, raw, shape->names, static_cast<size_t>(shape->x.rank)));
}

Shape unknown(int32_t dtype) {
  Shape shape;
  shape.x.dtype = dtype;
  for (int i = 0; i < 4; ++i) shape.x.shape[i] = -1, shape.names[i] = "";
  return shape;
}

// An unknown length needs a name of its own: left as -1, the runtime would take two of them for equal.
const char* name_length(int64_t length, const char* name, std::string* fresh) {
  static std::atomic<int> count{0};
  if (length >= 0 || *name != '\0') return name;
  *fresh = "ai.graft." + std::to_string(++count);
  return fresh->c_str();
}

// out [b h s e] takes b, h and s from q and e from v.
OrtStatus* infer(const OrtCustomOp*, OrtShapeInferContext* context) {
  return guarded([&] {
    Shape q, v;
    read_input_shape(context, 0, &q);
    read_input_shape(context, 2, &v);
    // Even where nothing is known the type must be set: otherwise the runtime takes it from the last input.
    for (Shape* x : {&q, &v}) {
      if (x->x.rank != 4) *x = unknown(x->x.dtype);
    }
    int64_t shape[4] = {q.x.shape[0], q.x.shape[1], q.x.shape[2], v.x.shape[3]};
    const char* names[4] = {q.names[0], q.names[1], q.names[2], v.names[3]};
    if (shape[0] == 1) shape[0] = v.x.shape[0], names[0] = v.names[0];
    std::string fresh[4];
    for (int i = 0; i < 4; ++i) names[i] = name_length(shape[i], names[i], &fresh[i]);
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    check(ort::call(g_api, ort::CreateTensorTypeAndShapeInfo, &raw));
    const Info out(raw);
    check(ort::call(g_api, ort::SetTensorElementType, raw, static_cast<int>(q.x.dtype)));
    check(ort::call(g_api, ort::SetDimensions, raw, static_cast<const int64_t*>(shape), size_t{4}));
    check(ort::call(g_api, ort::SetSymbolicDimensions, raw, static_cast<const char**>(names), size_t{4}));
    check(ort::call(g_api, ort::ShapeInferContext_SetOutputTypeShape, context, size_t{0}, raw));
  });
}

OrtCustomOp make_op() {
  OrtCustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return "TopKAttention"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const OrtCustomOp*, size_t) -> int { return ORT_UNDEFINED; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return kInputs; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ORT_UNDEFINED; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.KernelDestroy = destroy;
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return i < kRequired ? ORT_REQUIRED : ORT_OPTIONAL; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ORT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return ORT_MEM_DEFAULT; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.InferOutputShapeFn = infer;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1000; };
  return op;
}

// The domain must outlive every session, and nobody tells when the last one ends: it is made once and kept.
OrtCustomOpDomain* domain() {
  static OrtCustomOpDomain* const made = [] {
    static const OrtCustomOp op = make_op();
    OrtCustomOpDomain* fresh = nullptr;
    check(ort::call(g_api, ort::CreateCustomOpDomain, kDomain, &fresh));
    check(ort::call(g_api, ort::CustomOpDomain_Add, fresh, &op));
    return fresh;
  }();
  return made;
}

// Registering a domain twice makes the session fail, so the options carry a note that it is in.
void register_in(OrtSessionOptions* options) {
  constexpr const char* note = "ai.graft.registered";
  int known = 0;
  check(ort::call(g_api, ort::HasSessionConfigEntry, options, note, &known));
  if (known) return;
  check(ort::call(g_api, ort::AddCustomOpDomain, options, domain()));
  check(ort::call(g_api, ort::AddSessionConfigEntry, options, note, "1"));
}

}  // namespace
}  // namespace graft

extern "C" GRAFT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace graft;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // CreateStatus is in the same place since version 1.
    const std::string sentence = std::string("graft needs ONNX Runtime 1.17 or newer, got ") + base->GetVersionString();
    return ort::call(base->GetApi(1), ort::CreateStatus, ORT_FAIL, sentence.c_str());
  }
  g_api = api;
  return guarded([&] { register_in(options); });
}
