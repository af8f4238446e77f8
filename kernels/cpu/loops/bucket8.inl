// The bucket8 view times one row: 8-bit weights of the first tiers of the chosen inputs, placed by masks.
//
// Inputs that take equally many tiers go together, in passes of a few quads; memory is asked for as in int4.inl.

#include "bucket8_simd.inl"

namespace specdec::SPECDEC_ISA {

// Asks for the lines of one pass: the chosen tiers, a quad of inputs at a time.
class TiersAhead {
 public:
  // `pass` may be null: nothing to ask for.
  TiersAhead(const Bucket8Call* call, const TierPass* pass) {
    if (pass == nullptr) return;
    const int64_t buckets = call->tile.buckets;
    pass_ = pass;
    data_ = call->tile.data;
    stride_ = buckets * kInputBytes;
    first_ = call->first_bucket;
    tier_ = kTiers - 1;
    tier_bytes_ = buckets * kTierBytes;
    count_ = call->last_bucket - first_;
    // A run may begin anywhere in a line.
    lines_ = (count_ * kTierBytes + 126) / 64;
    last_lines_ = (count_ * kTierSize + 126) / 64;
    const int tiers = pass->tiers;
    left_ = pass->quads * ((tiers < kTiers ? tiers : kTiers - 1) * lines_ + (tiers == kTiers ? last_lines_ : 0));
    tier_ = tiers;
    quad_ = -1;
  }
  int64_t steps() const { return left_; }
  // Four lines.
  [[gnu::always_inline]] inline void step() {
    if (left_ == 0) return;
    --left_;
    if (__builtin_expect(line_ == end_, 0)) turn();
    SPECDEC_UNROLL for (int k = 0; k < 4; ++k) SPECDEC_PREFETCH_FAR(row_[k] + 64 * line_);
    ++line_;
  }
  void rest() {
    while (left_ != 0) step();
  }

 private:
  void turn() {
    if (++tier_ >= pass_->tiers) {
      tier_ = 0;
      ++quad_;
    }
    const bool last = tier_ == kTiers - 1;
    const int64_t offset = tier_ * tier_bytes_ + first_ * (last ? kTierSize : kTierBytes);
    for (int k = 0; k < 4; ++k) row_[k] = data_ + pass_->input[4 * quad_ + k] * stride_ + offset;
    line_ = 0;
    end_ = last ? last_lines_ : lines_;
  }

  const TierPass* pass_ = nullptr;
  const uint8_t* data_ = nullptr;
  const uint8_t* row_[4] = {};
  int64_t stride_ = 0, first_ = 0, count_ = 0, tier_bytes_ = 0, lines_ = 0, last_lines_ = 0, line_ = 0, end_ = 0, left_ = 0;
  int tier_ = 0, quad_ = 0;
};

// Activations of a pass for one matrix: |x| times the matrix's steps, in 8 bits.
struct TierValues {
  alignas(32) int8_t value[kGroup];
  float step;
  int32_t sum;
};

static inline void quantise_pass(const TierPass& pass, const float* x, const float* steps, TierValues* out) {
  float products[kGroup];
  float peak = 0.0F;
  for (int j = 0; j < kGroup; ++j) {
    products[j] = j < pass.count ? x[pass.input[j]] * steps[pass.input[j]] : 0.0F;
    const float size = __builtin_fabsf(products[j]);
    peak = size > peak ? size : peak;
  }
  const float inverse = inverse_step(peak);
  out->sum = 0;
  for (int j = 0; j < kGroup; ++j) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    float value = (products[j] * inverse + 12582912.0F) - 12582912.0F;
    value = value > -127.0F ? value : -127.0F;  // NaN, should there be any, too
    value = value < 127.0F ? value : 127.0F;
    out->value[j] = static_cast<int8_t>(value);
    out->sum += out->value[j];
  }
  out->step = peak * (1.0F / 127.0F);
}

template <int kTaken>
static void tier_pass(const Bucket8Call& call, const TierPass& pass, TiersAhead& ahead) {
  const int64_t buckets = call.tile.buckets, tier_stride = buckets * kTierBytes;
  const uint8_t* rows[kGroup];
  for (int j = 0; j < 4 * pass.quads; ++j) rows[j] = call.tile.data + pass.input[j] * (buckets * kInputBytes);
  // Steps ahead are spread evenly, in 1/65536 of a quad.
  const int64_t rate = (ahead.steps() << 16) / ((call.last_bucket - call.first_bucket) * pass.quads) + 1;
  int64_t credit = 0;
  for (int s = 0; s < call.segment_count; ++s) {
    const Bucket8Segment& segment = call.segments[s];
    TierValues values;
    quantise_pass(pass, call.x, segment.steps, &values);
    for (int64_t b = segment.first; b < segment.last; ++b) {
      BucketSums sums;
      sums.start(-128 * values.sum);
      const int64_t at = b * kTierBytes, rest = (kTiers - 1) * tier_stride + b * kTierSize;
      for (int q = 0; q < pass.quads; ++q) {
        int32_t four;
        __builtin_memcpy(&four, values.value + 4 * q, 4);
        for (credit += rate; credit >= 1 << 16; credit -= 1 << 16) ahead.step();
        sums.template add<kTaken>(rows + 4 * q, at, tier_stride, rest, four);
      }
      sums.finish(values.step, call.sums + b * kBucket);
    }
  }
  ahead.rest();
}

static void bucket8(const Bucket8Call& call) {
  for (int64_t o = call.first_bucket * kBucket; o < call.last_bucket * kBucket; o += kLanes) store(call.sums + o, zero());
  if (call.cold && call.first < call.last) TiersAhead(&call, call.passes + call.first).rest();
  for (int64_t p = call.first; p < call.last; ++p) {
    const Bucket8Call* then = p + 1 < call.last ? &call : call.next;
    const int64_t next = p + 1 < call.last ? p + 1 : then != nullptr ? then->first : 0;
    const bool any = then != nullptr && next < then->last;
    TiersAhead ahead(then, any ? then->passes + next : nullptr);
    const TierPass& pass = call.passes[p];
    switch (pass.tiers) {
      case 1: tier_pass<1>(call, pass, ahead); break;
      case 2: tier_pass<2>(call, pass, ahead); break;
      case 3: tier_pass<3>(call, pass, ahead); break;
      default: tier_pass<4>(call, pass, ahead); break;
    }
  }
}

// The tier of each of 64 weights: by magnitude, largest first, ties by place.
static void bucket8_rank(const uint16_t* magnitudes, uint8_t* tiers) {
  uint32_t keys[kBucket], ranks[kBucket] = {};
  for (uint32_t j = 0; j < kBucket; ++j) keys[j] = (0x7FFFU - magnitudes[j]) << 6 | j;
  for (int i = 0; i < kBucket; ++i)
    for (int j = 0; j < kBucket; ++j) ranks[j] += keys[i] < keys[j] ? 1U : 0U;
  for (int j = 0; j < kBucket; ++j) tiers[j] = static_cast<uint8_t>(ranks[j] / kTierSize);
}

}  // namespace specdec::SPECDEC_ISA
