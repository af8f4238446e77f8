// The kernels for scalar; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA scalar
#define SPECDEC_SCALAR  // whatever the compiler could use
#include "simd_scalar.h"

#include "isa.inl"

namespace specdec {

const KernelTable& scalar_table() {
  static const KernelTable table = scalar::make_table("scalar");
  return table;
}

}  // namespace specdec
