// Fills DraftKernels for one instruction set; included by each isa_*.cpp inside no namespace, after its simd header.

namespace specdec::SPECDEC_ISA {

inline DraftKernels draft_kernels() { return DraftKernels{}; }

}  // namespace specdec::SPECDEC_ISA
