// The kernels for avx512vbmi2; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA avx512vbmi2
#include "simd_avx512.h"

#include "isa.inl"

namespace specdec {

const KernelTable& avx512vbmi2_table() {
  static const KernelTable table = avx512vbmi2::make_table("avx512vbmi2");
  return table;
}

}  // namespace specdec
