// Gradients of attention over the k best keys, from the kept scores alone: k rows of k and v are gathered per
// query, nothing of size s t exists. With a = softmax(scores) and r = sum_j a_j (d_out · v_j) = d_out · out,
//   d_score_j = a_j (d_out · v_j - r),  d_q = scale sum_j d_score_j k_j,  d_k_j += scale d_score_j q,
//   d_v_j += a_j d_out,  and d_score_j gets the factor 1 - tanh² under a soft cap.
#ifndef GRAFT_TOPK_ATTENTION_BACKWARD_CUH_
#define GRAFT_TOPK_ATTENTION_BACKWARD_CUH_

#include "problem.cuh"

namespace graft::gpu {

constexpr int kBackwardThreads = 128, kBackwardWarps = 4;

struct Gradients {
  View d_out, d_q;
  float *d_k, *d_v;  // [b g t] rows of pitch_k and pitch_v numbers, multiples of 4
  int pitch_k, pitch_v;
};

// Sum over the `lanes` neighbours that share a row.
GRAFT_DEVICE float sum_over(float x, int lanes) {
  for (int i = 1; i < lanes; i *= 2) x += __shfl_xor_sync(kAll, x, i);
  return x;
}
GRAFT_DEVICE float dot_eight(const float (&x)[8], const float (&y)[8]) {
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < 8; ++c) sum = fmaf(x[c], y[c], sum);
  return sum;
}
GRAFT_DEVICE void add_eight(float* to, const float (&x)[8], float factor, int left) {
#pragma unroll
  for (int c = 0; c < 8; c += 4)
    if (c < left) add_four(to + c, factor * x[c], factor * x[c + 1], factor * x[c + 2], factor * x[c + 3]);
}

// Maximum of the saved scores of a row, and the sum of exponentials.
GRAFT_DEVICE float2 softmax_terms(const float* scores, int k) {
  float peak = -kInfinity, sum = 0.0f;
  for (int i = lane(); i < k; i += 32) peak = fmaxf(peak, scores[i]);
  peak = warp_max(peak);
  for (int i = lane(); i < k; i += 32) sum += power_of_two((scores[i] - peak) * kLog2e);
  return float2{peak, warp_sum(sum)};
}

// One warp per query; as many lanes share a key as the wider of d and e needs, eight numbers each.
template <class T>
__global__ void __launch_bounds__(kBackwardThreads) backward_kernel(Problem p, Gradients to) {
  const int64_t flat = static_cast<int64_t>(blockIdx.x) * kBackwardWarps + warp();
  if (flat >= static_cast<int64_t>(p.b) * p.h * p.s) return;
  const int i = static_cast<int>(flat % p.s), head = static_cast<int>(flat / p.s % p.h);
  const int b = static_cast<int>(flat / p.s / p.h), key_head = head / p.group;
  const int lanes = lanes_per_row(max(p.d, p.e)), column = lane() % lanes * 8, together = 32 / lanes;
  const int left_d = p.d - column, left_e = p.e - column;
  const float* scores = p.saved_scores + flat * p.top_k;
  const int* keys = p.saved_keys + flat * p.top_k;

  float q[8], out[8], d_out[8], d_q[8] = {};
  load_eight(q, at<const T>(p.q, b, head, i) + column, left_d);
  load_eight(out, at<const T>(p.out, b, head, i) + column, left_e);
  load_eight(d_out, at<const T>(to.d_out, b, head, i) + column, left_e);
  const float along = sum_over(dot_eight(out, d_out), lanes);
  const float2 terms = softmax_terms(scores, p.top_k);
  const int64_t first_row = (static_cast<int64_t>(b) * p.g + key_head) * p.t;

  for (int first = 0; first < p.top_k; first += together) {
    const int at_key = first + lane() / lanes;
    const int j = at_key < p.top_k ? keys[at_key] : -1;
    float k[8], v[8];
    load_eight(k, at<const T>(p.k, b, key_head, max(j, 0)) + column, j < 0 ? 0 : left_d);
    load_eight(v, at<const T>(p.v, b, key_head, max(j, 0)) + column, j < 0 ? 0 : left_e);
    const float weight = j < 0 ? 0.0f : power_of_two((scores[at_key] - terms.x) * kLog2e) / terms.y;
    float d_score = weight * (sum_over(dot_eight(d_out, v), lanes) - along) * p.scale;
    if (p.softcap > 0.0f) {
      const float squashed = tanhf(sum_over(dot_eight(q, k), lanes) * p.scale / p.softcap);
      d_score *= 1.0f - squashed * squashed;
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) d_q[c] = fmaf(d_score, k[c], d_q[c]);
    if (j < 0) continue;
    add_eight(to.d_k + (first_row + j) * to.pitch_k + column, q, d_score, to.pitch_k - column);
    add_eight(to.d_v + (first_row + j) * to.pitch_v + column, d_out, weight, to.pitch_v - column);
  }
  for (int apart = lanes; apart < 32; apart *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) d_q[c] += __shfl_xor_sync(kAll, d_q[c], apart);
  if (lane() < lanes) store_eight(at<T>(to.d_q, b, head, i) + column, d_q, left_d);
}

// fp32 sums become the gradient's own type and pitch.
template <class T>
__global__ void narrow_kernel(const float* from, int pitch, T* to, int width, int64_t total) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step)
    to[i] = narrow<T>(from[i / width * pitch + i % width]);
}

}  // namespace graft::gpu

#endif  // GRAFT_TOPK_ATTENTION_BACKWARD_CUH_
