#include "cpu.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace graft {
namespace {

constexpr const char* kNames[] = {"scalar",     "avx2",       "avxvnni", "avx512",
                                  "avx512vnni", "avx512bf16", "neon",    "neondotprod"};
constexpr int kCount = sizeof kNames / sizeof *kNames;

constexpr uint32_t bit_of(Isa isa) { return 1u << static_cast<int>(isa); }

// What the processor has beyond plain C++, one bit a level.
#if defined(__x86_64__)
// Register state that the operating system saves: without it a vector instruction traps even if cpuid lists it.
uint64_t saved_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

uint32_t detect() {
  uint32_t a, b, c, d;
  constexpr uint32_t base = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, base)) return 0;
  constexpr uint64_t ymm = 0x6, zmm = 0xe6;
  if ((saved_state() & ymm) != ymm) return 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, bit_AVX2)) return 0;
  const uint32_t features = b, more = c;
  constexpr uint32_t avxvnni = 1 << 4;  // some processors with AVX-512 are without, and some without AVX-512 have it
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) a = 0;
  const uint32_t narrow = bit_of(Isa::avx2) | (has(a, avxvnni) ? bit_of(Isa::avxvnni) : 0);
  constexpr uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  if ((saved_state() & zmm) != zmm || !has(features, avx512)) return narrow;
  const uint32_t wide = narrow | bit_of(Isa::avx512);
  if (!has(more, bit_AVX512VNNI)) return wide;
  return wide | bit_of(Isa::avx512vnni) | (has(a, bit_AVX512BF16) ? bit_of(Isa::avx512bf16) : 0);
}
#elif defined(__aarch64__)
uint32_t detect() {  // no AArch64 processor is without the first
  return bit_of(Isa::neon) | ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0 ? bit_of(Isa::neondotprod) : 0);
}
#else
uint32_t detect() { return 0; }
#endif

uint32_t levels() {
  static const uint32_t found = bit_of(Isa::scalar) | detect();
  return found;
}

// The names of the levels whose bits are set.
std::string names_of(uint32_t which) {
  std::string all;
  for (int i = 0; i < kCount; ++i) {
    if ((which >> i & 1) != 0) all += std::string(all.empty() ? "" : ", ") + kNames[i];
  }
  return all;
}

}  // namespace

bool offers(Isa isa) { return (levels() & bit_of(isa)) != 0; }

Isa detected_isa() { return static_cast<Isa>(31 - __builtin_clz(levels())); }

std::string offered_isas() { return names_of(levels()); }

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool parse_isa(const char* name, Isa* isa) {
  for (int i = 0; i < kCount; ++i) {
    if (strcmp(name, kNames[i]) != 0) continue;
    *isa = static_cast<Isa>(i);
    return true;
  }
  return false;
}

std::string isa_names() { return names_of((1u << kCount) - 1); }

}  // namespace graft
