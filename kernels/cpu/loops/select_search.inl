// The cut-off between scores that are taken and scores that are not, found by counting.
//
// Scores are not negative, so the bits of a float order as its values do, and are close to linear in the logarithm. A
// count over all scores is one plain pass; the search needs a handful. It starts from the row's own scores alone, so a
// token finds the same cut by itself and in any batch.

namespace specdec::SPECDEC_ISA {

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

// Scores of at least `low` count `low_count`, which is the target or more; of at least `high`, `high_count`, which is
// less. Unless low_count lies within what was asked for, high is low + 1: equal scores straddle the target.
struct ScoreCut {
  int64_t low, low_count, high, high_count;
};

// count(bits) is what the scores of at least `bits` add up to: `total` at 0, falling. Looks for a count from `target` -
// `under` to `target` + `over`; `mean` is of the scores, `effort` the share that the target is of the total.
template <class Count>
static inline ScoreCut find_cut(const Count& count, int64_t total, int64_t target, int64_t under, int64_t over,
                                float mean, float effort) {
  ScoreCut cut{0, total, int64_t{0x7F800000} + 1, 0};
  // Scores near an exponential distribution: the share above t is exp(-t / mean).
  const float log_share = -__builtin_logf(effort), u = log_share > 0.01F ? log_share : 0.01F;
  int64_t at = bits_of(mean * u);
  const double slope = -static_cast<double>(total) * effort * u * 0.693 / (1 << 23);  // count per step of the bits
  while (cut.high - cut.low > 1) {
    if (at <= cut.low || at >= cut.high) at = cut.low + (cut.high - cut.low) / 2;
    const int64_t found = count(static_cast<uint32_t>(at));
    if (found >= target - under && found <= target + over) return {at, found, at + 1, 0};
    if (found > target) {
      cut.low = at;
      cut.low_count = found;
    } else {
      cut.high = at;
      cut.high_count = found;
    }
    if (cut.low > 0 && cut.high <= int64_t{0x7F800000}) {
      // The secant between both ends, never less than a sixteenth from one: a steep flank would hold it there.
      const double share =
          static_cast<double>(cut.low_count - target) / static_cast<double>(cut.low_count - cut.high_count);
      const int64_t width = cut.high - cut.low, margin = width / 16;
      const int64_t step = static_cast<int64_t>(static_cast<double>(width) * share);
      at = cut.low + (step < margin ? margin : step > width - margin ? width - margin : step);
    } else {  // Newton's step with the assumed slope
      at += static_cast<int64_t>(static_cast<double>(target - found) / slope * 1.5);
    }
  }
  return cut;
}

}  // namespace specdec::SPECDEC_ISA
