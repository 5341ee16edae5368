// The vector type of AVX2 with FMA and F16C: eight lanes. Meanings: scalar.h.
#ifndef GRAFT_VECTOR_AVX2_H_
#define GRAFT_VECTOR_AVX2_H_

#include <immintrin.h>

#include "scalar.h"

namespace graft {
namespace {

// Row m lists the lanes that mask m chooses, packed four bits each: what vpcompressd does in AVX-512.
struct CompressTable {
  uint32_t nibbles[256];
  constexpr CompressTable() : nibbles() {
    for (uint32_t m = 0; m < 256; ++m) {
      uint32_t packed = 0, n = 0;
      for (uint32_t lane = 0; lane < 8; ++lane) {
        if (m & (1u << lane)) packed |= lane << (4 * n++);
      }
      nibbles[m] = packed;
    }
  }
};
constexpr CompressTable kCompress;

struct Avx2 {
  using F = __m256;
  using M = __m256;
  static constexpr int lanes = 8;
  static constexpr int panel = 2;
  static constexpr int chain = 256;
  static constexpr int tile_rows(int) { return 6; }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static __m128i load8(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(load8(p)); }
  static F load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load8(p)), 16));
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F shift_exponent(F x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23)); }
  static F clear_sign(F x) { return _mm256_andnot_ps(set1(-0.0f), x); }
  static F copy_sign(F x, F sign) { return _mm256_or_ps(x, _mm256_and_ps(set1(-0.0f), sign)); }
  static M gt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static M eq(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static F blend(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static int bits(M m) { return _mm256_movemask_ps(m); }
  static int count(M m) { return __builtin_popcount(static_cast<unsigned>(bits(m))); }
  static bool any(M m) { return bits(m) != 0; }
  static void compress(float* p, M m, F x) {
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i row = _mm256_set1_epi32(static_cast<int>(kCompress.nibbles[bits(m)]));
    store(p, _mm256_permutevar8x32_ps(x, _mm256_srlv_epi32(row, shifts)));
  }
  static float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    F x[8], y[8];
    for (int r = 0; r < 8; ++r) x[r] = load(from + r * from_stride);
    for (int r = 0; r < 8; r += 2) {
      y[r] = _mm256_unpacklo_ps(x[r], x[r + 1]);
      y[r + 1] = _mm256_unpackhi_ps(x[r], x[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
      x[r] = _mm256_shuffle_ps(y[r], y[r + 2], 0x44);
      x[r + 1] = _mm256_shuffle_ps(y[r], y[r + 2], 0xee);
      x[r + 2] = _mm256_shuffle_ps(y[r + 1], y[r + 3], 0x44);
      x[r + 3] = _mm256_shuffle_ps(y[r + 1], y[r + 3], 0xee);
    }
    for (int r = 0; r < 4; ++r) {
      store(to + r * to_stride, _mm256_permute2f128_ps(x[r], x[r + 4], 0x20));
      store(to + (r + 4) * to_stride, _mm256_permute2f128_ps(x[r], x[r + 4], 0x31));
    }
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_AVX2_H_
