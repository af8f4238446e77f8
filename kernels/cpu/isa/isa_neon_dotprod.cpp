// The kernels for neon_dotprod; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA neon_dotprod
#include "simd_neon.h"

#include "isa.inl"

namespace specdec {

const KernelTable& neon_dotprod_table() {
  static const KernelTable table = neon_dotprod::make_table("neon_dotprod");
  return table;
}

}  // namespace specdec
