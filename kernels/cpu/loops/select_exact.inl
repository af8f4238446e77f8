// Effort for the exact view: which tiers of which inputs one row takes, exactly as kernels/reference/selection.py says.
//
// The order is total: falling score, then rising tier, then rising input.

#include "select_search.inl"

namespace specdec::SPECDEC_ISA {

// Weights in the tiers that score at least `low`.
static int64_t weights_from(const SelectCall& call, uint32_t low) {
  int64_t weights = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const uint32_t* keys = call.keys + k * call.in;
    int32_t count = 0;
    for (int64_t i = 0; i < call.in; ++i) count += static_cast<int32_t>(keys[i]) >= static_cast<int32_t>(low);
    weights += int64_t{count} * call.tier_sizes[k];
  }
  return weights;
}

static void select_tiers(const SelectCall& call) {
  float sum = 0.0F;
  int bucket = 0, smallest = call.tier_sizes[0];
  for (int k = 0; k < call.tiers; ++k) {
    const float* scores = call.scores + k * call.in;
    for (int64_t i = 0; i < call.in; ++i) {
      const float score = __builtin_fabsf(call.x[i]) * scores[i];
      sum += score;
      __builtin_memcpy(call.keys + k * call.in + i, &score, sizeof score);
    }
    bucket += call.tier_sizes[k];
    smallest = call.tier_sizes[k] < smallest ? call.tier_sizes[k] : smallest;
  }
  const int64_t total = call.in * bucket;
  const float effort = static_cast<float>(static_cast<double>(call.target) / static_cast<double>(total));
  // So many that the last one in the order cannot be spared; a tier more would be one too many.
  const ScoreCut cut = find_cut([&](uint32_t low) { return weights_from(call, low); }, total, call.target, 0,
                                smallest - 1, sum / static_cast<float>(call.in * call.tiers), effort);
  const bool all = cut.low_count < call.target + smallest;  // every score of `low` or more
  const auto least = static_cast<uint32_t>(all ? cut.low : cut.high);
  for (int64_t i = 0; i < call.in; ++i) {
    uint8_t taken = 0;
    for (int k = 0; k < call.tiers; ++k)
      taken = static_cast<uint8_t>(taken + (call.keys[k * call.in + i] >= least ? 1 : 0));
    call.chosen[i] = taken;
  }
  int64_t left = all ? 0 : call.target - cut.high_count;  // to take from the scores that equal `low`
  for (int k = 0; k < call.tiers && left > 0; ++k) {
    const uint32_t* keys = call.keys + k * call.in;
    for (int64_t i = 0; i < call.in && left > 0; ++i) {
      if (keys[i] != cut.low) continue;
      call.chosen[i] = static_cast<uint8_t>(call.chosen[i] + 1);
      left -= call.tier_sizes[k];
    }
  }
}

}  // namespace specdec::SPECDEC_ISA
