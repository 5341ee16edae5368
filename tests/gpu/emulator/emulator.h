// A GPU in plain C++, for tests: every CUDA thread is a fiber, warps exchange values at rendezvous, and the
// instructions of device.cuh are computed as their documentation says. Slow, exact about who waits for whom:
// copies land only when they are waited for, and a thread that never arrives is reported.
#ifndef GRAFT_EMULATOR_H_
#define GRAFT_EMULATOR_H_

#include <math.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <tuple>
#include <type_traits>

#define GRAFT_DEVICE inline
#define GRAFT_ANYWHERE constexpr
#define __global__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct dim3_like { unsigned x; };

extern dim3_like threadIdx, blockIdx, blockDim, gridDim;

// The runtime's host side, as far as plan.cu asks for it.
using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess = 0 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
inline cudaError_t cudaGetDevice(int* id) { return *id = 0; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int id);
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }

namespace graft::emulator {

// Every lane gives `bytes` (at most 64) and gets all lanes' in a [32][64] array, valid until its next exchange.
const char (*exchange(const void* mine, size_t bytes))[64];
void block_barrier();
void add_copy(void* to, const void* from);  // from NULL: zeros
void land_copies();
char* shared();
const char* run(const std::function<void()>& kernel, int64_t blocks, int threads, size_t shared_bytes);

template <class T>
T peer(const char (*all)[64], int lane) {
  T x;
  memcpy(&x, all[lane], sizeof(T));
  return x;
}
template <class T>
const char (*give(const T& mine))[64] {
  return exchange(&mine, sizeof(T));
}
inline int lane() { return static_cast<int>(threadIdx.x % 32); }

}  // namespace graft::emulator

inline void __syncthreads() { graft::emulator::block_barrier(); }
inline void __syncwarp() { graft::emulator::give(0); }
int __syncthreads_count(int predicate);

template <class T>
T __shfl_sync(uint32_t, T x, int from) {
  return graft::emulator::peer<T>(graft::emulator::give(x), from % 32);
}
template <class T>
T __shfl_xor_sync(uint32_t, T x, int mask) {
  return graft::emulator::peer<T>(graft::emulator::give(x), graft::emulator::lane() ^ mask);
}
inline uint32_t __ballot_sync(uint32_t, bool flag) {
  const auto all = graft::emulator::give(flag);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(graft::emulator::peer<bool>(all, i)) << i;
  return bits;
}
inline bool __any_sync(uint32_t mask, bool flag) { return __ballot_sync(mask, flag) != 0; }
template <class F>
uint32_t reduce_lanes(uint32_t x, const F& f) {
  const auto all = graft::emulator::give(x);
  uint32_t y = graft::emulator::peer<uint32_t>(all, 0);
  for (int i = 1; i < 32; ++i) y = f(y, graft::emulator::peer<uint32_t>(all, i));
  return y;
}
inline uint32_t __reduce_add_sync(uint32_t, uint32_t x) {
  return reduce_lanes(x, [](uint32_t a, uint32_t b) { return a + b; });
}
inline uint32_t __reduce_min_sync(uint32_t, uint32_t x) {
  return reduce_lanes(x, [](uint32_t a, uint32_t b) { return min(a, b); });
}
inline uint32_t __reduce_max_sync(uint32_t, uint32_t x) {
  return reduce_lanes(x, [](uint32_t a, uint32_t b) { return max(a, b); });
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline uint32_t __float_as_uint(float x) {
  uint32_t y;
  memcpy(&y, &x, 4);
  return y;
}
inline float __uint_as_float(uint32_t x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
template <class T>
T atomicAdd(T* to, T x) {  // fibers do not interrupt one another
  const T before = *to;
  *to += x;
  return before;
}

namespace graft::gpu {

inline char* shared_memory() { return emulator::shared(); }

inline float widen(float x) { return x; }
inline float widen(BF16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(F16 x) {
  _Float16 y;
  memcpy(&y, &x.bits, 2);
  return static_cast<float>(y);
}
inline uint16_t half_bits(BF16, float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t half_bits(F16, float x) {
  const _Float16 y = static_cast<_Float16>(x);
  uint16_t bits;
  memcpy(&bits, &y, 2);
  return bits;
}
template <class T>
uint32_t pack(T type, float low, float high) {
  return half_bits(type, low) | static_cast<uint32_t>(half_bits(type, high)) << 16;
}

inline void load_matrices(uint32_t (&m)[4], const void* row) {
  const auto all = emulator::give(row);
  for (int i = 0; i < 4; ++i) {
    const char* from = emulator::peer<const char*>(all, 8 * i + emulator::lane() / 4);
    memcpy(&m[i], from + emulator::lane() % 4 * 4, 4);
  }
}
inline void load_matrices_transposed(uint32_t (&m)[4], const void* row) {
  const auto all = emulator::give(row);
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int x = 0; x < 2; ++x) {
      const char* from = emulator::peer<const char*>(all, 8 * i + emulator::lane() % 4 * 2 + x);
      memcpy(&pair[x], from + emulator::lane() / 4 * 2, 2);
    }
    memcpy(&m[i], pair, 4);
  }
}

template <class T>
float packed(uint32_t pair, int x) {
  return widen(T{static_cast<uint16_t>(pair >> (16 * x))});
}
struct MmaOperands {
  uint32_t a[4], b[2];
};
template <class T>
void multiply(T, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto all = emulator::give(MmaOperands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  for (int x = 0; x < 4; ++x) {
    const int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2 + x % 2;
    for (int k = 0; k < 16; ++k) {
      const auto of_a = emulator::peer<MmaOperands>(all, row * 4 + k % 8 / 2);
      const auto of_b = emulator::peer<MmaOperands>(all, column * 4 + k % 8 / 2);
      c[x] += packed<T>(of_a.a[x / 2 + k / 8 * 2], k % 2) * packed<T>(of_b.b[k / 8], k % 2);
    }
  }
}

inline void copy_async(void* shared, const void* global, bool valid) {
  emulator::add_copy(shared, valid ? global : nullptr);
}
inline void wait_copies() { emulator::land_copies(); }
inline uint4 load_stream(const void* from) {
  uint4 x;
  memcpy(&x, from, 16);
  return x;
}
inline void add_four(float* to, float a, float b, float c, float d) {
  to[0] += a, to[1] += b, to[2] += c, to[3] += d;
}
inline float power_of_two(float x) { return exp2f(x); }

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, cudaStream_t,
                   const Arguments&... arguments) {
  return emulator::run([&] { kernel(arguments...); }, blocks, threads, shared);
}

}  // namespace graft::gpu

#endif  // GRAFT_EMULATOR_H_
