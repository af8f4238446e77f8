// Effort for the exact view: which tiers of which inputs one row takes, exactly as kernels/reference/selection.py says.
//
// The order is total: falling score, then rising tier, then rising input. Scores are not negative, so their bits order
// as they do; the lowest score taken is found by halving the range of bits, which is a few plain passes over the
// scores.

namespace specdec::SPECDEC_ISA {

// Scores under consideration; tier k's are keys[from[k]..to[k]-1].
struct Candidates {
  uint32_t* keys;
  int64_t from[kMaxTiers], to[kMaxTiers];
};

// Once the range of bits is this narrow (an eighth of an octave) few scores are left in it, and only those are looked
// at.
constexpr uint32_t kNarrow = 1U << 20;

// Weights in the candidates that score at least `low`.
static int64_t weights_from(const SelectCall& call, const Candidates& all, uint32_t low) {
  int64_t weights = 0;
  for (int k = 0; k < call.tiers; ++k) {
    int32_t count = 0;
    for (int64_t i = all.from[k]; i < all.to[k]; ++i)
      count += static_cast<int32_t>(all.keys[i]) >= static_cast<int32_t>(low);
    weights += int64_t{count} * call.tier_sizes[k];
  }
  return weights;
}

// Keeps the candidates from `low` to below `high`, in order, in `to`.
static void keep_between(const SelectCall& call, Candidates& all, uint32_t low, uint32_t high, uint32_t* to) {
  int64_t kept = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const int64_t from = kept;
    for (int64_t i = all.from[k]; i < all.to[k]; ++i) {
      to[kept] = all.keys[i];
      kept += all.keys[i] - low < high - low;
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
  // At least `target` weights score `prefix` or more, fewer score `high` or more.
  uint32_t prefix = 0, high = 0x7FFFFFFF;
  int64_t left = call.target;  // the same, counted among the candidates alone
  bool narrowed = false;
  while (high - prefix > 1) {
    if (!narrowed && high - prefix <= kNarrow) {
      left -= weights_from(call, all, high);
      keep_between(call, all, prefix, high, call.keys + call.tiers * call.in);
      narrowed = true;
    }
    const uint32_t middle = prefix + (high - prefix) / 2;
    if (weights_from(call, all, middle) >= left)
      prefix = middle;
    else
      high = middle;
  }
  left -= weights_from(call, all, high);  // to take from the scores that equal `prefix`
  for (int64_t i = 0; i < call.in; ++i) call.chosen[i] = 0;
  for (int k = 0; k < call.tiers; ++k) {
    const uint32_t* keys = call.keys + k * call.in;
    for (int64_t i = 0; i < call.in; ++i)
      call.chosen[i] = static_cast<uint8_t>(call.chosen[i] + (keys[i] > prefix ? 1 : 0));
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
