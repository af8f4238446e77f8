// The kernels of avx512vbmi2, and AMX where several rows meet quantised matrices; its compiler flags are in CMakeLists.txt.
#define SPECDEC_ISA avx512amx
#include "simd_avx512.h"

#include "kernel_table.h"

#include "hints.h"
#include "int4_simd.inl"
#include "quant_amx.inl"

namespace specdec {

const KernelTable& avx512vbmi2_table();

namespace avx512amx {

static void multiply(const QuantCall& call) {
  if (!amx_pays(call.rows[0], call.choices != nullptr))  // then there is one tile of rows
    avx512vbmi2_table().quant.multiply(call);
  else
    amx_multiply(call);
}

static void activations(const QuantRowsCall& call) {
  avx512vbmi2_table().quant.activations(call);
  if (amx_pays(call.rows, call.choices != nullptr)) to_row_order(call);
}

}  // namespace avx512amx

const KernelTable& avx512amx_table() {
  static const KernelTable table = [] {
    KernelTable made = avx512vbmi2_table();
    made.name = "avx512amx";
    made.quant.tile_rows = avx512amx::kAmxRows;
    made.quant.multiply = avx512amx::multiply;
    made.quant.activations = avx512amx::activations;
    return made;
  }();
  return table;
}

}  // namespace specdec
