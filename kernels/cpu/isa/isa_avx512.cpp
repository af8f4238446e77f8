// The kernels for avx512; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA avx512
#include "simd_avx512.h"

#include "isa.inl"

namespace specdec {

const KernelTable& avx512_table() {
  static const KernelTable table = avx512::make_table("avx512");
  return table;
}

}  // namespace specdec
