// What the kernels ask of the GPU, one short function per instruction. tests/gpu/emulator has the same
// functions in plain C++, so that the kernels run (slowly) where there is no GPU.
#ifndef GRAFT_DEVICE_CUH_
#define GRAFT_DEVICE_CUH_

#include <stddef.h>
#include <stdint.h>

namespace graft::gpu {

// 16-bit storage; arithmetic is always fp32.
struct F16 { uint16_t bits; };
struct BF16 { uint16_t bits; };

}  // namespace graft::gpu

#ifdef GRAFT_CUDA_EMULATOR
#include "emulator.h"
#else

#include <cuda_runtime.h>

#define GRAFT_DEVICE __device__ __forceinline__
#define GRAFT_ANYWHERE __host__ __device__ constexpr

namespace graft::gpu {

GRAFT_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char bytes[];
  return bytes;
}

GRAFT_DEVICE float widen(float x) { return x; }
GRAFT_DEVICE float widen(BF16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
GRAFT_DEVICE float widen(F16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Two numbers, rounded to nearest even, in one register; the first in the low half.
GRAFT_DEVICE uint32_t pack(BF16, float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
GRAFT_DEVICE uint32_t pack(F16, float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// Four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
GRAFT_DEVICE void load_matrices(uint32_t (&m)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}
GRAFT_DEVICE void load_matrices_transposed(uint32_t (&m)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}

// c [16 x 8] += a [16 x 16] b [16 x 8], in the register layout of mma.m16n8k16.
GRAFT_DEVICE void multiply(BF16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
GRAFT_DEVICE void multiply(F16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory; zeros where not valid, and then global is not read.
GRAFT_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
GRAFT_DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 16 bytes that are read once: past L1.
GRAFT_DEVICE uint4 load_stream(const void* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

// Four sums into global memory, 16-byte aligned.
GRAFT_DEVICE void add_four(float* to, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

GRAFT_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// NULL, or what CUDA says. Kernels take more than 48 KiB of shared memory only after asking for it.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shared > 48 * 1024)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace graft::gpu
#endif  // GRAFT_CUDA_EMULATOR

namespace graft::gpu {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLog2e = 1.4426950408889634f;
constexpr uint32_t kAll = 0xffffffffu;

GRAFT_DEVICE int lane() { return static_cast<int>(threadIdx.x % 32); }
GRAFT_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32); }

GRAFT_DEVICE float warp_max(float x) {
  for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, i));
  return x;
}
GRAFT_DEVICE float warp_sum(float x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(kAll, x, i);
  return x;
}

template <class T>
GRAFT_DEVICE T narrow(float x) {
  return T{static_cast<uint16_t>(pack(T{}, x, 0.0f))};
}
template <>
GRAFT_DEVICE float narrow<float>(float x) {
  return x;
}

}  // namespace graft::gpu

#endif  // GRAFT_DEVICE_CUH_
