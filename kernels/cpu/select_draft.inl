// Which inputs a draft multiplication takes, and their activations in 8 bits.
//
// The cut-off is found by secant steps from a start that depends on this row alone, so a token selects the same inputs
// by itself and in any batch. It is not the exact order of kernels/reference/selection.py: the share may be off by
// 0.002, which costs a draft nothing.

#include "select_draft_simd.inl"

namespace specdec::SPECDEC_ISA {

constexpr double kEffortSlack = 0.002;

// What to take: every score above `cut`, and the first `ties` of those equal to it.
struct Cut {
  float cut;
  int64_t ties;
};

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// Scores are not negative, so their bits order as they do, and are close to linear in the logarithm.
// `scanned` scores are looked at, of which all but `n` are fillings that score zero.
static Cut find_cut(const float* scores, int64_t scanned, int64_t n, float mean, float effort) {
  const double total = static_cast<double>(n);
  const int64_t target = effort * total < 1 ? 1 : static_cast<int64_t>(effort * total + 0.5);
  const int64_t slack = static_cast<int64_t>(kEffortSlack * total);
  int64_t low = 0, high = int64_t{0x7F800000} + 1;  // takes everything, takes nothing
  int64_t low_count = scanned, high_count = 0;
  // Scores near an exponential distribution: the share above t is exp(-t / mean).
  const float u = -__builtin_logf(effort);
  int64_t at = bits_of(mean * (u > 0.01F ? u : 0.01F));
  double slope = -total * effort * (u > 0.01F ? u : 0.01F) * 0.693 / (1 << 23);  // count per step of the bits
  while (high - low > 1) {
    if (at <= low || at >= high) at = low + (high - low) / 2;
    const int64_t count = count_from(scores, scanned, float_of(static_cast<uint32_t>(at)));
    if (count >= target - slack && count <= target + slack) return Cut{float_of(static_cast<uint32_t>(at)), n};
    if (count > target) {
      low = at;
      low_count = count;
    } else {
      high = at;
      high_count = count;
    }
    // The secant once both ends are known to be near, Newton's step with the assumed slope before.
    const bool bracketed = low > 0 && high <= int64_t{0x7F800000};
    if (bracketed) {
      const double share = static_cast<double>(low_count - target) / static_cast<double>(low_count - high_count);
      const int64_t width = high - low;
      int64_t step = static_cast<int64_t>(static_cast<double>(width) * share);
      // Never less than a sixteenth from an end: a steep flank would hold regula falsi there.
      const int64_t margin = width / 16;
      step = step < margin ? margin : step > width - margin ? width - margin : step;
      at = low + step;
    } else {
      at += static_cast<int64_t>(static_cast<double>(target - count) / slope * 1.5);
    }
  }
  // Equal scores straddle the target: take part of them.
  return Cut{float_of(static_cast<uint32_t>(low)), target - high_count};
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
  const Cut cut = find_cut(call.scratch, groups * kGroup, call.in, sum / static_cast<float>(call.in), call.effort);
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
