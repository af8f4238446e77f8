// Effort for the exact view: which tiers of which inputs one row takes, exactly as kernels/reference/selection.py says.
//
// The order is total: falling score, then rising tier, then rising input. The last tier taken is found digit by digit
// of the score's bits (scores are not negative, so their bits order as they do), and equal scores by their place.

namespace specdec::SPECDEC_ISA {

struct Digit {
  int shift, bits;
};
constexpr Digit kDigits[] = {{20, 12}, {10, 10}, {0, 10}};

// Scores under consideration: all at first, then those that share the digits found; tier k's are keys[from[k]..to[k]-1].
struct Candidates {
  uint32_t* keys;
  int64_t from[kMaxTiers], to[kMaxTiers];
};

// Weights by one digit of the candidates' scores; four tables side by side, as neighbours often fall into one bin and
// would wait for each other.
static void histogram(const SelectCall& call, const Candidates& all, Digit digit) {
  const uint32_t bins = 1U << digit.bits, low = bins - 1;
  for (uint32_t b = 0; b < bins * 4; ++b) call.counts[b] = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const auto size = static_cast<uint32_t>(call.tier_sizes[k]);
    for (int64_t i = all.from[k]; i < all.to[k]; ++i)
      call.counts[(all.keys[i] >> digit.shift & low) * 4 + static_cast<uint32_t>(i & 3)] += size;
  }
}

// The bin in which the last weight lies; `left` becomes what is to be taken from it.
static uint32_t find_bin(const SelectCall& call, Digit digit, int64_t* left) {
  uint32_t bin = (1U << digit.bits) - 1;
  for (;; --bin) {
    const uint32_t* four = call.counts + bin * 4;
    const int64_t here = int64_t{four[0]} + four[1] + four[2] + four[3];
    if (here >= *left || bin == 0) return bin;
    *left -= here;
  }
}

// Keeps the candidates in the bin, in order, in `to`.
static void narrow(const SelectCall& call, Candidates& all, Digit digit, uint32_t bin, uint32_t* to) {
  const uint32_t low = (1U << digit.bits) - 1;
  int64_t kept = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const int64_t from = kept;
    for (int64_t i = all.from[k]; i < all.to[k]; ++i) {
      to[kept] = all.keys[i];
      kept += (all.keys[i] >> digit.shift & low) == bin;
    }
    all.from[k] = from;
    all.to[k] = kept;
  }
  all.keys = to;
}

static void select_tiers(const SelectCall& call) {
  Candidates all{call.keys, {}, {}};
  for (int k = 0; k < call.tiers; ++k) {
    all.from[k] = k * call.in;
    all.to[k] = all.from[k] + call.in;
    const float* scores = call.scores + k * call.in;
    for (int64_t i = 0; i < call.in; ++i) {
      const float score = __builtin_fabsf(call.x[i]) * scores[i];
      __builtin_memcpy(call.keys + k * call.in + i, &score, sizeof score);
    }
  }
  uint32_t prefix = 0;
  int64_t left = call.target;  // weights still to take from the scores that share the prefix
  for (const Digit digit : kDigits) {
    histogram(call, all, digit);
    const uint32_t bin = find_bin(call, digit, &left);
    prefix = prefix << digit.bits | bin;
    narrow(call, all, digit, bin, call.keys + call.tiers * call.in);
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
