// exp, tanh, erf, conversions and the small matrix product that every kernel is made of, written
// once over a vector type V. Internal linkage throughout: see scalar.h.
#ifndef GRAFT_VECTOR_MATH_H_
#define GRAFT_VECTOR_MATH_H_

#include "../abi.h"
#include "scalar.h"

namespace graft {
namespace {

constexpr float kInf = __builtin_inff();

template <class T>
constexpr T least(T a, T b) { return b < a ? b : a; }
template <class T>
constexpr T most(T a, T b) { return a < b ? b : a; }
// The higher of two, and a NaN once there is one.
inline float higher(float x, float high) { return x <= high || high != high ? high : x; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// e^x within about 1 ulp; exactly 0 from -87.7 down (and at -inf), exactly 1 at 0. x <= 88.
template <class V>
inline typename V::F vexp(typename V::F x) {
  using F = typename V::F;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it, plus 127, in the low bits: an exponent field.
  const F magic = V::set1(0x1.8p23f + 127.0f);
  x = V::max(x, V::set1(-88.0f));
  const F z = V::fma(x, V::set1(1.44269504f), magic), n = V::sub(z, magic);
  F r = V::fma(n, V::set1(-0.693359375f), x);
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  F p = V::fma(V::set1(0.00138145837f), r, V::set1(0.00836872403f));
  p = V::fma(p, r, V::set1(0.041668389f));
  p = V::fma(p, r, V::set1(0.166665211f));
  p = V::fma(p, r, V::set1(0.49999994f));
  p = V::fma(V::mul(r, r), p, V::add(r, V::set1(1.0f)));
  return V::mul(p, V::shift_exponent(z));
}

template <class V>
inline typename V::F vtanh(typename V::F x) {
  using F = typename V::F;
  const F one = V::set1(1.0f), a = V::clear_sign(x), square = V::mul(x, x);
  F p = V::fma(V::set1(0.00214294484f), square, V::set1(-0.00817738008f));
  p = V::fma(p, square, V::set1(0.021700697f));
  p = V::fma(p, square, V::set1(-0.0539467633f));
  p = V::fma(p, square, V::set1(0.133332059f));
  p = V::fma(p, square, V::set1(-0.333333313f));
  const F near = V::fma(V::mul(p, square), x, x);
  const F capped = V::blend(V::gt(a, V::set1(20.0f)), V::set1(20.0f), a);
  const F far = V::sub(one, V::div(V::set1(2.0f), V::add(vexp<V>(V::add(capped, capped)), one)));
  return V::blend(V::gt(a, V::set1(0.625f)), V::copy_sign(far, x), near);
}

// Near 0 an odd polynomial, further off 1 - e^p with p fitted to log(erfc); from 4 on exactly 1.
template <class V>
inline typename V::F verf(typename V::F x) {
  using F = typename V::F;
  const F a = V::clear_sign(x), square = V::mul(x, x);
  F p = V::fma(V::set1(7.88250399637036e-05f), square, V::set1(-0.0008018863154575229f));
  p = V::fma(p, square, V::set1(0.005189313553273678f));
  p = V::fma(p, square, V::set1(-0.02685433067381382f));
  p = V::fma(p, square, V::set1(0.11283597350120544f));
  p = V::fma(p, square, V::set1(-0.3761262595653534f));
  p = V::fma(p, square, V::set1(1.1283791065216064f));
  const F near = V::mul(p, x), capped = V::blend(V::gt(a, V::set1(4.0f)), V::set1(4.0f), a);
  F q = V::fma(V::set1(-2.1178502720431425e-05f), capped, V::set1(0.0004352527030277997f));
  q = V::fma(q, capped, V::set1(-0.004174066241830587f));
  q = V::fma(q, capped, V::set1(0.025125231593847275f));
  q = V::fma(q, capped, V::set1(-0.10828592628240585f));
  q = V::fma(q, capped, V::set1(-0.6333443522453308f));
  q = V::fma(q, capped, V::set1(-1.1295149326324463f));
  q = V::fma(q, capped, V::set1(0.00017442592070437968f));
  const F far = V::copy_sign(V::sub(V::set1(1.0f), vexp<V>(q)), x);
  return V::blend(V::gt(a, V::set1(0.9f)), far, near);
}

inline int64_t element_size(int32_t dtype) { return dtype == GRAFT_F32 ? 4 : dtype == GRAFT_BOOL ? 1 : 2; }

inline const void* element(const void* base, int32_t dtype, int64_t index) {
  return static_cast<const char*>(base) + index * element_size(dtype);
}

inline float widen1(const void* from, int32_t dtype, int64_t i) {
  if (dtype == GRAFT_F32) return static_cast<const float*>(from)[i];
  const uint16_t x = static_cast<const uint16_t*>(from)[i];
  return dtype == GRAFT_F16 ? from_f16(x) : from_bf16(x);
}

template <class V>
inline typename V::F widen(const void* from, int32_t dtype, int64_t i) {
  if (dtype == GRAFT_F32) return V::load(static_cast<const float*>(from) + i);
  const uint16_t* half = static_cast<const uint16_t*>(from) + i;
  return dtype == GRAFT_F16 ? V::load_f16(half) : V::load_bf16(half);
}

// to[i] = from[i] as fp32.
template <class V>
inline void widen_row(const void* from, int32_t dtype, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) V::store(to + i, widen<V>(from, dtype, i));
  for (; i < n; ++i) to[i] = widen1(from, dtype, i);
}

inline void narrow1(void* to, int32_t dtype, int64_t i, float x) {
  if (dtype == GRAFT_F32) static_cast<float*>(to)[i] = x;
  else static_cast<uint16_t*>(to)[i] = dtype == GRAFT_F16 ? to_f16(x) : to_bf16(x);
}

constexpr int64_t kLine = 16;  // numbers of a cache line

// A line of each of R rows, into the first cache.
template <int R>
inline void ask_for(const float* x, int64_t row) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) __builtin_prefetch(x + r * row);
}

// c[r][:] (+)= sum over i < n of a[r * row + i * step] * b[i][:], one block of registers. b and c have RN
// vectors per row, side by side. Rows of the next block are asked for: the processor does not foresee so many streams.
// Not inlined, because among other code the sums would not stay in registers.
template <class V, int RM, int RN, bool Accumulate>
[[gnu::noinline]] void product_block(const float* a, int64_t row, int64_t step, const float* b, int64_t n, float* c) {
  using F = typename V::F;
  constexpr int width = RN * V::lanes;
  F sum[RM][RN];
#pragma GCC unroll 16
  for (int r = 0; r < RM; ++r) {
#pragma GCC unroll 8
    for (int x = 0; x < RN; ++x) sum[r][x] = V::set1(0.0f);
  }
  const int64_t run = step == 1 ? kLine : n;
  for (int64_t i = 0; i < n;) {
    if (step == 1) ask_for<RM>(a + RM * row, row);
#pragma GCC unroll 1
    for (const int64_t end = least(i + run, n); i < end; ++i, a += step, b += width) {
      F y[RN];
#pragma GCC unroll 8
      for (int x = 0; x < RN; ++x) y[x] = V::load(b + x * V::lanes);
#pragma GCC unroll 16
      for (int r = 0; r < RM; ++r) {
        const F one = V::set1(a[r * row]);
#pragma GCC unroll 8
        for (int x = 0; x < RN; ++x) sum[r][x] = V::fma(one, y[x], sum[r][x]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < RM; ++r) {
#pragma GCC unroll 8
    for (int x = 0; x < RN; ++x) {
      float* to = c + r * width + x * V::lanes;
      V::store(to, Accumulate ? V::add(V::load(to), sum[r][x]) : sum[r][x]);
    }
  }
}

// The largest power of two below x.
constexpr int power_below(int x) {
  int power = 1;
  while (power * 2 < x) power *= 2;
  return power;
}

// The same for any number of rows. Those left over are most often so many that one block takes them: 4 of 64, 2 of 128.
template <class V, int RN, bool Accumulate, int RM = V::tile_rows(RN)>
inline void product_rows(int64_t rows, const float* a, int64_t row, int64_t step, const float* b, int64_t n, float* c) {
  for (; rows >= RM; rows -= RM, a += RM * row, c += RM * RN * V::lanes) {
    product_block<V, RM, RN, Accumulate>(a, row, step, b, n, c);
  }
  if constexpr (RM > 1) product_rows<V, RN, Accumulate, power_below(RM)>(rows, a, row, step, b, n, c);
}

// The same with long sums in parts, each for all rows: what these share of b stays in a near cache. Both products of
// attention have this form: scores read keys as `a` with step 1, and values are read as `a` with row 1, so that
// neither K nor V is ever packed.
template <class V, int RN, bool Accumulate>
inline void product(int64_t rows, const float* a, int64_t row, int64_t step, const float* b, int64_t n, float* c) {
  const int64_t part = least<int64_t>(n, V::chain);
  product_rows<V, RN, Accumulate>(rows, a, row, step, b, part, c);
  for (int64_t i = part; i < n; i += part) {
    product_rows<V, RN, true>(rows, a + i * step, row, step, b + i * RN * V::lanes, least(part, n - i), c);
  }
}

// to[j][r] = from[r][j] for r < rows, j < n; rows up to `width` are filled with zeros.
template <class V>
inline void pack_transposed(const float* from, int64_t stride, int64_t rows, int64_t n, float* to, int64_t width) {
  for (int64_t r = 0; r < width; r += V::lanes) {
    int64_t j = 0;
    if (r + V::lanes <= rows) {
      for (; j + V::lanes <= n; j += V::lanes) V::transpose(from + r * stride + j, stride, to + j * width + r, width);
    }
    for (; j < n; ++j) {
      for (int64_t x = r; x < r + V::lanes; ++x) to[j * width + x] = x < rows ? from[x * stride + j] : 0.0f;
    }
  }
}

// The way back: to[r][j] = from[j][r] for r < rows, j < n.
template <class V>
inline void unpack_transposed(const float* from, int64_t width, int64_t rows, int64_t n, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r += V::lanes) {
    int64_t j = 0;
    if (r + V::lanes <= rows) {
      for (; j + V::lanes <= n; j += V::lanes) V::transpose(from + j * width + r, width, to + r * stride + j, stride);
    }
    for (int64_t x = r; x < least<int64_t>(r + V::lanes, rows); ++x) {
      for (int64_t i = j; i < n; ++i) to[x * stride + i] = from[i * width + x];
    }
  }
}

}  // namespace
}  // namespace graft

#endif  // GRAFT_VECTOR_MATH_H_
