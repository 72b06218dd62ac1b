#include "cpu/cpu_features.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fdpp::cpu {

namespace {

#if defined(__x86_64__)
// AMX needs the processor (CPUID leaf 7), registers that the operating system saves (XCR0 bits 17 and 18), and, on
// Linux, the kernel's permission for this process (XFEATURE_XTILEDATA = 18), which it may refuse.
bool amx_permitted() {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  unsigned xcr0, xcr0_high;
  __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  if ((xcr0 & 0x60000u) != 0x60000u) return false;
#if defined(__linux__)
  constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (avx512_bf16 && amx_permitted()) {
    static const Kernels amx = amx_kernels();  // its code is AVX-512 itself: only here may it run
    tables.push_back(&amx);
  }
  if (avx512_bf16) tables.push_back(&kAvx512Bf16Kernels);
  if (avx512) tables.push_back(&kAvx512Kernels);
  if (avx2) tables.push_back(&kAvx2Kernels);
#endif
  tables.push_back(&kPortableKernels);
  return tables;
}

static const Kernels* select() {
  const std::vector<const Kernels*> tables = available_kernels();
  const char* wanted = std::getenv("FDPP_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return tables.front();
  std::string names;
  for (const Kernels* table : tables) {
    if (std::strcmp(table->name, wanted) == 0) return table;
    names += names.empty() ? table->name : std::string(", ") + table->name;
  }
  throw std::invalid_argument(
      "FDPP_CPU_ISA must name an instruction set that this processor has and fdpp has kernels for"
      " (" +
      names + "); got " + wanted);
}

const Kernels& kernels() {
  static const Kernels* const selected = select();
  return *selected;
}

std::string device_name() {
  std::string processor = "generic";
#if defined(__x86_64__)
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0) {
    char vendor[13] = {};
    std::memcpy(vendor, &ebx, 4);
    std::memcpy(vendor + 4, &edx, 4);
    std::memcpy(vendor + 8, &ecx, 4);
    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    const unsigned base_family = (eax >> 8) & 0xf;
    const unsigned family = base_family + (base_family == 0xf ? (eax >> 20) & 0xff : 0);
    const unsigned model = ((eax >> 4) & 0xf) | ((eax >> 12) & 0xf0);
    processor = std::string(vendor) + "-" + std::to_string(family) + "-" + std::to_string(model);
  }
#endif
  return processor + "-" + kernels().name;
}

}  // namespace fdpp::cpu
