// Effort for the exact view: which tiers of which inputs one row takes, exactly as kernels/reference/selection.py says.
//
// The order is total: falling score, then rising tier, then rising input. The last tier taken is found digit by digit
// of the score's bits (scores are not negative, so their bits order as they do), and equal scores by their place.

namespace specdec::SPECDEC_ISA {

struct Digit {
  int shift, bits;
};
constexpr Digit kDigits[] = {{20, 12}, {10, 10}, {0, 10}};

// Weights in the scores whose higher digits equal `prefix`, by digit; four tables side by side, as neighbours often fall
// into one bin and would wait for each other.
static void histogram(const SelectCall& call, Digit digit, bool whole, uint32_t prefix, uint32_t* counts) {
  const uint32_t bins = 1U << digit.bits, low = bins - 1;
  for (uint32_t b = 0; b < bins * 4; ++b) counts[b] = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const auto size = static_cast<uint32_t>(call.tier_sizes[k]);
    const uint32_t* keys = call.keys + k * call.in;
    for (int64_t i = 0; i < call.in; ++i) {
      if (!whole && keys[i] >> (digit.shift + digit.bits) != prefix) continue;
      counts[(keys[i] >> digit.shift & low) * 4 + static_cast<uint32_t>(i & 3)] += size;
    }
  }
}

static void select_tiers(const SelectCall& call) {
  for (int k = 0; k < call.tiers; ++k) {
    const float* scores = call.scores + k * call.in;
    for (int64_t i = 0; i < call.in; ++i) {
      const float score = __builtin_fabsf(call.x[i]) * scores[i];
      __builtin_memcpy(call.keys + k * call.in + i, &score, sizeof score);
    }
  }
  uint32_t prefix = 0;
  int64_t left = call.target;  // weights still to take from the scores that share the prefix
  for (const Digit digit : kDigits) {
    histogram(call, digit, digit.shift == kDigits[0].shift, prefix, call.counts);
    uint32_t bin = (1U << digit.bits) - 1;
    for (;; --bin) {
      const uint32_t* four = call.counts + bin * 4;
      const int64_t here = int64_t{four[0]} + four[1] + four[2] + four[3];
      if (here >= left || bin == 0) break;
      left -= here;
    }
    prefix = prefix << digit.bits | bin;
  }
  for (int64_t i = 0; i < call.in; ++i) call.chosen[i] = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const uint32_t* keys = call.keys + k * call.in;
    for (int64_t i = 0; i < call.in; ++i) call.chosen[i] = static_cast<uint8_t>(call.chosen[i] + (keys[i] > prefix ? 1 : 0));
  }
  for (int k = 0; k < call.tiers && left > 0; ++k) {
    const uint32_t* keys = call.keys + k * call.in;
    for (int64_t i = 0; i < call.in && left > 0; ++i) {
      if (keys[i] != prefix) continue;
      call.chosen[i] = static_cast<uint8_t>(call.chosen[i] + 1);
      left -= call.tier_sizes[k];
    }
  }
}

}  // namespace specdec::SPECDEC_ISA
