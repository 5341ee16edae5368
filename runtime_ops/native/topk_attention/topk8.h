// Top-k attention that scores in 8-bit integers (AVX-512 VNNI) and proves that it loses nothing.
//
// With q = q8 + dq and k = k8 + dk, |q.k - q8.k8| <= |q| |dk| + |dq| |k8| = E. A key whose 8-bit score lies 2E
// below the k-th best 8-bit score cannot be among the k best. The others are scored again in fp32, and the k best
// chosen among them exactly. Where they are too many for the buffer, the block is done in fp32 instead.
#ifndef GRAFT_TOPK8_H_
#define GRAFT_TOPK8_H_

#include "quantised.h"
#include "topk.h"

namespace graft {
namespace {

struct Topk8Job {
  TopkJob exact;  // for blocks in which the proof fails
  const Keys8* keys;  // [b][g]
};

struct Row8 {
  Candidates kept;
  Selection selection;  // with this row's margin
  float scale;
  int64_t limit;
};

struct Topk8Scratch {
  float *queries, *whole, *rest, *out, *pool, *bias;
  uint8_t* bytes;  // queries, 128 added
  Row8* rows;
};

inline Topk8Scratch cut_topk8(const Problem& p, const Selection& s, int64_t rows, Arena* arena) {
  Topk8Scratch x;
  x.queries = arena->take<float>(rows * p.d);
  x.whole = arena->take<float>(p.d);
  x.rest = arena->take<float>(p.d);
  x.out = arena->take<float>(p.e);
  x.pool = arena->take<float>(rows * pool_stride(s));
  x.bias = arena->take<float>(kPanelKeys);
  x.bytes = arena->take<uint8_t>(rows * quads(p) * 4);
  x.rows = arena->take<Row8>(rows);
  return x;
}

// False where no error bound can be given: something is infinite or NaN.
inline bool begin_row8(const Problem& p, const Block& k, const Topk8Job& job, const Keys8& keys, float bias_error,
                       int64_t r, const Topk8Scratch& x) {
  Row8& row = x.rows[r];
  const Selection& s = job.exact.selection;
  const float* query = x.queries + r * p.d;
  uint8_t* bytes = x.bytes + r * quads(p) * 4;
  memset(bytes, 0, static_cast<size_t>(quads(p) * 4));
  row.scale = quantise_row<Avx512>(query, p.d, reinterpret_cast<int8_t*>(bytes), x.whole);
  for (int64_t i = 0; i < quads(p) * 4; ++i) bytes[i] = static_cast<uint8_t>(bytes[i] + 128);
  float error, norm;
  measure<Avx512>(query, x.whole, row.scale, p.d, x.rest, &error, &norm);
  // The last two terms are for what fp32 itself rounds, in the bound and in the scores.
  const float length = largest_norm<Avx512>(query, p.d, 1, p.d);
  const float bound = 1.001f * (length * keys.error + error * keys.norm) + 1e-5f * length * (keys.norm + keys.error);
  float* scores = x.pool + r * pool_stride(s);
  row.kept = {scores, scores + s.capacity + 64, 0, -kInf};
  row.selection = {s.k, s.capacity, 2.0f * (bound + bias_error) + 1e-30f};
  row.limit = limit_of(p, k, r);
  return row.selection.margin < kInf;
}

// The panel's bias: -inf where no row of the block needs the key. False if that is everywhere.
inline bool load_panel_bias(const Walk& walk, int64_t first, float* to) {
  bool any = false;
  for (int64_t x = 0; x < kPanelKeys; ++x) {
    const int64_t j = first + x;
    float bias = j >= walk.end ? -kInf : walk.bias == nullptr ? 0.0f : walk.bias[j];
    if (bias < walk.floor) bias = -kInf;
    any = any || bias != -kInf;
    to[x] = bias;
  }
  return any;
}

// How far fp32 may round a sum of a score and a bias, for the biases that take part.
inline float rounding_of(const Walk& walk) {
  float high = 0.0f;
  for (int64_t j = 0; walk.bias != nullptr && j < walk.end; ++j) {
    const float bias = walk.bias[j];
    if (bias >= walk.floor && bias != -kInf) high = most(high, __builtin_fabsf(bias));
  }
  return high * 1e-6f;
}

// Adds a row's scores that exceed its threshold; `sums` are its products with 64 keys from `first` on.
inline void append8(const __m512i* sums, const float* key_scale, const float* bias, int64_t first, Row8* row) {
  Candidates& c = row->kept;
  const __m512 threshold = _mm512_set1_ps(c.threshold), scale = _mm512_set1_ps(row->scale);
  __m512 score[4];
  __mmask16 above[4];
  const int64_t seen = row->limit - first + 1;
  const uint64_t visible = seen >= 64 ? ~uint64_t{0} : seen <= 0 ? 0 : (uint64_t{1} << seen) - 1;
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const __m512 unit = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[x]), _mm512_loadu_ps(key_scale + 16 * x));
    score[x] = _mm512_fmadd_ps(unit, scale, _mm512_loadu_ps(bias + 16 * x));
    above[x] = _mm512_mask_cmp_ps_mask(static_cast<__mmask16>(visible >> (16 * x)), score[x], threshold, _CMP_GT_OQ);
  }
  if (!((above[0] | above[1]) | (above[2] | above[3]))) return;
  __m512i ids = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                                 _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    Avx512::compress(c.scores + c.count, above[x], score[x]);
    Avx512::compress(c.ids + c.count, above[x], _mm512_castsi512_ps(ids));
    c.count += Avx512::count(above[x]);
    ids = _mm512_add_epi32(ids, _mm512_set1_epi32(16));
  }
}

// As an instruction, because GCC 12 copies the sum before and after its intrinsic.
inline void add_products(__m512i query, __m512i key, __m512i* sum) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(query), "v"(key));
}

template <int RM>
inline void score_rows8(const uint8_t* q, const int8_t* panel, int64_t n, const int32_t* offset,
                        const float* key_scale, const float* bias, int64_t first, Row8* rows) {
  __m512i sum[RM][4];
#pragma GCC unroll 8
  for (int r = 0; r < RM; ++r) {
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) sum[r][x] = _mm512_loadu_si512(offset + 16 * x);
  }
  for (int64_t i = 0; i < n; ++i, panel += 256) {
    __m512i key[4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) key[x] = _mm512_loadu_si512(panel + 64 * x);
#pragma GCC unroll 8
    for (int r = 0; r < RM; ++r) {
      int32_t quad;
      memcpy(&quad, q + (r * n + i) * 4, 4);
      const __m512i query = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) add_products(query, key[x], &sum[r][x]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < RM; ++r) append8(sum[r], key_scale, bias, first, rows + r);
}

template <int RM = 6>
inline void score_panel8(const Problem& p, const Keys8& keys, int64_t first, int64_t r, int64_t end,
                         const Topk8Scratch& x) {
  const int64_t n = quads(p);
  for (; r + RM <= end; r += RM) {
    score_rows8<RM>(x.bytes + r * n * 4, keys.bytes + first * n * 4, n, keys.offset + first, keys.scale + first, x.bias,
                    first, x.rows + r);
  }
  if constexpr (RM > 1) score_panel8<RM / 2>(p, keys, first, r, end, x);
}

// Makes room for the next panel in every row; false where a margin leaves none.
inline bool make_room8(int64_t rows, Row8* row) {
  for (int64_t r = 0; r < rows; ++r, ++row) {
    if (row->kept.count + kPanelKeys <= row->selection.capacity) continue;
    cut_back<Avx512>(row->selection, row->selection.k / 2, &row->kept);
    if (row->kept.count + kPanelKeys > row->selection.capacity) return false;
  }
  return true;
}

// The sums of four vectors' lanes.
inline __m128 reduce4(const __m512* x) {
  __m256 half[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) half[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]), _mm512_extractf32x8_ps(x[i], 1));
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// q.key for four keys.
template <int32_t Dtype>
inline __m128 dot4(const float* q, const void* const* keys, int64_t d) {
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    const __m512 query = Avx512::load(q + i);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) sum[x] = _mm512_fmadd_ps(query, widen<Avx512>(keys[x], Dtype, i), sum[x]);
  }
  float rest[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (; i < d; ++i) {
    for (int x = 0; x < 4; ++x) rest[x] += q[i] * widen1(keys[x], Dtype, i);
  }
  return _mm_add_ps(reduce4(sum), _mm_loadu_ps(rest));
}

// The candidates' scores in fp32. Their keys are anywhere in memory, so they are asked for well ahead.
template <int32_t Dtype>
inline void dot_all(const void* keys, int64_t stride, const float* q, int64_t d, Candidates* c) {
  constexpr int64_t ahead = 12;
  const auto key_at = [&](int64_t i) { return element(keys, Dtype, id_at(*c, least(i, c->count - 1)) * stride); };
  for (int64_t i = 0; i < c->count; i += 4) {
    const void* four[4];
    for (int x = 0; x < 4; ++x) {
      four[x] = key_at(i + x);
      const char* next = static_cast<const char*>(key_at(i + x + ahead));
      for (int64_t at = 0; at < d * element_size(Dtype); at += 64) _mm_prefetch(next + at, _MM_HINT_T0);
    }
    _mm_storeu_ps(c->scores + i, dot4<Dtype>(q, four, d));
  }
}

inline void score_again(const Problem& p, const Block& k, const Walk& walk, const float* query, Candidates* c) {
  const graft_tensor& x = p.args.k;
  const void* keys = head_data(k, x);
  if (x.dtype == GRAFT_F32) dot_all<GRAFT_F32>(keys, x.strides[2], query, p.d, c);
  if (x.dtype == GRAFT_F16) dot_all<GRAFT_F16>(keys, x.strides[2], query, p.d, c);
  if (x.dtype == GRAFT_BF16) dot_all<GRAFT_BF16>(keys, x.strides[2], query, p.d, c);
  for (int64_t i = 0; walk.bias != nullptr && i < c->count; ++i) c->scores[i] += walk.bias[id_at(*c, i)];
  c->threshold = -kInf;
}

inline bool select8(const Topk8Job& job, const Block& k, const Keys8& keys, const Walk& walk, const Topk8Scratch& x) {
  const Problem& p = *job.exact.p;
  const float bias_error = rounding_of(walk);
  for (int64_t r = 0; r < k.rows; ++r) {
    if (!begin_row8(p, k, job, keys, bias_error, r, x)) return false;
  }
  for (int64_t first = 0; first < walk.end; first += kPanelKeys) {
    if (!load_panel_bias(walk, first, x.bias)) continue;
    score_panel8(p, keys, first, 0, k.rows, x);
    if (!make_room8(k.rows, x.rows)) return false;
  }
  return true;
}

inline void topk8_block(const Topk8Job& job, const Block& k, void* space) {
  const Problem& p = *job.exact.p;
  Arena arena(space);
  const Topk8Scratch x = cut_topk8(p, job.exact.selection, job.exact.block_rows, &arena);
  load_queries<Avx512>(p, k, x.queries);
  float bound = 0.0f;
  if (p.key_bias_wide) bound = score_bound<Avx512>(p, k, x.queries, job.exact.key_norms);
  const Walk walk = walk_keys(p, k, bound);
  if (!select8(job, k, job.keys[k.b * p.g + k.g], walk, x)) {
    topk_block<Avx512>(job.exact, k, space);
    return;
  }
  for (int64_t r = 0; r < k.rows; ++r) {
    Candidates& kept = x.rows[r].kept;
    cut_back<Avx512>(x.rows[r].selection, p.top_k / 8, &kept);
    score_again(p, k, walk, x.queries + r * p.d, &kept);
    end_row<Avx512>(p, k, r, p.top_k, &kept, x.out);
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_TOPK8_H_
