// First products of numbers rounded to bf16, and which exact ones they make needless.
//
// With x = x' + dx and w = w' + dw, no x·w is further from x'·w' than |x| |dw| + |dx| |w'|, and what fp32 rounds: call it
// E. At least k neurons reach the k-th largest rounded z less E, so one whose own lies 2 E below that is none of the k
// best; and a relu's neuron is silent if its rounded z lies E below 0. All others get their exact z, as without all this,
// so what is selected is the same. Where no finite E can be given, everything is exact from the start.
#ifndef GRAFT_TOPK_FEED_FORWARD_NEAR_H_
#define GRAFT_TOPK_FEED_FORWARD_NEAR_H_

#include "pairs.h"
#include "terms.h"

namespace graft {
namespace {

// What w' has lost, and its norm, over all neurons.
inline Near largest(const Chunk& k) {
  Near all{{}, 0.0f, 0.0f};
  for (int64_t i = 0; i < neuron_tasks(*k.p); ++i) {
    all.error = higher(k.rounded.w_error[i], all.error);
    all.norm = higher(k.rounded.w_norm[i], all.norm);
  }
  return all;
}

// Whether there is a finite bound for every token, now in `reach`.
inline bool bound(const Chunk& k, const graft_tensor& bias, const Near& w) {
  const Rounded& r = k.rounded;
  float zero = 0.0f;
  if (bias.data != nullptr) {
    for (int64_t i = 0; i < k.p->f; ++i) zero += widen1(bias.data, bias.dtype, i) * 0.0f;
  }
  const float rounding = 1.2e-7f * (0.6f * static_cast<float>(k.p->m) + 32.0f);
  for (int64_t i = 0; i < k.rows; ++i) {
    const float lost = 1.001f * (r.length[i] * w.error + r.missed[i] * w.norm);
    r.reach[i] = lost + rounding * (r.length[i] * (w.norm + w.error)) + 1e-30f;
    zero += r.reach[i] * 0.0f;
  }
  return zero == 0.0f;
}

// From where on a token's neurons may matter.
template <class V>
inline void find_least(const Chunk& k, int64_t row, void*) {
  const FeedForward& p = *k.p;
  const float reach = k.rounded.reach[row];
  k.rounded.least[row] = -reach;
  if (p.top_k == 0) return;
  float* z = k.c + row * k.f_row;
  for (int64_t i = p.f; i < round_up(p.f, V::lanes); ++i) z[i] = -kInf;
  const float level = find_cut<V>({z, nullptr, p.f, -kInf}, p.top_k, p.top_k / 4).level;
  k.rounded.least[row] = level - 2.0f * reach - 1e-6f * __builtin_fabsf(level);  // the last for the sum with the bias
}

// Tokens and neurons of a task, such that the tokens and a block of the weights stay in the second cache.
constexpr int64_t kExactTokens = 128, kExactNeurons = 8 * kNeurons;

struct Exact {
  const Chunk* chunk;
  const graft_tensor *w, *bias;
  int64_t groups;  // of tokens
};

// A token's neurons first .. first + count - 1 that may matter, listed; the others become 0, or with a selection -inf.
template <class V>
inline int64_t list_neurons(const Chunk& k, int64_t row, int64_t first, int64_t count, float* list) {
  const typename V::F at = V::set1(k.rounded.least[row]), out = V::set1(k.p->top_k > 0 ? -kInf : 0.0f);
  const float* neurons = reinterpret_cast<const float*>(k.neurons);
  float* z = k.c + row * k.f_row;
  int64_t n = 0;
  for (int64_t i = first; i < first + count; i += V::lanes) {
    const typename V::M in = V::gt(V::load(z + i), at);
    V::compress(list + n, in, V::load(neurons + i));
    V::store(z + i, V::blend(in, V::load(z + i), out));
    n += V::count(in);
  }
  return n;
}

// Those of a token's neurons first .. first + count - 1 that may matter get their exact z; a relu is applied at once.
template <class V>
inline void make_exact(const Exact& job, int64_t row, int64_t first, int64_t count) {
  const Chunk& k = *job.chunk;
  const FeedForward& p = *k.p;
  float list[kNeurons + 64];
  const int64_t n = list_neurons<V>(k, row, first, count, list);
  for (int64_t i = 0; i < n; ++i) {
    int32_t neuron;
    memcpy(&neuron, list + i, sizeof neuron);
    if (neuron >= p.f) break;  // behind the last
    float z = linear_at<V>(k, row, *job.w, *job.bias, neuron);
    if (p.top_k == 0) z = z > 0.0f ? z : 0.0f;
    k.c[row * k.f_row + neuron] = p.top_k == 0 && p.activation == Activation::relu_squared ? z * z : z;
  }
}

template <class V>
inline void exact_task(void* state, int64_t index) {
  const Exact& job = *static_cast<const Exact*>(state);
  const Chunk& k = *job.chunk;
  const int64_t begin = index % job.groups * kExactTokens, end = least(begin + kExactTokens, k.rows);
  const int64_t from = index / job.groups * kExactNeurons, to = least(from + kExactNeurons, k.p->f);
  for (int64_t first = from; first < to; first += kNeurons) {
    for (int64_t row = begin; row < end; ++row) make_exact<V>(job, row, first, least(kNeurons, to - first));
  }
}

template <class V>
inline void measure_token(const Chunk& k, int64_t row, void*) {
  const void* x[1] = {k.x + row * k.x_row};
  float square;
  dots<V, 1, 1, GRAFT_F32>(x, reinterpret_cast<const float* const*>(x), k.p->m, 0, &square, 1);
  k.rounded.length[row] = norm_of(square);
  k.rounded.missed[row] = 0.0f;
}

// The rounded products, and the bound of their errors; false where they would not pay, or have none.
template <class V>
inline bool project_rounded(const Chunk& k, const graft_tensor& w, const graft_tensor& bias) {
  const FeedForward& p = *k.p;
  Chunk state = k;
  if (k.few()) {
    if (!p.near_few || p.near == nullptr) return false;
    run_tasks(p.pool, k.rows, chunk_task<measure_token<V>>, &state);
    if (!bound(k, bias, *p.near)) return false;
    project<V>(k, p.near->w, bias, k.c, Then::store);
    return true;
  }
  if constexpr (has_pairs<V>(0)) {
    if (!p.near_many || w.dtype != GRAFT_F32) return false;
    run_tasks(p.pool, k.rows, chunk_task<pair_token<V>>, &state);
    project_pairs<V>(k, w, bias);
    return k.spaces->error() != nullptr || bound(k, bias, largest(k));
  }
  return false;
}

// z of those neurons that can matter; false where all are still to be made.
template <class V>
inline bool project_near(const Chunk& k, const graft_tensor& w, const graft_tensor& bias) {
  if (!project_rounded<V>(k, w, bias)) return false;
  if (k.spaces->error() != nullptr) return true;
  Chunk state = k;
  run_tasks(k.p->pool, k.rows, chunk_task<find_least<V>>, &state);
  Exact job{&k, &w, &bias, ceil_div(k.rows, kExactTokens)};
  run_tasks(k.p->pool, job.groups * ceil_div(k.p->f, kExactNeurons), exact_task<V>, &job);
  return true;
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK_FEED_FORWARD_NEAR_H_
