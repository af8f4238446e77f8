// The kernels for avx2; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA avx2
#include "simd_avx2.h"

#include "isa.inl"

namespace specdec {

const KernelTable& avx2_table() {
  static const KernelTable table = avx2::make_table("avx2");
  return table;
}

}  // namespace specdec
