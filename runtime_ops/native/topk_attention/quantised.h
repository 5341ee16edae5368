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
  float* scale;     // [t], such that scale * (a query's bytes . a key's bytes) fits 16 bits; a panel's keys share it
  int32_t* offset;  // [t], -128 * the sum of bytes, where queries are stored with 128 added
  uint32_t* spread;  // [t], this key's own error and norm, rounded up to bf16: high and low half
  float *mean, *narrow, *widen;  // [d], padded
  float unit;
  float error, norm;  // the largest error, and the largest norm of a quantised key
  float mean_norm;  // of mean * narrow
};

constexpr float kRange8 = 32000.0f;  // scores in 16 bits stay within it, and -32768 stands for a hidden key

inline int64_t quads(const Problem& p) { return ceil_div(p.d, 4); }

// Buffers of a key or a query: whole vectors of any instruction set, zeros behind the last channel.
inline int64_t padded(const Problem& p) { return round_up(p.d, 16); }

inline Keys8 take_keys8(const Problem& p, Arena* arena) {
  const int64_t t = round_up(p.t, kPanelKeys);
  Keys8 keys;
  keys.bytes = arena->take<int8_t>(t * quads(p) * 4);
  keys.scale = arena->take<float>(t);
  keys.offset = arena->take<int32_t>(t);
  keys.spread = arena->take<uint32_t>(t);
  keys.mean = arena->take<float>(padded(p));
  keys.narrow = arena->take<float>(padded(p));
  keys.widen = arena->take<float>(padded(p));
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

// to[i] = x[i] * y[i], zeros behind the n-th up to `width`.
template <class V>
inline void multiply(const float* x, const float* y, int64_t n, int64_t width, float* to) {
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) V::store(to + i, V::mul(V::load(x + i), V::load(y + i)));
  for (; i < width; ++i) to[i] = i < n ? x[i] * y[i] : 0.0f;
}

// The smallest scale with which 127 reaches all numbers.
template <class V>
inline float byte_scale(const float* x, int64_t n) {
  typename V::F high = V::set1(0.0f);
  for (int64_t i = 0; i < n; i += V::lanes) high = V::max(V::clear_sign(V::load(x + i)), high);
  return V::reduce_max(high) / 127.0f;
}

// A row as bytes: x = scale * bytes + what they miss.
struct Bytes {
  float length, error, norm;  // norms of x, of what the bytes miss, and of scale * bytes
  int32_t sum;                // of the bytes
};

// to = round(x / scale) in -127 .. 127, for `width` numbers in whole vectors.
template <class V>
inline Bytes to_bytes(const float* from, int64_t width, float scale, int8_t* to) {
  using F = typename V::F;
  const F unit = V::set1(-scale), inverse = V::set1(scale > 0.0f ? 1.0f / scale : 0.0f);
  const F magic = V::set1(0x1.8p23f), top = V::set1(127.0f), bottom = V::set1(-127.0f);
  F length = V::set1(0.0f), error = length, norm = length, sum = length;
  for (int64_t i = 0; i < width; i += V::lanes) {
    const F x = V::load(from + i);
    // Adding and subtracting 1.5 * 2^23 rounds; the bounds hold off infinities and NaN.
    F whole = V::sub(V::fma(x, inverse, magic), magic);
    whole = V::blend(V::gt(whole, bottom), whole, bottom);
    whole = V::blend(V::gt(top, whole), whole, top);
    V::store_i8(to + i, whole);
    const F missed = V::fma(unit, whole, x);
    length = V::fma(x, x, length);
    error = V::fma(missed, missed, error);
    norm = V::fma(whole, whole, norm);
    sum = V::add(sum, whole);
  }
  return {__builtin_sqrtf(V::reduce_add(length)), __builtin_sqrtf(V::reduce_add(error)),
          scale * __builtin_sqrtf(V::reduce_add(norm)), static_cast<int32_t>(V::reduce_add(sum))};
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
  const int64_t width = padded(p);
  float* mean = keys->mean;
  for (int64_t i = 0; i < width; ++i) mean[i] = square[i] = row[i] = keys->narrow[i] = keys->widen[i] = 0.0f;
  for (int64_t j = 0; j < p.t; ++j) {
    widen_row<V>(element(head_data(k, x), x.dtype, j * x.strides[2]), x.dtype, p.d, row);
    for (int64_t i = 0; i < width; i += V::lanes) {
      const typename V::F one = V::load(row + i);
      V::store(mean + i, V::add(V::load(mean + i), one));
      V::store(square + i, V::fma(one, one, V::load(square + i)));
    }
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

inline uint32_t pack_spread(float error, float norm) {
  return ((to_bits(error) + 0xffffu) & 0xffff0000u) | ((to_bits(norm) + 0xffffu) >> 16);
}

// No product of bytes exceeds 127 sqrt(d) times the norm of the key's bytes.
inline void share_unit(const Problem& p, Keys8* keys) {
  const float high = 127.0f * __builtin_sqrtf(static_cast<float>(p.d)) * keys->norm;
  keys->unit = high > 0.0f ? high / kRange8 : 1.0f;
  const float inverse = 1.0f / keys->unit;
  for (int64_t j = 0; j < round_up(p.t, kPanelKeys); ++j) keys->scale[j] *= inverse;
}

struct QuantiseJob {
  const Problem* p;
  Workspaces* spaces;
  int64_t first;  // of the key heads
  Keys8* keys;    // of the first one
};

struct QuantiseScratch {
  float *rows, *square;  // of a panel's keys
  int8_t* bytes;         // theirs, `bytes_stride` apart
};

inline int64_t bytes_stride(const Problem& p) { return round_up(p.d, 64); }

inline QuantiseScratch cut_quantise(const Problem& p, Arena* arena) {
  QuantiseScratch x;
  x.rows = arena->take<float>(kPanelKeys * padded(p));
  x.square = arena->take<float>(padded(p));
  x.bytes = arena->take<int8_t>(kPanelKeys * bytes_stride(p));
  return x;
}

// Some keys, less their mean and balanced, zeros behind the last channel.
template <class V>
inline void load_keys(const Problem& p, const Block& k, int64_t first, int64_t count, const Keys8& keys, float* to) {
  const graft_tensor& from = p.args.k;
  for (int64_t j = 0; j < count; ++j, to += padded(p)) {
    for (int64_t i = p.d; i < padded(p); ++i) to[i] = 0.0f;
    widen_row<V>(element(head_data(k, from), from.dtype, (first + j) * from.strides[2]), from.dtype, p.d, to);
    for (int64_t i = 0; i < padded(p); i += V::lanes) {
      V::store(to + i, V::mul(V::sub(V::load(to + i), V::load(keys.mean + i)), V::load(keys.narrow + i)));
    }
  }
}

template <class V>
inline void quantise_key(const Problem& p, const float* row, float scale, int64_t j, int8_t* to, Keys8* keys) {
  const Bytes b = to_bytes<V>(row, padded(p), scale, to);
  keys->scale[j] = scale;
  keys->offset[j] = -128 * b.sum;
  keys->spread[j] = pack_spread(b.error, b.norm);
  keys->error = higher(b.error, keys->error);
  keys->norm = higher(b.norm, keys->norm);
}

// Panel by panel: keys side by side, four channels of each at a time.
template <class V>
inline void quantise_keys(const Problem& p, const Block& k, const QuantiseScratch& x, Keys8* keys) {
  const int64_t n = quads(p), width = padded(p);
  find_channels<V>(p, k, x.rows, x.square, keys);
  for (int64_t first = 0; first < p.t; first += kPanelKeys) {
    const int64_t count = least(kPanelKeys, p.t - first);
    load_keys<V>(p, k, first, count, *keys, x.rows);
    const float scale = byte_scale<V>(x.rows, count * width);
    for (int64_t j = 0; j < count; ++j) {
      quantise_key<V>(p, x.rows + j * width, scale, first + j, x.bytes + j * bytes_stride(p), keys);
    }
    for (int64_t j = first + count; j < first + kPanelKeys; ++j) {
      keys->scale[j] = scale, keys->offset[j] = 0, keys->spread[j] = 0;
    }
    pack_transposed<V>(reinterpret_cast<const float*>(x.bytes), bytes_stride(p) / 4, count, n,
                       reinterpret_cast<float*>(keys->bytes + first * n * 4), kPanelKeys);
  }
  share_unit(p, keys);
}

template <class V>
inline void quantise_task(void* state, int64_t index) {
  const QuantiseJob& job = *static_cast<QuantiseJob*>(state);
  void* space = job.spaces->take();
  if (space == nullptr) return;
  Arena arena(space);
  const int64_t head = job.first + index;
  const Block k{head / job.p->g, head % job.p->g, 0, 0, 0};
  quantise_keys<V>(*job.p, k, cut_quantise(*job.p, &arena), &job.keys[index]);
  job.spaces->give(space);
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_QUANTISED_H_
