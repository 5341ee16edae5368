// AVX-512 with products of bf16 pairs. Meanings of the rest: scalar.h.
#ifndef GRAFT_VECTOR_AVX512BF16_H_
#define GRAFT_VECTOR_AVX512BF16_H_

#include "avx512.h"

namespace graft {
namespace {

struct Avx512Bf16 : Avx512 {
  // Every lane of two factors is a pair of bf16 numbers; a lane of the third is the fp32 sum of their products.
  struct Pairs : Avx512 {
    static __m512bh pairs(F x) { return (__m512bh)_mm512_castps_si512(x); }
    static F fma(F a, F b, F c) { return _mm512_dpbf16_ps(c, pairs(a), pairs(b)); }
  };

  // Thirty-two numbers as sixteen pairs; denormal ones become 0.
  static void store_pairs(float* p, F first, F second) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(second, first));
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_AVX512BF16_H_
