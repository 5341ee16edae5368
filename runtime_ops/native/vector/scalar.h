// The vector type of plain C++: one lane, any processor. The reference for what each operation means.
// Everything here has internal linkage: a linker must never share it with a file built for another ISA.
#ifndef GRAFT_VECTOR_SCALAR_H_
#define GRAFT_VECTOR_SCALAR_H_

#include <stdint.h>
#include <string.h>

namespace graft {
namespace {

inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_bf16(uint16_t x) { return from_bits(static_cast<uint32_t>(x) << 16); }

// Nearest even; a NaN stays one.
inline uint16_t to_bf16(float x) {
  const uint32_t bits = to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_f16(uint16_t x) {
  const uint32_t sign = (x & 0x8000u) << 16, magnitude = x & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // A half's bits, read as a float, are the number times 2^-112: one product repairs denormals too.
  const float scaled = from_bits(magnitude << 13) * 0x1p112f;
  return from_bits(sign | to_bits(scaled));
}

inline uint16_t to_f16(float x) {
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) half = 0x7e00u;
  else if (magnitude >= 0x477ff000u) half = 0x7c00u;  // rounds to 65536 or is infinite
  else if (magnitude < 0x38800000u) half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;  // denormal
  else half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  return static_cast<uint16_t>(sign | half);
}

struct Scalar {
  using F = float;
  using M = bool;
  static constexpr int lanes = 1;
  static constexpr int panel = 8;                                        // vectors side by side in a panel
  // Terms of one sum, before it is added to those of earlier terms: longer ones lose digits, without a fused product
  // soon. With one 256, as ONNX Runtime has it for constant weights: often the same result to the last bit.
  static constexpr int chain = 16;
  static constexpr int tile_rows(int vectors) { return vectors >= 4 ? 3 : 6; }  // that fit the registers

  static F load(const float* p) { return *p; }
  static F load_f16(const uint16_t* p) { return from_f16(*p); }
  static F load_bf16(const uint16_t* p) { return from_bf16(*p); }
  static void store(float* p, F x) { *p = x; }
  static F set1(float x) { return x; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }  // b where either is NaN
  static F shift_exponent(F x) { return from_bits(to_bits(x) << 23); }
  static F clear_sign(F x) { return from_bits(to_bits(x) & 0x7fffffffu); }
  static F copy_sign(F x, F sign) { return from_bits(to_bits(x) | (to_bits(sign) & 0x80000000u)); }
  static M gt(F a, F b) { return a > b; }
  static M eq(F a, F b) { return a == b; }
  static F blend(M m, F yes, F no) { return m ? yes : no; }
  static int count(M m) { return m ? 1 : 0; }
  static bool any(M m) { return m; }
  // Writes the chosen lanes side by side; may write up to `lanes` floats.
  static void compress(float* p, M m, F x) { if (m) *p = x; }
  static float reduce_max(F x) { return x; }
  static float reduce_add(F x) { return x; }
  // to[c][r] = from[r][c] for a square of `lanes`.
  static void transpose(const float* from, int64_t, float* to, int64_t) { *to = *from; }
};

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_SCALAR_H_
