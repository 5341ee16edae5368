// The vector type of AVX-512 (F, BW, VL, DQ): sixteen lanes. Meanings: scalar.h.
#ifndef GRAFT_VECTOR_AVX512_H_
#define GRAFT_VECTOR_AVX512_H_

#include <immintrin.h>

#include "scalar.h"

namespace graft {
namespace {

struct Avx512 {
  using F = __m512;
  using M = __mmask16;
  static constexpr int lanes = 16;
  static constexpr int panel = 4;
  static constexpr int chain = 256;
  static constexpr int tile_rows(int vectors) { return vectors == 4 ? 6 : 12; }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static __m256i load16(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(load16(p)); }
  static F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p)), 16));
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_i8(int8_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F shift_exponent(F x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23)); }
  static F clear_sign(F x) { return _mm512_abs_ps(x); }
  static F copy_sign(F x, F sign) { return _mm512_or_ps(x, _mm512_and_ps(set1(-0.0f), sign)); }
  static M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static M eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static F blend(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  static int count(M m) { return __builtin_popcount(m); }
  static bool any(M m) { return m != 0; }
  // Through a register: the form that writes to memory is microcoded on Zen 4.
  static void compress(float* p, M m, F x) { store(p, _mm512_maskz_compress_ps(m, x)); }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    F x[16], y[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) x[r] = load(from + r * from_stride);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r += 2) {
      y[r] = _mm512_unpacklo_ps(x[r], x[r + 1]);
      y[r + 1] = _mm512_unpackhi_ps(x[r], x[r + 1]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < 16; r += 4) {  // x[r + c]: column c of every 4 x 4 square in rows r .. r + 3
      x[r] = _mm512_shuffle_ps(y[r], y[r + 2], 0x44);
      x[r + 1] = _mm512_shuffle_ps(y[r], y[r + 2], 0xee);
      x[r + 2] = _mm512_shuffle_ps(y[r + 1], y[r + 3], 0x44);
      x[r + 3] = _mm512_shuffle_ps(y[r + 1], y[r + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F a = _mm512_shuffle_f32x4(x[c], x[c + 4], 0x88), b = _mm512_shuffle_f32x4(x[c], x[c + 4], 0xdd);
      const F p = _mm512_shuffle_f32x4(x[c + 8], x[c + 12], 0x88);
      const F q = _mm512_shuffle_f32x4(x[c + 8], x[c + 12], 0xdd);
      store(to + c * to_stride, _mm512_shuffle_f32x4(a, p, 0x88));
      store(to + (c + 4) * to_stride, _mm512_shuffle_f32x4(b, q, 0x88));
      store(to + (c + 8) * to_stride, _mm512_shuffle_f32x4(a, p, 0xdd));
      store(to + (c + 12) * to_stride, _mm512_shuffle_f32x4(b, q, 0xdd));
    }
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_AVX512_H_
