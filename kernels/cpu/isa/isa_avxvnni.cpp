// The kernels for avxvnni; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA avxvnni
#include "simd_avx2.h"

#include "isa.inl"

namespace specdec {

const KernelTable& avxvnni_table() {
  static const KernelTable table = avxvnni::make_table("avxvnni");
  return table;
}

}  // namespace specdec
