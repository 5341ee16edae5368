// What the files that talk to ONNX Runtime share: calls that throw, the edge where that must end, and reading of
// attributes, tensors and shapes.
#ifndef GRAFT_ORT_CALL_H_
#define GRAFT_ORT_CALL_H_

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "ort_abi.h"
#include "refusal.h"

namespace graft {

extern const OrtApi* g_api;  // the runtime in this process; set before anything else can be called

// Thrown inside the library only: a status of the runtime's, or else a sentence that still lacks the operator's name.
struct Failure {
  OrtStatus* status;
  std::string sentence;
};

[[noreturn]] inline void fail(const std::string& sentence) { throw Failure{nullptr, sentence}; }

inline void check(OrtStatus* status) {
  if (status != nullptr) throw Failure{status, ""};
}

// Exceptions must not cross the C interface.
template <class Body>
OrtStatus* guarded(const char* op, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    if (failure.status != nullptr) return failure.status;
    const std::string sentence = std::string(op) + ": " + failure.sentence;
    return ort::call(g_api, ort::CreateStatus, ORT_INVALID_ARGUMENT, sentence.c_str());
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

// One operator of the domain, for all its element types: each folder's ort.cc has one, ort.cc registers them.
struct OpKind {
  const char* name;
  size_t inputs, required;               // those from `required` on are optional
  int (*input_type)(size_t i, int dtype);  // where the operator's own type is `dtype`
  OrtStatus* (*create)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*run)(void* kernel, OrtKernelContext* context);
  void (*destroy)(void* kernel);
  OrtStatus* (*infer)(const OrtCustomOp*, OrtShapeInferContext* context);
};

// ---- attributes: absent ones leave *value as it is ----

void read_attribute(const OrtKernelInfo* info, const char* name, int64_t* value);
bool read_attribute(const OrtKernelInfo* info, const char* name, float* value);  // false where it is absent
void read_attribute(const OrtKernelInfo* info, const char* name, std::string* value);

// The place of the attribute's word among those that it may be; 0 where it is absent.
template <size_t N>
int32_t read_word(const OrtKernelInfo* info, const char* name, const char* const (&words)[N]) {
  std::string word = words[0];
  read_attribute(info, name, &word);
  int index = 0;
  const std::string error = find_word((std::string("attribute ") + name).c_str(), word.c_str(), words, &index);
  if (!error.empty()) fail(error);
  return index;
}

[[noreturn]] void refuse_attribute(const char* name, const std::string& got, const char* allowed);

// Whether the i-th input is the same tensor in every run.
bool is_constant(const OrtKernelInfo* info, size_t i);

// ---- tensors ----

void fill_strides(graft_tensor* x);

// Makes x the i-th input with its axes; an absent optional input has no data.
void read_input(const OrtKernelContext* context, size_t i, const char* name, graft_tensor* x);

// The same for an input with any number of axes: all but the last become one.
std::vector<int64_t> read_rows(const OrtKernelContext* context, size_t i, const char* name, graft_tensor* x);

// Gives x `rank` axes, new ones in front.
void align(const char* name, int32_t rank, graft_tensor* x);

void* make_output(OrtKernelContext* context, const int64_t* shape, size_t rank);

// ---- shapes before there are tensors ----

// Unknown lengths are -1; those with a name are equal wherever the name is. No lengths at all: not even the rank is known.
struct Shape {
  int dtype = 0;
  std::vector<int64_t> lengths;
  std::vector<const char*> names;  // owned by the context
};

Shape read_shape(const OrtShapeInferContext* context, size_t index);
void set_shape(OrtShapeInferContext* context, Shape shape);

// ---- attention: q [b h s d], k [b g t d] and v [b g t e] are the first inputs, out is [b h s e] ----

// Attribute tokens_first: operands that have axes 1 and 2 the other way round, as in [b s h d].
struct TokensFirst {
  bool q = false, k = false, v = false, out = false;
};
TokensFirst read_tokens_first(const OrtKernelInfo* info);
TokensFirst read_tokens_first(const OrtShapeInferContext* context);

// From tokens first to heads first, or back; other ranks are left to those who refuse them.
void turn(graft_tensor* x);
void turn(Shape* x);

// The type and shape of the output, as OpKind::infer; b, h and s are those of q, e that of v.
OrtStatus* infer_attention(const OrtCustomOp* op, OrtShapeInferContext* context);

// Turns the inputs to heads first and makes *out, its axes included. axes: what the three must be, heads first, for the
// sentence that refuses other ranks.
void make_attention_output(OrtKernelContext* context, const TokensFirst& first, const char* axes, graft_tensor* q,
                           graft_tensor* k, graft_tensor* v, graft_tensor* out);

// Makes the elements of *out, whose type and axes are known, heads first.
void make_turned_output(OrtKernelContext* context, bool tokens_first, graft_tensor* out);

// Attribute scale: left out, 1 / sqrt(d).
struct Scale {
  bool given = false;
  float value = 0.0f;
};
Scale read_scale(const OrtKernelInfo* info);
float scale_for(const Scale& scale, const graft_tensor& q);

float read_softcap(const OrtKernelInfo* info);   // 0: none
int32_t read_no_key(const OrtKernelInfo* info);  // a graft_no_key

// ---- threads: the session's own ----

struct SessionPool {
  explicit SessionPool(OrtKernelContext* context);
  graft_pool pool;
  OrtKernelContext* context;
  OrtStatus* status = nullptr;
};

// Throws what went wrong in the pool, or in the C interface (a sentence, or NULL).
void finish(const SessionPool& session, const char* error);

}  // namespace graft

#endif  // GRAFT_ORT_CALL_H_
