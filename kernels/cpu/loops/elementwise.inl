// The small layers: root-mean-square norm, rotary positions, gates, caps, conversions. Each works on one row by itself.

namespace specdec::SPECDEC_ISA {

// e^x - 1 = 2^n (1 + r q(r)) - 1, for x from -87 to 88 (clamped): n is the nearest whole number to x / ln 2, and 1 + r q(r)
// a Taylor polynomial on |r| <= ln(2) / 2, whose eighth term is below 2^-27.
struct Exponent {
  F32 power, r, q;
};
[[gnu::always_inline]] static inline Exponent exponent_of(F32 x) {
  x = vmin(vmax(x, set1(-87.0F)), set1(88.0F));
  const F32 n = nearest(mul(x, set1(1.44269504F)));
  // ln 2 in two parts; the first has few enough bits that its multiples are exact.
  const F32 r = fma(n, set1(-0x1.7f7d1cp-20F), fma(n, set1(-0x1.62e4p-1F), x));
  F32 p = set1(1.0F / 5040);
  p = fma(p, r, set1(1.0F / 720));
  p = fma(p, r, set1(1.0F / 120));
  p = fma(p, r, set1(1.0F / 24));
  p = fma(p, r, set1(1.0F / 6));
  p = fma(p, r, set1(0.5F));
  p = fma(p, r, set1(1.0F));
  return {power_of_two(n), r, p};
}

// e^x to about one unit in the last place.
[[gnu::always_inline]] static inline F32 exponential(F32 x) {
  const Exponent e = exponent_of(x);
  return mul(fma(e.q, e.r, set1(1.0F)), e.power);
}

// tanh(x) = (e^2x - 1) / (e^2x - 1 + 2), exact to a few units in the last place also near 0, as nothing cancels out:
// 2^n - 1 and 2^n r q(r) have opposite signs only where the second is less than two thirds of the first.
[[gnu::always_inline]] static inline F32 hyperbolic_tangent(F32 x) {
  x = vmin(vmax(x, set1(-12.0F)), set1(12.0F));
  const Exponent e = exponent_of(add(x, x));
  const F32 less_one = fma(e.power, mul(e.q, e.r), sub(e.power, set1(1.0F)));
  return div(less_one, add(less_one, set1(2.0F)));
}

// In halves: lane j and lane j + width / 2, and so on.
static inline float sum_lanes(F32 x) {
#if defined(SPECDEC_JOINS_LANES)
  return joined_sum(x);
#else
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
#endif
}

static inline float max_lanes(F32 x) {
#if defined(SPECDEC_JOINS_LANES)
  return joined_max(x);
#else
  float lanes[kLanes];
  store(lanes, x);
  for (int j = 1; j < kLanes; ++j) lanes[0] = lanes[j] > lanes[0] ? lanes[j] : lanes[0];
  return lanes[0];
#endif
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  F32 squares[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int k = 0; k < 4; ++k) {
      const F32 part = load(x + i + k * kLanes);
      squares[k] = fma(part, part, squares[k]);
    }
  float sum = sum_lanes(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
  for (; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0F / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) store(y + i, mul(mul(load(x + i), set1(scale)), load(weight + i)));
  for (; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

static void rope(float* x, int64_t heads, int64_t head_dim, int64_t pairs, const float* cosine, const float* sine) {
  for (int64_t h = 0; h < heads; ++h, x += head_dim) {
    int64_t j = 0;
    for (; j + kLanes <= pairs; j += kLanes) {
      const F32 low = load(x + j), high = load(x + j + pairs), c = load(cosine + j), s = load(sine + j);
      store(x + j, sub(mul(low, c), mul(high, s)));
      store(x + j + pairs, add(mul(high, c), mul(low, s)));
    }
    for (; j < pairs; ++j) {
      const float low = x[j], high = x[j + pairs];
      x[j] = low * cosine[j] - high * sine[j];
      x[j + pairs] = high * cosine[j] + low * sine[j];
    }
  }
}

static void rope_interleaved(float* x, int64_t heads, int64_t head_dim, int64_t pairs, const float* cosine,
                             const float* sine) {
  for (int64_t h = 0; h < heads; ++h, x += head_dim)
    for (int64_t j = 0; j < pairs; ++j) {
      const float even = x[2 * j], odd = x[2 * j + 1];
      x[2 * j] = even * cosine[j] - odd * sine[j];
      x[2 * j + 1] = odd * cosine[j] + even * sine[j];
    }
}

// x = f(x, y) element by element, the last ones in a vector that zeros fill up.
template <class F>
[[gnu::always_inline]] static inline void map_pairs(float* x, const float* y, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, f(load(x + i), load(y + i)));
  if (i == n) return;
  float x_part[kLanes] = {}, y_part[kLanes] = {};
  for (int64_t j = i; j < n; ++j) x_part[j - i] = x[j], y_part[j - i] = y[j];
  store(x_part, f(load(x_part), load(y_part)));
  for (int64_t j = i; j < n; ++j) x[j] = x_part[j - i];
}

// x / (1 + e^-z), which is x times the logistic function of z.
[[gnu::always_inline]] static inline F32 times_logistic(F32 x, F32 z) {
  return div(x, add(set1(1.0F), exponential(sub(zero(), z))));
}

static void silu_mul(float* gate, const float* up, int64_t n) {
  map_pairs(gate, up, n, [](F32 g, F32 u) { return mul(times_logistic(g, g), u); });
}

// (1 + tanh(z)) / 2 is the logistic function of 2 z; here z = sqrt(2 / pi) (g + 0.044715 g^3).
static void gelu_mul(float* gate, const float* up, int64_t n) {
  map_pairs(gate, up, n, [](F32 g, F32 u) {
    const F32 cubic = fma(mul(g, g), set1(0.0713548163F), set1(1.59576912F));
    return mul(times_logistic(g, mul(g, cubic)), u);
  });
}

static void clamped_mul(float* gate, const float* up, int64_t n) {
  map_pairs(gate, up, n, [](F32 g, F32 u) {
    g = vmin(g, set1(7.0F));
    u = vmin(vmax(u, set1(-7.0F)), set1(7.0F));
    return mul(times_logistic(g, mul(g, set1(1.702F))), add(u, set1(1.0F)));
  });
}

static void sigmoid_mul(float* x, const float* gate, int64_t n) {
  map_pairs(x, gate, n, [](F32 one, F32 g) { return times_logistic(one, g); });
}

[[gnu::always_inline]] static inline F32 capped(F32 x, F32 most, F32 inverse) {
  return mul(most, hyperbolic_tangent(mul(x, inverse)));
}

static void cap(float* x, float most, int64_t n) {
  map_pairs(x, x, n, [most](F32 one, F32) { return capped(one, set1(most), set1(1.0F / most)); });
}

static void to_half(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_half(y + i, load(x + i));
  if (i == n) return;
  float in[kLanes] = {};
  uint16_t out[kLanes];
  for (int64_t j = i; j < n; ++j) in[j - i] = x[j];
  store_half(out, load(in));
  for (int64_t j = i; j < n; ++j) y[j] = out[j - i];
}

static void widen(const uint16_t* bits, Dtype dtype, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    uint16_t in[kLanes] = {};
    float out[kLanes];
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    for (int64_t j = 0; j < count; ++j) in[j] = bits[i + j];
    store(out, dtype == Dtype::float16 ? load_half(in) : load_bfloat(in));
    for (int64_t j = 0; j < count; ++j) y[i + j] = out[j];
  }
}

static bool holds_nan(const float* x, int64_t n) {
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    found |= (bits & 0x7fffffffU) > 0x7f800000U ? 1U : 0U;
  }
  return found != 0;
}

// The two largest values: of each lane, then of all lanes.
static void two_largest(const float* x, int64_t n, float* highest, float* second) {
  const float least = -__builtin_inff();
  F32 most = set1(least), next = set1(least);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 one = load(x + i);
    next = vmax(next, vmin(most, one));
    most = vmax(most, one);
  }
  float firsts[kLanes], seconds[kLanes], a = least, b = least;
  const auto add_one = [&](float one) {
    const float smaller = one < a ? one : a;
    b = smaller > b ? smaller : b;
    a = one > a ? one : a;
  };
  store(firsts, most);
  store(seconds, next);
  for (int j = 0; j < kLanes; ++j) add_one(firsts[j]), add_one(seconds[j]);
  for (; i < n; ++i) add_one(x[i]);
  *highest = a;
  *second = b;
}

static void summarise(const float* logits, int64_t n, LogitSummary* summary) {
  *summary = {__builtin_nanf(""), 0.0F, 0.0F, 0.0F};
  if (holds_nan(logits, n)) return;
  two_largest(logits, n, &summary->highest, &summary->second);
  if (__builtin_isinf(summary->highest)) return;
  const F32 most = set1(summary->highest), least = set1(-87.0F);  // e^-87 adds nothing that a float could show
  F32 weights[4] = {zero(), zero(), zero(), zero()}, moments[4] = {zero(), zero(), zero(), zero()};
  const auto add_vector = [&](F32 one, int k) {
    const F32 below = vmax(sub(one, most), least), weight = exponential(below);
    weights[k] = add(weights[k], weight);
    moments[k] = fma(weight, below, moments[k]);
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int k = 0; k < 4; ++k) add_vector(load(logits + i + k * kLanes), k);
  for (int k = 0; i < n; i += kLanes, ++k) {
    float rest[kLanes];
    for (int j = 0; j < kLanes; ++j) rest[j] = i + j < n ? logits[i + j] : -__builtin_inff();
    add_vector(load(rest), k);
  }
  summary->weight = sum_lanes(add(add(weights[0], weights[1]), add(weights[2], weights[3])));
  summary->moment = sum_lanes(add(add(moments[0], moments[1]), add(moments[2], moments[3])));
}

inline ElementKernels element_kernels() {
  return {rms_norm, rope, rope_interleaved, silu_mul, gelu_mul, clamped_mul, sigmoid_mul, cap, to_half, widen, summarise};
}

}  // namespace specdec::SPECDEC_ISA
