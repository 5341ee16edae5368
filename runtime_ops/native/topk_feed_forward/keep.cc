#include "keep.h"

#include <math.h>

#include "../vector/math.h"

namespace graft {
namespace {

struct Rounding {
  const graft_tensor* w;
  uint16_t* rows;
  float *error, *norm;  // [f]
};

void round_row(void* state, int64_t i) {
  const Rounding& job = *static_cast<const Rounding*>(state);
  const int64_t m = job.w->shape[1];
  const float* from = static_cast<const float*>(job.w->data) + i * job.w->strides[0];
  uint16_t* to = job.rows + i * m;
  double error = 0.0, norm = 0.0;
  for (int64_t j = 0; j < m; ++j) {
    to[j] = to_bf16(from[j]);
    const double kept = from_bf16(to[j]), lost = from[j] - kept;
    error += lost * lost;
    norm += kept * kept;
  }
  job.error[i] = static_cast<float>(sqrt(error) * 1.0000002);
  job.norm[i] = static_cast<float>(sqrt(norm) * 1.0000002);
}

float largest(const std::vector<float>& numbers) {
  float high = 0.0f;
  for (const float x : numbers) high = higher(x, high);
  return high;
}

}  // namespace

const Near* KeptNear::of(const graft_tensor& w, const graft_pool* pool) {
  std::call_once(once_, [&] { make(w, pool); });
  return &near_;
}

void KeptNear::make(const graft_tensor& w, const graft_pool* pool) {
  const int64_t f = w.shape[0], m = w.shape[1];
  rows_.resize(static_cast<size_t>(f * m));
  std::vector<float> error(static_cast<size_t>(f)), norm(error);
  Rounding job{&w, rows_.data(), error.data(), norm.data()};
  run_tasks(pool, f, round_row, &job);
  near_ = {{rows_.data(), GRAFT_BF16, 2, {f, m}, {m, 1}}, largest(error), largest(norm)};
}

}  // namespace graft
