// The kernels for neon; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA neon
#include "simd_neon.h"

#include "isa.inl"

namespace specdec {

const KernelTable& neon_table() {
  static const KernelTable table = neon::make_table("neon");
  return table;
}

}  // namespace specdec
