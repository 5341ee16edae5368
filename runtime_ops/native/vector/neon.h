// The vector type of AArch64's Advanced SIMD: four lanes. Meanings: scalar.h.
#ifndef GRAFT_VECTOR_NEON_H_
#define GRAFT_VECTOR_NEON_H_

#include <arm_neon.h>

#include "scalar.h"

namespace graft {
namespace {

// Row m lists the bytes of the lanes that mask m chooses: what vpcompressd does in AVX-512.
struct NeonCompressTable {
  uint8_t bytes[16][16];
  constexpr NeonCompressTable() : bytes() {
    for (int m = 0; m < 16; ++m) {
      int n = 0;
      for (int lane = 0; lane < 4; ++lane) {
        if (!(m & (1 << lane))) continue;
        for (int i = 0; i < 4; ++i) bytes[m][n++] = static_cast<uint8_t>(4 * lane + i);
      }
    }
  }
};
constexpr NeonCompressTable kNeonCompress;

struct Neon {
  using F = float32x4_t;
  using M = uint32x4_t;
  static constexpr int lanes = 4;
  static constexpr int panel = 4;
  static constexpr int chain = 256;
  static constexpr int tile_rows(int vectors) { return vectors == 4 ? 6 : 12; }

  static F load(const float* p) { return vld1q_f32(p); }
  static F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static F set1(float x) { return vdupq_n_f32(x); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // not vmaxq: that one returns a NaN
  static F shift_exponent(F x) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), 23)); }
  static F clear_sign(F x) { return vabsq_f32(x); }
  static F copy_sign(F x, F sign) {
    const uint32x4_t bit = vandq_u32(vreinterpretq_u32_f32(sign), vdupq_n_u32(0x80000000u));
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(x), bit));
  }
  static M gt(F a, F b) { return vcgtq_f32(a, b); }
  static M eq(F a, F b) { return vceqq_f32(a, b); }
  static F blend(M m, F yes, F no) { return vbslq_f32(m, yes, no); }
  static int count(M m) { return static_cast<int>(vaddvq_u32(vshrq_n_u32(m, 31))); }
  static bool any(M m) { return vmaxvq_u32(m) != 0; }
  static void compress(float* p, M m, F x) {
    const uint32x4_t lane = {1, 2, 4, 8};
    const uint8x16_t order = vld1q_u8(kNeonCompress.bytes[vaddvq_u32(vandq_u32(m, lane))]);
    store(p, vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x), order)));
  }
  static float reduce_max(F x) { return vmaxvq_f32(x); }
  static float reduce_add(F x) { return vaddvq_f32(x); }
  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    const float32x4x2_t a = vtrnq_f32(load(from), load(from + from_stride));
    const float32x4x2_t b = vtrnq_f32(load(from + 2 * from_stride), load(from + 3 * from_stride));
    for (int c = 0; c < 2; ++c) {
      store(to + c * to_stride, vcombine_f32(vget_low_f32(a.val[c]), vget_low_f32(b.val[c])));
      store(to + (c + 2) * to_stride, vcombine_f32(vget_high_f32(a.val[c]), vget_high_f32(b.val[c])));
    }
  }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_NEON_H_
