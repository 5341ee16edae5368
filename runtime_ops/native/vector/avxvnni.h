// AVX2 with AVX-VNNI: products of bytes too. Meanings of the rest: scalar.h.
#ifndef GRAFT_VECTOR_AVXVNNI_H_
#define GRAFT_VECTOR_AVXVNNI_H_

#include "avx2.h"

namespace graft {
namespace {

struct AvxVnni : Avx2 {
  using I = __m256i;
  static constexpr bool unsigned_queries = true;
  static constexpr int rows8 = 6;

  static I load_i(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static I quad(const uint8_t* p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
  }
  static I first_sum(const int32_t* offset) { return load_i(offset); }
  // As an instruction, because GCC 12 copies sums to memory around its own name for it.
  static I add_products(I sum, I query, I keys) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(query), "x"(keys));
    return sum;
  }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I to_integers(F x) { return _mm256_cvtps_epi32(x); }

  static I in_order(I x) { return _mm256_permute4x64_epi64(x, 0xd8); }  // what packing two vectors left in turns
  static void store_i8(int8_t* p, F x) {
    const I half = in_order(_mm256_packs_epi32(to_integers(x), to_integers(x)));
    const __m128i low = _mm256_castsi256_si128(half);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(low, low));
  }
  static void store_i16(int16_t* p, const I* x) {
    _mm256_storeu_si256(reinterpret_cast<I*>(p), in_order(_mm256_packs_epi32(x[0], x[1])));
  }
  // Lane i of either half is the sum of x[i]'s half.
  static F add_halves(const F* x) {
    return _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  }
  static void reduce_eight(const F* x, float* to) {
    const F a = add_halves(x), b = add_halves(x + 4);
    store(to, add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
  }
  static void raise_i16(int16_t* high, const int16_t* p) {
    for (int i = 0; i < 64; i += 16) {
      _mm256_storeu_si256(reinterpret_cast<I*>(high + i), _mm256_max_epi16(load_i(high + i), load_i(p + i)));
    }
  }
  static uint64_t above_i16(const int16_t* p, int16_t level) {
    const I at = _mm256_set1_epi16(level);
    uint32_t half[2];
    for (int i = 0; i < 2; ++i, p += 32) {
      const I a = _mm256_cmpgt_epi16(load_i(p), at), b = _mm256_cmpgt_epi16(load_i(p + 16), at);
      half[i] = static_cast<uint32_t>(_mm256_movemask_epi8(in_order(_mm256_packs_epi16(a, b))));
    }
    return half[0] | uint64_t{half[1]} << 32;
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_AVXVNNI_H_
