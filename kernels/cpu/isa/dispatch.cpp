#include "dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(SPECDEC_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace specdec {

#if defined(__x86_64__)
#if defined(SPECDEC_AMX)
const KernelTable& avx512amx_table();
#endif
const KernelTable& avx512vbmi2_table();
const KernelTable& avx512_table();
#if defined(SPECDEC_AVXVNNI)
const KernelTable& avxvnni_table();
#endif
const KernelTable& avx2_table();
#elif defined(__aarch64__)
const KernelTable& neon_dotprod_table();
const KernelTable& neon_table();
#endif
const KernelTable& scalar_table();

namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The compiler's own check also asks whether the operating system saves the wide registers.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
#if defined(SPECDEC_AVXVNNI)
// Of byte products in 256 bits, which processors without AVX-512 have too.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1U << 4) != 0;
}
#endif
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512vbmi2() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512vnni");
}
#if defined(SPECDEC_AMX)
// The system gives a process the registers when it asks for them (and refuses where a signal stack is too small).
bool has_avx512amx() {
  static const bool usable = [] {
    constexpr int kRequest = 0x1023, kTiles = 18;  // ARCH_REQ_XCOMP_PERM, of the kernel's asm/prctl.h
    constexpr unsigned kInt8 = 1U << 25, kTile = 1U << 24;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512vbmi2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kInt8) != 0 && (d & kTile) != 0 &&
           syscall(SYS_arch_prctl, kRequest, kTiles) == 0;
  }();
  return usable;
}
#endif
#elif defined(__aarch64__)
bool has_dotprod() {
#if defined(__APPLE__)
  return true;  // every Apple processor of the 64-bit Macs has it
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}
#endif

struct Entry {
  const char* name;
  bool (*supported)();
  const KernelTable& (*table)();
};

constexpr Entry kEntries[] = {
#if defined(__x86_64__)
#if defined(SPECDEC_AMX)
    {"avx512amx", has_avx512amx, avx512amx_table},
#endif
    {"avx512vbmi2", has_avx512vbmi2, avx512vbmi2_table},
    {"avx512", has_avx512, avx512_table},
#if defined(SPECDEC_AVXVNNI)
    {"avxvnni", has_avxvnni, avxvnni_table},
#endif
    {"avx2", has_avx2, avx2_table},
#elif defined(__aarch64__)
    {"neon_dotprod", has_dotprod, neon_dotprod_table},
    {"neon", always, neon_table},
#endif
    {"scalar", always, scalar_table},
};

}  // namespace

bool asks_alone() {
#if defined(__x86_64__)
  static const bool intel = __builtin_cpu_is("intel") != 0;
  return intel;
#else
  return false;
#endif
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& entry : kEntries)
    if (entry.supported()) names.emplace_back(entry.name);
  return names;
}

const KernelTable& kernels_for(const std::string& name) {
  std::string known;
  for (const auto& entry : kEntries) {
    if (!entry.supported()) continue;
    if (name.empty() || name == entry.name) return entry.table();
    known += known.empty() ? entry.name : std::string(", ") + entry.name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not one that this machine can run: choose from " +
                              known);
}

}  // namespace specdec
