#include "cpu.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace graft {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon"};
constexpr int kCount = sizeof kNames / sizeof *kNames;

#if defined(__x86_64__)
// Register state that the operating system saves: without it a vector instruction traps even if cpuid lists it.
uint64_t saved_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

Isa detect() {
  uint32_t a, b, c, d;
  constexpr uint32_t base = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, base)) return Isa::scalar;
  constexpr uint64_t ymm = 0x6, zmm = 0xe6;
  if ((saved_state() & ymm) != ymm) return Isa::scalar;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, bit_AVX2)) return Isa::scalar;
  constexpr uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  if ((saved_state() & zmm) != zmm || !has(b, avx512)) return Isa::avx2;
  if (!has(c, bit_AVX512VNNI)) return Isa::avx512;
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, bit_AVX512BF16);
  return bf16 ? Isa::avx512bf16 : Isa::avx512vnni;
}
#elif defined(__aarch64__)
Isa detect() { return Isa::neon; }  // no AArch64 processor is without
#else
Isa detect() { return Isa::scalar; }
#endif

}  // namespace

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool parse_isa(const char* name, Isa* isa) {
  for (int i = 0; i < kCount; ++i) {
    if (strcmp(name, kNames[i]) != 0) continue;
    *isa = static_cast<Isa>(i);
    return true;
  }
  return false;
}

std::string isa_names() {
  std::string all = kNames[0];
  for (int i = 1; i < kCount; ++i) all += std::string(", ") + kNames[i];
  return all;
}

}  // namespace graft
