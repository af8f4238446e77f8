// Which inputs a draft multiplication takes, and their activations in 8 bits.
//
// The cut-off is found by secant steps from a start that depends on this row alone, so a token selects the same inputs
// by itself and in any batch. The order is that of kernels/reference/selection.py. Unless a call says how many inputs it
// wants, the share may be off by 0.002, which costs a draft nothing.

#include "select_draft_simd.inl"

namespace specdec::SPECDEC_ISA {

constexpr double kEffortSlack = 0.002;

// What to take: every score above `cut`, and the first `ties` of those equal to it.
struct Cut {
  float cut;
  int64_t ties;
};

// `scanned` scores are looked at, of which all but `n` are fillings that score zero.
static Cut draft_cut(const float* scores, int64_t scanned, int64_t n, float mean, float effort, int64_t wanted) {
  const double total = static_cast<double>(n);
  const int64_t target = wanted > 0 ? wanted : effort * total < 1 ? 1 : static_cast<int64_t>(effort * total + 0.5);
  const int64_t slack = wanted > 0 ? 0 : static_cast<int64_t>(kEffortSlack * total);
  const ScoreCut cut = find_cut([&](uint32_t bits) { return count_from(scores, scanned, float_of(bits)); }, scanned,
                                target, slack, slack, mean, effort);
  if (cut.low_count <= target + slack) return Cut{float_of(static_cast<uint32_t>(cut.low)), n};
  return Cut{float_of(static_cast<uint32_t>(cut.low)), target - cut.high_count};  // equal scores: take part of them
}

static int64_t choose(const ChooseCall& call) {
  const int64_t groups = (call.in + kGroup - 1) / kGroup;
  const int64_t tail = call.in - (groups - 1) * kGroup;
  const uint32_t last_mask = tail == kGroup ? ~0U : (1U << tail) - 1;
  if (call.effort >= 1.0F) {
    for (int64_t g = 0; g < groups; ++g) call.masks[g] = g == groups - 1 ? last_mask : ~0U;
    return call.in;
  }
  const float sum = score_inputs(call.x, call.scores, groups * kGroup, call.scratch);
  const Cut cut = draft_cut(call.scratch, groups * kGroup, call.in, sum / static_cast<float>(call.in), call.effort,
                            call.target);
  int64_t taken = 0, ties = cut.ties;
  for (int64_t g = 0; g < groups; ++g) {
    const float* scores = call.scratch + g * kGroup;
    uint32_t mask = mask_from(scores, cut.cut);
    if (g == groups - 1) mask &= last_mask;
    if (ties < call.in) {
      uint32_t equal = mask & ~mask_from(scores, float_of(bits_of(cut.cut) + 1));
      for (; equal != 0 && ties > 0; --ties) equal &= equal - 1;
      mask &= ~equal;
    }
    taken += __builtin_popcount(mask);
    call.masks[g] = mask;
  }
  return taken;
}

}  // namespace specdec::SPECDEC_ISA
