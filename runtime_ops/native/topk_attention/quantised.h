// Keys and queries as 8-bit integers, with what is needed to bound the error of their products.
//
// Keys lose their mean first: q.mean is the same for every key of a row, so neither the ranking nor the softmax
// changes, and what is left has a smaller range. Channels much wider than others are then made narrower by a power of
// two, and wider in the queries, which changes no product: else one channel would cost all others their digits.
#ifndef GRAFT_QUANTISED_H_
#define GRAFT_QUANTISED_H_

#include "bound.h"

namespace graft {
namespace {

constexpr int64_t kPanelKeys = 64;

// One (b, g): (key j - mean) * narrow = scale[j] * unit * bytes + an error of at most `error` in norm.
struct Keys8 {
  int8_t* bytes;    // [t / 64][d / 4][64][4], padded with zeros
  float* scale;     // [t], such that scale * (a query's bytes . a key's bytes) fits 16 bits
  int32_t* offset;  // [t], -128 * the sum of bytes: queries are stored with 128 added
  uint32_t* spread;  // [t], this key's own error and norm, rounded up to bf16: high and low half
  float *mean, *narrow, *widen;  // [d]
  float unit;
  float error, norm;  // the largest error, and the largest norm of a quantised key
  float mean_norm;  // of mean * narrow
};

constexpr float kRange8 = 32000.0f;  // scores in 16 bits stay within it, and -32768 stands for a hidden key

inline int64_t quads(const Problem& p) { return ceil_div(p.d, 4); }

inline Keys8 take_keys8(const Problem& p, Arena* arena) {
  const int64_t t = round_up(p.t, kPanelKeys);
  Keys8 keys;
  keys.bytes = arena->take<int8_t>(t * quads(p) * 4);
  keys.scale = arena->take<float>(t);
  keys.offset = arena->take<int32_t>(t);
  keys.spread = arena->take<uint32_t>(t);
  keys.mean = arena->take<float>(p.d);
  keys.narrow = arena->take<float>(p.d);
  keys.widen = arena->take<float>(p.d);
  keys.unit = keys.error = keys.norm = keys.mean_norm = 0.0f;
  return keys;
}

template <class V>
inline float dot(const float* x, const float* y, int64_t n) {
  typename V::F sum = V::set1(0.0f);
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) sum = V::fma(V::load(x + i), V::load(y + i), sum);
  float rest = V::reduce_add(sum);
  for (; i < n; ++i) rest += x[i] * y[i];
  return rest;
}

template <class V>
inline float largest_of(const float* x, int64_t n) {
  typename V::F high = V::set1(0.0f);
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) high = V::max(V::clear_sign(V::load(x + i)), high);
  float largest = V::reduce_max(high);
  for (; i < n; ++i) largest = most(largest, __builtin_fabsf(x[i]));
  return largest;
}

// to = round(from / scale) in -127 .. 127, as fp32 in `whole` too; returns the scale.
template <class V>
inline float quantise_row(const float* from, int64_t n, int8_t* to, float* whole) {
  const float scale = largest_of<V>(from, n) / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    // Adding and subtracting 1.5 * 2^23 rounds; the bounds hold off infinities and NaN.
    const float x = (from[i] * inverse + 0x1.8p23f) - 0x1.8p23f;
    whole[i] = x > -127.0f ? (x < 127.0f ? x : 127.0f) : -127.0f;
    to[i] = static_cast<int8_t>(whole[i]);
  }
  return scale;
}

// What rounding took away, and what is left, in norm.
template <class V>
inline void measure(const float* from, const float* whole, float scale, int64_t n, float* scratch, float* error,
                    float* norm) {
  for (int64_t i = 0; i < n; ++i) scratch[i] = from[i] - scale * whole[i];
  *error = largest_norm<V>(scratch, n, 1, n);
  *norm = scale * largest_norm<V>(whole, n, 1, n);
}

// 2^-n and 2^n with n such that a channel's range and that of its queries are both about sqrt(deviation).
inline void balance(float square, float average, float* narrow, float* widen) {
  const float ratio = square / average;
  int32_t n = 0;
  if (ratio > 1e-12f && ratio < 1e12f) n = (static_cast<int32_t>(to_bits(ratio) >> 23) - 127 + 2) >> 2;
  *narrow = from_bits(static_cast<uint32_t>(127 - n) << 23);
  *widen = from_bits(static_cast<uint32_t>(127 + n) << 23);
}

// The mean of all keys, and what balances the channels.
template <class V>
inline void find_channels(const Problem& p, const Block& k, float* row, float* square, Keys8* keys) {
  const graft_tensor& x = p.args.k;
  float* mean = keys->mean;
  for (int64_t i = 0; i < p.d; ++i) mean[i] = square[i] = 0.0f;
  for (int64_t j = 0; j < p.t; ++j) {
    widen_row<V>(element(head_data(k, x), x.dtype, j * x.strides[2]), x.dtype, p.d, row);
    for (int64_t i = 0; i < p.d; ++i) mean[i] += row[i], square[i] += row[i] * row[i];
  }
  const float share = 1.0f / static_cast<float>(p.t);
  float average = 0.0f;
  for (int64_t i = 0; i < p.d; ++i) {
    mean[i] *= share;
    square[i] = square[i] * share - mean[i] * mean[i];
    average += square[i] / static_cast<float>(p.d);
  }
  for (int64_t i = 0; i < p.d; ++i) {
    balance(square[i], average, keys->narrow + i, keys->widen + i);
    row[i] = mean[i] * keys->narrow[i];
  }
  keys->mean_norm = largest_norm<V>(row, p.d, 1, p.d);
}

inline void place_key(const Problem& p, int64_t j, const int8_t* row, Keys8* keys) {
  const int64_t n = quads(p);
  int8_t* to = keys->bytes + (j / kPanelKeys * n * kPanelKeys + j % kPanelKeys) * 4;
  int32_t sum = 0;
  for (int64_t i = 0; i < n * 4; ++i) sum += row[i];
  for (int64_t i = 0; i < n; ++i) memcpy(to + i * kPanelKeys * 4, row + i * 4, 4);
  keys->offset[j] = -128 * sum;
}

inline uint32_t pack_spread(float error, float norm) {
  return ((to_bits(error) + 0xffffu) & 0xffff0000u) | ((to_bits(norm) + 0xffffu) >> 16);
}

// No product of bytes exceeds 127 sqrt(d) times the norm of the key's bytes.
inline void share_unit(const Problem& p, Keys8* keys) {
  const float high = 127.0f * __builtin_sqrtf(static_cast<float>(p.d)) * keys->norm;
  keys->unit = high > 0.0f ? high / kRange8 : 1.0f;
  const float inverse = 1.0f / keys->unit;
  for (int64_t j = 0; j < p.t; ++j) keys->scale[j] *= inverse;
}

struct QuantiseJob {
  const Problem* p;
  Workspaces* spaces;
  Keys8* keys;
};

struct QuantiseScratch {
  float *row, *whole, *rest;
  int8_t* bytes;
};

inline QuantiseScratch cut_quantise(const Problem& p, Arena* arena) {
  QuantiseScratch x;
  x.row = arena->take<float>(p.d);
  x.whole = arena->take<float>(p.d);
  x.rest = arena->take<float>(p.d);
  x.bytes = arena->take<int8_t>(quads(p) * 4);
  return x;
}

template <class V>
inline void quantise_keys(const Problem& p, const Block& k, const QuantiseScratch& x, Keys8* keys) {
  const graft_tensor& from = p.args.k;
  find_channels<V>(p, k, x.row, x.rest, keys);
  memset(x.bytes, 0, static_cast<size_t>(quads(p) * 4));
  for (int64_t j = 0; j < p.t; ++j) {
    float error, norm;
    widen_row<V>(element(head_data(k, from), from.dtype, j * from.strides[2]), from.dtype, p.d, x.row);
    for (int64_t i = 0; i < p.d; ++i) x.row[i] = (x.row[i] - keys->mean[i]) * keys->narrow[i];
    keys->scale[j] = quantise_row<V>(x.row, p.d, x.bytes, x.whole);
    measure<V>(x.row, x.whole, keys->scale[j], p.d, x.rest, &error, &norm);
    keys->spread[j] = pack_spread(error, norm);
    keys->error = error <= keys->error ? keys->error : error;  // a NaN stays
    keys->norm = norm <= keys->norm ? keys->norm : norm;
    place_key(p, j, x.bytes, keys);
  }
  memset(x.bytes, 0, static_cast<size_t>(quads(p) * 4));
  for (int64_t j = p.t; j < round_up(p.t, kPanelKeys); ++j) {
    keys->scale[j] = 0.0f;
    place_key(p, j, x.bytes, keys);
  }
  share_unit(p, keys);
}

template <class V>
inline void quantise_task(void* state, int64_t index) {
  const QuantiseJob& job = *static_cast<QuantiseJob*>(state);
  void* space = job.spaces->take();
  if (space == nullptr) return;
  Arena arena(space);
  const Block k{index / job.p->g, index % job.p->g, 0, 0, 0};
  quantise_keys<V>(*job.p, k, cut_quantise(*job.p, &arena), &job.keys[index]);
  job.spaces->give(space);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_QUANTISED_H_
