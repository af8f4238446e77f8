// The small layers: root-mean-square norm, rotary positions, gating, conversions. Each works on one row by itself.

namespace specdec::SPECDEC_ISA {

// e^x to about one unit in the last place, for x from -87 to 88 (clamped): 2^n times a Taylor polynomial on
// |r| <= ln(2) / 2, whose eighth term is below 2^-27.
[[gnu::always_inline]] static inline F32 exponential(F32 x) {
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
  p = fma(p, r, set1(1.0F));
  return mul(p, power_of_two(n));
}

static inline float sum_lanes(F32 x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

static inline float max_lanes(F32 x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int j = 1; j < kLanes; ++j) lanes[0] = lanes[j] > lanes[0] ? lanes[j] : lanes[0];
  return lanes[0];
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

static void rope(float* x, int64_t heads, int64_t head_dim, const float* cosine, const float* sine) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h, x += head_dim) {
    int64_t j = 0;
    for (; j + kLanes <= half; j += kLanes) {
      const F32 low = load(x + j), high = load(x + j + half), c = load(cosine + j), s = load(sine + j);
      store(x + j, sub(mul(low, c), mul(high, s)));
      store(x + j + half, add(mul(high, c), mul(low, s)));
    }
    for (; j < half; ++j) {
      const float low = x[j], high = x[j + half];
      x[j] = low * cosine[j] - high * sine[j];
      x[j + half] = high * cosine[j] + low * sine[j];
    }
  }
}

static void silu_mul(float* gate, const float* up, int64_t n) {
  const F32 one = set1(1.0F);
  for (int64_t i = 0; i < n; i += kLanes) {
    float g_part[kLanes], u_part[kLanes];
    const bool whole = i + kLanes <= n;
    if (!whole)
      for (int j = 0; j < kLanes; ++j)
        g_part[j] = i + j < n ? gate[i + j] : 0.0F, u_part[j] = i + j < n ? up[i + j] : 0.0F;
    const F32 g = whole ? load(gate + i) : load(g_part), u = whole ? load(up + i) : load(u_part);
    const F32 result = mul(div(g, add(one, exponential(sub(zero(), g)))), u);
    store(whole ? gate + i : g_part, result);
    if (!whole)
      for (int64_t j = i; j < n; ++j) gate[j] = g_part[j - i];
  }
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

inline ElementKernels element_kernels() { return ElementKernels{rms_norm, rope, silu_mul, to_half, widen}; }

}  // namespace specdec::SPECDEC_ISA
