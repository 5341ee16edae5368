// Runs the samples that tests/native_samples.py has written, through the C interface, on processors for which there is
// no Python at hand: check_samples <file> <isa>... ; the exit status is the number of failures, at most 100. What a kernel
// does not take by its limits is no failure, but a kernel must take something.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "abi.h"
#include "vector/scalar.h"

namespace {

// A tensor and the memory that it owns, 64-byte aligned or not: kernels must take both.
struct Owned {
  graft_tensor view{};
  std::vector<char> bytes;
};

// A call with the fp32 numbers that it must return, and how far off it may be.
struct Sample {
  std::string name;
  double allowed;
  std::vector<Owned> inputs;
  Owned expected;
  std::function<const char*(graft_tensor out, const char* isa)> run;
};

void read_bytes(FILE* file, void* to, size_t size) {
  if (size == 0 || fread(to, size, 1, file) == 1) return;
  fputs("check_samples: the file ends too early\n", stderr);
  exit(101);
}

template <class T>
T read(FILE* file) {
  T value;
  read_bytes(file, &value, sizeof value);
  return value;
}

void read_tensor(FILE* file, Owned* x) {
  x->view.dtype = read<int32_t>(file);
  if (x->view.dtype == 0) return;
  x->view.rank = read<int32_t>(file);
  for (int32_t i = 0; i < x->view.rank; ++i) x->view.shape[i] = read<int64_t>(file);
  int64_t stride = 1;
  for (int32_t i = x->view.rank - 1; i >= 0; --i) {
    x->view.strides[i] = stride;
    stride *= x->view.shape[i];
  }
  const int64_t size = read<int64_t>(file);
  x->bytes.resize(static_cast<size_t>(size) + 1);  // a present tensor without elements must not look absent
  read_bytes(file, x->bytes.data(), static_cast<size_t>(size));
  x->view.data = x->bytes.data();
}

std::string read_text(FILE* file) {
  std::string text(static_cast<size_t>(read<int32_t>(file)), '\0');
  read_bytes(file, &text[0], text.size());
  return text;
}

// Which keys a row attends to, and how.
template <class Args>
void read_choosing(FILE* file, Args* args) {
  args->top_k = read<int64_t>(file);
  args->window = read<int64_t>(file);
  args->scale = read<float>(file);
  args->softcap = read<float>(file);
  args->causal = read<int32_t>(file);
  args->no_key = read<int32_t>(file);
}

void read_attention(FILE* file, Sample* s) {
  graft_topk_attention args{};
  graft_tensor* const inputs[] = {&args.q, &args.k, &args.v, &args.bias, &args.key_mask, &args.past_length};
  for (size_t i = 0; i < s->inputs.size(); ++i) *inputs[i] = s->inputs[i].view;
  read_choosing(file, &args);
  args.remainder = read<int32_t>(file);
  s->run = [args](graft_tensor out, const char* isa) mutable {
    args.out = out;
    return graft_run_topk_attention(&args, isa, nullptr);
  };
}

void read_feed_forward(FILE* file, Sample* s) {
  graft_topk_feed_forward args{};
  graft_tensor* const inputs[] = {&args.x,     &args.w_in,   &args.w_out, &args.b_in,
                                  &args.b_out, &args.w_gate, &args.b_gate};
  for (size_t i = 0; i < s->inputs.size(); ++i) *inputs[i] = s->inputs[i].view;
  args.top_k = read<int64_t>(file);
  args.chunk = read<int64_t>(file);
  const std::string activation = read_text(file), select_by = read_text(file);
  s->run = [=](graft_tensor out, const char* isa) mutable {
    args.activation = activation.c_str(), args.select_by = select_by.c_str();
    args.out = out;
    return graft_run_topk_feed_forward(&args, isa, nullptr);
  };
}

void read_expanded(FILE* file, Sample* s) {
  graft_expanded_attention args{};
  graft_tensor* const inputs[] = {&args.q,    &args.memory,   &args.w_k,         &args.w_v,       &args.b_v,
                                  &args.bias, &args.key_mask, &args.past_length, &args.beam_index};
  for (size_t i = 0; i < s->inputs.size(); ++i) *inputs[i] = s->inputs[i].view;
  read_choosing(file, &args);
  s->run = [args](graft_tensor out, const char* isa) mutable {
    args.out = out;
    return graft_run_expanded_attention(&args, isa, nullptr);
  };
}

Sample read_sample(FILE* file) {
  Sample s;
  const std::string op = read_text(file);
  s.name = op + ", " + read_text(file);
  s.allowed = read<double>(file);
  read_tensor(file, &s.expected);
  s.inputs.resize(static_cast<size_t>(read<int32_t>(file)));
  for (Owned& x : s.inputs) read_tensor(file, &x);
  if (op == "TopKAttention") read_attention(file, &s);
  else if (op == "ExpandedAttention") read_expanded(file, &s);
  else read_feed_forward(file, &s);
  return s;
}

float value_at(const graft_tensor& x, const char* data, size_t i) {
  if (x.dtype == GRAFT_F32) return reinterpret_cast<const float*>(data)[i];
  const uint16_t half = reinterpret_cast<const uint16_t*>(data)[i];
  return x.dtype == GRAFT_F16 ? graft::from_f16(half) : graft::from_bf16(half);
}

bool is_refusal(const std::string& error) {
  return error.find("does not take this problem") != std::string::npos || error.find("has no kernel") != std::string::npos;
}

enum class Outcome { passed, failed, refused };

// Passed: the outputs are as near to the expected numbers as the sample allows.
Outcome check(const Sample& s, const char* isa) {
  graft_tensor result = s.expected.view;
  result.dtype = s.inputs[0].view.dtype;
  const size_t count = s.expected.bytes.size() / sizeof(float);
  std::vector<char> out(count * sizeof(float) + 1, '\x7f');
  result.data = out.data();
  const char* error = s.run(result, isa);
  if (error != nullptr && is_refusal(error)) return Outcome::refused;
  if (error != nullptr) printf("%s, %s: %s\n", s.name.c_str(), isa, error);
  if (error != nullptr) return Outcome::failed;
  double worst = 0.0;
  for (size_t i = 0; i < count; ++i) {
    const double wanted = reinterpret_cast<const float*>(s.expected.bytes.data())[i];
    const double off = fabs(value_at(result, out.data(), i) - wanted);
    if (!(off <= worst)) worst = off;
  }
  if (worst <= s.allowed) return Outcome::passed;
  printf("%s, %s: error %g, allowed %g\n", s.name.c_str(), isa, worst, s.allowed);
  return Outcome::failed;
}

}  // namespace

int main(int argc, char** argv) {
  FILE* file = argc > 2 ? fopen(argv[1], "rb") : nullptr;
  if (file == nullptr) {
    fputs("usage: check_samples <file> <isa>...\n", stderr);
    return 101;
  }
  int failures = 0;
  std::vector<int> runs(static_cast<size_t>(argc));
  for (int32_t left = read<int32_t>(file); left > 0; --left) {
    const Sample sample = read_sample(file);
    for (int i = 2; i < argc; ++i) {
      const Outcome outcome = check(sample, argv[i]);
      failures += outcome == Outcome::failed ? 1 : 0;
      runs[static_cast<size_t>(i)] += outcome == Outcome::refused ? 0 : 1;
    }
  }
  fclose(file);
  for (int i = 2; i < argc; ++i) {
    printf("%s: %d runs\n", argv[i], runs[static_cast<size_t>(i)]);
    failures += runs[static_cast<size_t>(i)] == 0 ? 1 : 0;
  }
  int64_t blocks, widened, in_fp32;
  graft_topk_attention_proofs(&blocks, &widened, &in_fp32);
  printf("blocks in 8 bits: %lld, widened: %lld, in fp32: %lld\n", static_cast<long long>(blocks),
         static_cast<long long>(widened), static_cast<long long>(in_fp32));
  failures += 4 * in_fp32 > blocks ? 1 : 0;  // right results would hide that nothing is proved
  printf("%d failures\n", failures);
  return failures < 100 ? failures : 100;
}
