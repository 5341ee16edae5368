// Reading of ONNX Runtime's attributes, tensors and shapes, for every operator.
#include "ort_call.h"

#include <math.h>

#include <atomic>
#include <sstream>
#include <thread>
#include <utility>

namespace graft {
namespace {

// False, and no status left behind, where the runtime refuses.
bool accepted(OrtStatus* status) {
  if (status != nullptr) ort::call(g_api, ort::ReleaseStatus, status);
  return status == nullptr;
}

template <class T, class Signature>
bool has(const OrtKernelInfo* info, ort::Slot<Signature> slot, const char* name, T* value) {
  return accepted(ort::call(g_api, slot, info, name, value));
}

bool has_string(const OrtKernelInfo* info, const char* name, std::string* value) {
  size_t size = 0;  // with the zero at the end; first asked for without a place to write to
  if (!accepted(ort::call(g_api, ort::KernelInfoGetAttribute_string, info, name, static_cast<char*>(nullptr), &size))) {
    return false;
  }
  value->resize(size);
  check(ort::call(g_api, ort::KernelInfoGetAttribute_string, info, name, &(*value)[0], &size));
  value->resize(size > 0 ? size - 1 : 0);
  return true;
}

// Refuses an attribute that is there, but of a type that is not wanted.
void refuse_other(const OrtKernelInfo* info, const char* name, const char* wanted) {
  int64_t whole;
  float number;
  std::string text;
  const char* got = has(info, ort::KernelInfoGetAttribute_int64, name, &whole)   ? "an int"
                    : has(info, ort::KernelInfoGetAttribute_float, name, &number) ? "a float"
                    : has_string(info, name, &text)                               ? "a string"
                                                                                  : nullptr;
  if (got != nullptr) fail(std::string("attribute ") + name + " got " + got + ", allowed " + wanted);
}

std::vector<int64_t> lengths_of(const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(ort::call(g_api, ort::GetDimensionsCount, info, &rank));
  std::vector<int64_t> lengths(rank);
  check(ort::call(g_api, ort::GetDimensions, info, lengths.data(), rank));
  return lengths;
}

const OrtValue* input(const OrtKernelContext* context, size_t i) {
  size_t count = 0;
  check(ort::call(g_api, ort::KernelContext_GetInputCount, context, &count));
  const OrtValue* value = nullptr;
  if (i < count) check(ort::call(g_api, ort::KernelContext_GetInput, context, i, &value));
  return value;
}

// Type and data of a present tensor; returns its lengths.
std::vector<int64_t> read_value(const OrtValue* value, graft_tensor* x) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::call(g_api, ort::GetTensorTypeAndShape, value, &raw));
  const Info info(raw);
  int dtype = 0;
  check(ort::call(g_api, ort::GetTensorElementType, raw, &dtype));
  x->dtype = dtype;
  check(ort::call(g_api, ort::GetTensorMutableData, const_cast<OrtValue*>(value), &x->data));
  static char empty;  // a present tensor without elements must not look absent
  if (x->data == nullptr) x->data = &empty;
  return lengths_of(raw);
}

// An unknown length needs a name of its own: left as -1, the runtime would take two of them for equal.
const char* name_length(int64_t length, const char* name, std::string* fresh) {
  static std::atomic<int> count{0};
  if (length >= 0 || *name != '\0') return name;
  *fresh = "ai.graft." + std::to_string(++count);
  return fresh->c_str();
}

TokensFirst parse_tokens_first(const std::string& text) {
  TokensFirst found;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    bool* const one = word == "q" ? &found.q : word == "k" ? &found.k : word == "v" ? &found.v
                      : word == "out" ? &found.out : nullptr;
    if (one == nullptr) refuse_attribute("tokens_first", text, "some of q k v out");
    *one = true;
  }
  return found;
}

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

void read_attribute(const OrtKernelInfo* info, const char* name, int64_t* value) {
  if (!has(info, ort::KernelInfoGetAttribute_int64, name, value)) refuse_other(info, name, "an int");
}

bool read_attribute(const OrtKernelInfo* info, const char* name, float* value) {
  if (has(info, ort::KernelInfoGetAttribute_float, name, value)) return true;
  refuse_other(info, name, "a float");
  return false;
}

void read_attribute(const OrtKernelInfo* info, const char* name, std::string* value) {
  if (!has_string(info, name, value)) refuse_other(info, name, "a string");
}

void refuse_attribute(const char* name, const std::string& got, const char* allowed) {
  fail(std::string("attribute ") + name + " got " + got + ", allowed " + allowed);
}

bool is_constant(const OrtKernelInfo* info, size_t i) {
  int constant = 0;
  const OrtValue* value = nullptr;
  return accepted(ort::call(g_api, ort::KernelInfoGetConstantInput_tensor, info, i, &constant, &value)) && constant != 0;
}

void fill_strides(graft_tensor* x) {
  int64_t stride = 1;
  for (int32_t i = x->rank - 1; i >= 0; --i) {
    x->strides[i] = stride;
    stride *= x->shape[i];
  }
}

void read_input(const OrtKernelContext* context, size_t i, const char* name, graft_tensor* x) {
  const OrtValue* value = input(context, i);
  if (value == nullptr) return;
  const std::vector<int64_t> lengths = read_value(value, x);
  if (lengths.size() > GRAFT_MAX_RANK) {
    fail(std::string(name) + " got rank " + std::to_string(lengths.size()) + ", allowed at most " +
         std::to_string(GRAFT_MAX_RANK));
  }
  x->rank = static_cast<int32_t>(lengths.size());
  for (size_t j = 0; j < lengths.size(); ++j) x->shape[j] = lengths[j];
  fill_strides(x);
}

std::vector<int64_t> read_rows(const OrtKernelContext* context, size_t i, const char* name, graft_tensor* x) {
  const OrtValue* value = input(context, i);
  const std::vector<int64_t> lengths = value == nullptr ? std::vector<int64_t>() : read_value(value, x);
  if (lengths.empty()) fail(std::string(name) + " got rank 0, allowed 1 or more");
  x->rank = 2;
  x->shape[0] = 1;
  for (size_t j = 0; j + 1 < lengths.size(); ++j) x->shape[0] *= lengths[j];
  x->shape[1] = lengths.back();
  fill_strides(x);
  return lengths;
}

void align(const char* name, int32_t rank, graft_tensor* x) {
  if (x->data == nullptr || x->rank == rank) return;
  if (x->rank > rank || (x->rank == 0 && rank != 1)) {
    fail(std::string(name) + " got rank " + std::to_string(x->rank) + ", allowed 1 to " + std::to_string(rank));
  }
  const int32_t more = rank - x->rank;
  for (int32_t i = rank - 1; i >= 0; --i) x->shape[i] = i >= more ? x->shape[i - more] : 1;
  x->rank = rank;
  fill_strides(x);
}

void* make_output(OrtKernelContext* context, const int64_t* shape, size_t rank) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  check(ort::call(g_api, ort::KernelContext_GetOutput, context, size_t{0}, shape, rank, &value));
  check(ort::call(g_api, ort::GetTensorMutableData, value, &data));
  return data;
}

Shape read_shape(const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::call(g_api, ort::ShapeInferContext_GetInputTypeShape, context, index, &raw));
  Shape shape;
  check(ort::call(g_api, ort::GetTensorElementType, raw, &shape.dtype));
  shape.lengths = lengths_of(raw);
  shape.names.resize(shape.lengths.size());
  check(ort::call(g_api, ort::GetSymbolicDimensions, raw, shape.names.data(), shape.names.size()));
  return shape;
}

void set_shape(OrtShapeInferContext* context, Shape shape) {
  const size_t rank = shape.lengths.size();
  std::vector<std::string> fresh(rank);
  for (size_t i = 0; i < rank; ++i) shape.names[i] = name_length(shape.lengths[i], shape.names[i], &fresh[i]);
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::call(g_api, ort::CreateTensorTypeAndShapeInfo, &raw));
  const Info out(raw);
  check(ort::call(g_api, ort::SetTensorElementType, raw, shape.dtype));
  check(ort::call(g_api, ort::SetDimensions, raw, static_cast<const int64_t*>(shape.lengths.data()), rank));
  check(ort::call(g_api, ort::SetSymbolicDimensions, raw, shape.names.data(), rank));
  check(ort::call(g_api, ort::ShapeInferContext_SetOutputTypeShape, context, size_t{0}, raw));
}

TokensFirst read_tokens_first(const OrtKernelInfo* info) {
  std::string text;
  read_attribute(info, "tokens_first", &text);
  return parse_tokens_first(text);
}

TokensFirst read_tokens_first(const OrtShapeInferContext* context) {
  constexpr const char* name = "tokens_first";
  const OrtOpAttr* attribute = nullptr;
  if (!accepted(ort::call(g_api, ort::ShapeInferContext_GetAttribute, context, name, &attribute))) return {};
  char text[64] = {};  // longer than all names together; what does not fit is refused when the kernel is made
  size_t size = 0;
  void* const to = text;
  if (!accepted(ort::call(g_api, ort::ReadOpAttr, attribute, ORT_OP_ATTR_STRING, to, sizeof text - 1, &size))) return {};
  return parse_tokens_first(text);
}

void turn(graft_tensor* x) {
  if (x->rank != 4) return;
  std::swap(x->shape[1], x->shape[2]);
  std::swap(x->strides[1], x->strides[2]);
}

void turn(Shape* x) {
  std::swap(x->lengths[1], x->lengths[2]);
  std::swap(x->names[1], x->names[2]);
}

OrtStatus* infer_attention(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return guarded(op->GetName(op), [&] {
    const TokensFirst first = read_tokens_first(context);
    Shape q = read_shape(context, 0), v = read_shape(context, 2);
    // Even where nothing is known the type must be set: otherwise the runtime takes it from the last input.
    for (Shape* x : {&q, &v}) {
      if (x->lengths.size() != 4) *x = {x->dtype, {-1, -1, -1, -1}, {"", "", "", ""}};
    }
    q.lengths[3] = v.lengths[3], q.names[3] = v.names[3];
    if (q.lengths[0] == 1) q.lengths[0] = v.lengths[0], q.names[0] = v.names[0];
    if (first.q != first.out) turn(&q);
    set_shape(context, q);
  });
}

void make_attention_output(OrtKernelContext* context, const TokensFirst& first, const char* axes, graft_tensor* q,
                           graft_tensor* k, graft_tensor* v, graft_tensor* out) {
  if (q->rank != 4 || k->rank != 4 || v->rank != 4) {
    fail("q, k, v got ranks " + std::to_string(q->rank) + ", " + std::to_string(k->rank) + ", " +
         std::to_string(v->rank) + ", allowed 4: " + axes);
  }
  if (first.q) turn(q);
  if (first.k) turn(k);
  if (first.v) turn(v);
  int64_t b = q->shape[0];
  for (const graft_tensor* x : {k, v}) b = b == 1 ? x->shape[0] : b;
  *out = {nullptr, q->dtype, 4, {b, q->shape[1], q->shape[2], v->shape[3]}, {}};
  make_turned_output(context, first.out, out);
}

void make_turned_output(OrtKernelContext* context, bool tokens_first, graft_tensor* out) {
  if (tokens_first) turn(out);
  fill_strides(out);
  out->data = make_output(context, out->shape, 4);
  if (tokens_first) turn(out);
}

Scale read_scale(const OrtKernelInfo* info) {
  Scale scale;
  scale.given = read_attribute(info, "scale", &scale.value);
  if (!isfinite(scale.value)) refuse_attribute("scale", std::to_string(scale.value), "a finite number");
  return scale;
}

float scale_for(const Scale& scale, const graft_tensor& q) {
  return scale.given ? scale.value : 1.0f / sqrtf(static_cast<float>(q.shape[3]));
}

float read_softcap(const OrtKernelInfo* info) {
  float softcap = 0.0f;
  read_attribute(info, "softcap", &softcap);
  if (softcap >= 0.0f && !isinf(softcap)) return softcap;
  refuse_attribute("softcap", std::to_string(softcap), "0 (none) or a positive number");
}

int32_t read_no_key(const OrtKernelInfo* info) {
  constexpr const char* words[] = {"zero", "mean"};  // as in graft_no_key
  return read_word(info, "no_key", words);
}

// How many threads a session has cannot be asked; by default it is one for every core.
SessionPool::SessionPool(OrtKernelContext* run_context)
    : pool{this, run_on_session, static_cast<int32_t>(std::thread::hardware_concurrency())}, context(run_context) {}

void finish(const SessionPool& session, const char* error) {
  check(session.status);
  if (error != nullptr) check(ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, error));
}

}  // namespace graft
