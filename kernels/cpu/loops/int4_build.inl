// Rounds weights to the int4 view: the arithmetic of specdec/weights/int4.py, on one group of inputs of one panel.

namespace specdec::SPECDEC_ISA {

constexpr float kInt4Divisors[] = {-8.0F, -7.0F, -8.5F, -9.25F, 7.5F};
constexpr float kLargestHalf = 65504.0F;

// The 4-bit levels of 32 weights of kLanes outputs under one scale each.
[[gnu::always_inline]] static inline F32 level_of(F32 weight, F32 inverse) {
  return vmin(vmax(nearest(mul(weight, inverse)), set1(-8.0F)), set1(7.0F));
}

static inline void inverses(const float* scales, float* out) {
  for (int j = 0; j < kLanes; ++j) out[j] = scales[j] != 0.0F ? 1.0F / scales[j] : 0.0F;
}

// Squared error of a scale, summed over the inputs in ascending order.
static inline void int4_error(const F32* weights, const float* scales, float* errors) {
  float inverse[kLanes];
  inverses(scales, inverse);
  const F32 scale = load(scales), by = load(inverse);
  F32 total = zero();
  for (int i = 0; i < kGroup; ++i) {
    const F32 off = sub(mul(level_of(weights[i], by), scale), weights[i]);
    total = add(total, mul(off, off));
  }
  store(errors, total);
}

// `scales` as float16 keeps them.
static inline void stored_scales(float* scales) {
  uint16_t bits[kLanes];
  store_half(bits, vmin(vmax(load(scales), set1(-kLargestHalf)), set1(kLargestHalf)));
  store(scales, load_half(bits));
}

struct Int4Best {
  float scale[kLanes], error[kLanes];
};

static inline void int4_consider(const F32* weights, float* scales, Int4Best* best) {
  float errors[kLanes];
  stored_scales(scales);
  int4_error(weights, scales, errors);
  for (int j = 0; j < kLanes; ++j) {
    if (!(errors[j] < best->error[j])) continue;
    best->error[j] = errors[j];
    best->scale[j] = scales[j];
  }
}

// The scale that fits the levels of `scale` best, by least squares.
static inline void int4_fit(const F32* weights, const float* scale, float* fitted) {
  float inverse[kLanes], power[kLanes], product[kLanes];
  inverses(scale, inverse);
  const F32 by = load(inverse);
  F32 squares = zero(), products = zero();
  for (int i = 0; i < kGroup; ++i) {
    const F32 level = level_of(weights[i], by);
    squares = add(squares, mul(level, level));
    products = add(products, mul(level, weights[i]));
  }
  store(power, squares);
  store(product, products);
  for (int j = 0; j < kLanes; ++j) fitted[j] = power[j] > 0.0F ? product[j] / power[j] : 0.0F;
}

static inline void int4_scales(const F32* weights, float* scales) {
  F32 low = weights[0], high = weights[0];
  for (int i = 1; i < kGroup; ++i) {
    low = vmin(low, weights[i]);
    high = vmax(high, weights[i]);
  }
  float lows[kLanes], highs[kLanes], candidate[kLanes];
  store(lows, low);
  store(highs, high);
  Int4Best best = {};
  for (float& error : best.error) error = __builtin_inff();
  for (const float divisor : kInt4Divisors) {
    for (int j = 0; j < kLanes; ++j) candidate[j] = (highs[j] >= -lows[j] ? highs[j] : lows[j]) / divisor;
    int4_consider(weights, candidate, &best);
  }
  int4_fit(weights, best.scale, candidate);
  int4_consider(weights, candidate, &best);
  for (int j = 0; j < kLanes; ++j) scales[j] = best.scale[j];
}

static void int4_build(const Int4BuildCall& call) {
  for (int first = 0; first < kPanel; first += kLanes) {
    F32 weights[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      const int at = i * kPanel + first;
      if (i >= call.inputs)
        weights[i] = zero();
      else if (call.weights == nullptr)
        weights[i] = load(call.values + at);
      else
        weights[i] = call.dtype == Dtype::float16 ? load_half(call.weights + at) : load_bfloat(call.weights + at);
    }
    float* scales = call.scales + first;
    int4_scales(weights, scales);
    float inverse[kLanes];
    inverses(scales, inverse);
    for (int64_t i = 0; i < call.inputs; ++i) {
      float levels[kLanes];
      store(levels, level_of(weights[i], load(inverse)));
      for (int j = 0; j < kLanes; ++j) {
        call.levels[i * kPanel + first + j] = static_cast<uint8_t>(static_cast<int32_t>(levels[j]) + 8);
        call.magnitudes[i] += __builtin_fabsf(levels[j] * scales[j]);
      }
    }
  }
}

}  // namespace specdec::SPECDEC_ISA
