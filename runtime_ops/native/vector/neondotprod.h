// Advanced SIMD with dot products: products of bytes too. Meanings of the rest: scalar.h.
#ifndef GRAFT_VECTOR_NEONDOTPROD_H_
#define GRAFT_VECTOR_NEONDOTPROD_H_

#include "neon.h"

namespace graft {
namespace {

struct NeonDotprod : Neon {
  using I = int32x4_t;
  static constexpr bool unsigned_queries = false;
  static constexpr int rows8 = 4;

  static I load_i(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
  static I quad(const uint8_t* p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vdupq_n_s32(four);
  }
  static I first_sum(const int32_t*) { return vdupq_n_s32(0); }
  static I add_products(I sum, I query, I keys) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(query), vreinterpretq_s8_s32(keys));
  }
  static F to_float(I x) { return vcvtq_f32_s32(x); }
  static I to_integers(F x) { return vcvtnq_s32_f32(x); }

  static void store_i8(int8_t* p, F x) {
    const int16x4_t half = vqmovn_s32(to_integers(x));
    const int32x2_t bytes = vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(half, half)));
    const int32_t four = vget_lane_s32(bytes, 0);
    memcpy(p, &four, sizeof four);
  }
  static void store_i16(int16_t* p, const I* x) {
    vst1q_s16(p, vqmovn_high_s32(vqmovn_s32(x[0]), x[1]));
    vst1q_s16(p + 8, vqmovn_high_s32(vqmovn_s32(x[2]), x[3]));
  }
  static void reduce_eight(const F* x, float* to) {
    for (int i = 0; i < 8; i += 4) {
      store(to + i, vpaddq_f32(vpaddq_f32(x[i], x[i + 1]), vpaddq_f32(x[i + 2], x[i + 3])));
    }
  }
  static void raise_i16(int16_t* high, const int16_t* p) {
    for (int i = 0; i < 64; i += 8) vst1q_s16(high + i, vmaxq_s16(vld1q_s16(high + i), vld1q_s16(p + i)));
  }
  // One bit each of sixteen.
  static uint8x16_t bits_above(const int16_t* p, int16x8_t level) {
    const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t a = vcgtq_s16(vld1q_s16(p), level), b = vcgtq_s16(vld1q_s16(p + 8), level);
    return vandq_u8(vmovn_high_u16(vmovn_u16(a), b), bit);
  }
  static uint64_t above_i16(const int16_t* p, int16_t level) {
    const int16x8_t at = vdupq_n_s16(level);
    const uint8x16_t low = vpaddq_u8(bits_above(p, at), bits_above(p + 16, at));
    const uint8x16_t high = vpaddq_u8(bits_above(p + 32, at), bits_above(p + 48, at));
    const uint8x16_t all = vpaddq_u8(low, high);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_NEONDOTPROD_H_
