// Every kernel, instantiated for the instruction set SPECDEC_ISA whose simd_*.h the including file has chosen.
//
// Everything lives in a namespace of that name and uses no inline function of the standard library: a linker keeps one
// copy of such a function for all files, and that copy might use instructions that the machine lacks.

#include "kernel_table.h"

#include "dense.inl"
#include "select_exact.inl"
#include "elementwise.inl"
#include "attention.inl"
#include "draft_kernels.inl"
#include "quant.inl"
#include "quant_activations.inl"
#include "quant_nested.inl"
#include "search.inl"
#include "fff.inl"

namespace specdec::SPECDEC_ISA {

inline KernelTable make_table(const char* name) {
  return KernelTable{name, dense_kernels(), select_tiers, attention_kernels(), element_kernels(), draft_kernels(), quant_kernels(),
                     search_kernels(), fff_kernels()};
}

}  // namespace specdec::SPECDEC_ISA
