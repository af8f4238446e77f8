// Fills DraftKernels for one instruction set; included by each isa_*.cpp inside no namespace, after its simd header.

#include "select_draft.inl"
#include "int4.inl"
#include "int4_build.inl"
#include "select_draft_tiers.inl"
#include "bucket8.inl"
#include "draft_head.inl"

namespace specdec::SPECDEC_ISA {

static void add_up(const float* sums, int64_t chunks, int64_t stride, int64_t count, float* y) {
  int64_t o = 0;
  for (; o + kLanes <= count; o += kLanes) {
    F32 total = load(sums + o);
    for (int64_t c = 1; c < chunks; ++c) total = add(total, load(sums + c * stride + o));
    store(y + o, total);
  }
  for (; o < count; ++o) {
    y[o] = sums[o];
    for (int64_t c = 1; c < chunks; ++c) y[o] += sums[c * stride + o];
  }
}

inline DraftKernels draft_kernels() {
  return DraftKernels{choose, choose_tiers, quantise_group, int4, int4_build, bucket8, bucket8_rank, add_up, head_rows};
}

}  // namespace specdec::SPECDEC_ISA
