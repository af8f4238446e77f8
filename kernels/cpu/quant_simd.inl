// The steps of quant.inl that instruction sets do differently: bytes in lanes of 16, and products of codes with
// activations.
//
// A word of activations belongs to four inputs; what it holds is this file's business (`whole_group`). Products
// are whole numbers, so every instruction set gets the same sums.

namespace specdec::SPECDEC_ISA {

// A number that the type says.
template <int N>
struct Constant {
  static constexpr int value = N;
};

#if defined(__AVX512BW__) && !defined(SPECDEC_SCALAR)

struct Bytes {
  static constexpr int kWidth = 4;  // lanes
  __m512i x;
  static inline Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  inline void store(uint8_t* p) const { _mm512_storeu_si512(p, x); }
  static inline Bytes zip_low8(Bytes a, Bytes b) { return {_mm512_unpacklo_epi8(a.x, b.x)}; }
  static inline Bytes zip_high8(Bytes a, Bytes b) { return {_mm512_unpackhi_epi8(a.x, b.x)}; }
  static inline Bytes zip_low16(Bytes a, Bytes b) { return {_mm512_unpacklo_epi16(a.x, b.x)}; }
  static inline Bytes zip_high16(Bytes a, Bytes b) { return {_mm512_unpackhi_epi16(a.x, b.x)}; }
  // Shifts that carry bits between neighbouring bytes: mask what comes out.
  template <int N>
  static inline Bytes left(Bytes a) {
    return {_mm512_slli_epi16(a.x, N)};
  }
  template <int N>
  static inline Bytes right(Bytes a) {
    return {_mm512_srli_epi16(a.x, N)};
  }
  template <int M>
  static inline Bytes mask(Bytes a) {
    return {_mm512_and_si512(a.x, _mm512_set1_epi8(static_cast<char>(M)))};
  }
  // Bits of M from a, the others from b.
  template <int M>
  static inline Bytes select(Bytes a, Bytes b) {
    return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(M)), a.x, b.x, 0xCA)};
  }
};

using Sums = __m512i;
static inline Sums sums_of(int32_t start) { return _mm512_set1_epi32(start); }
static inline Sums add_sums(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
static inline Sums shifted(Sums a, int by) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(by)); }
static inline F32 to_float(Sums x) { return _mm512_cvtepi32_ps(x); }
static inline F32 load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline F32 load_s8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

#define SPECDEC_UNPACKS_IN_REGISTERS 1
#if defined(__AVX512VNNI__)
#define SPECDEC_BYTE_PRODUCTS 1
constexpr int kSumsOfSplit = 2;  // of high bytes and of low ones
static inline Sums add_high(Sums sum, Sums codes, Sums words) { return dot(sum, codes, words); }
static inline Sums joined(Sums high, Sums low) { return add_sums(_mm512_slli_epi32(high, 8), low); }
static inline Sums add_low(Sums sum, Sums codes, Sums words) { return dot(sum, codes, words); }
#else
constexpr int kSumsOfSplit = 1;
static inline Sums joined(Sums sum, Sums) { return sum; }
static inline Sums add_high(Sums sum, Sums codes, Sums words) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(255)), words));
}
static inline Sums add_low(Sums sum, Sums codes, Sums words) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16(codes, 8), words));
}
#endif

#else

struct Bytes {
  static constexpr int kWidth = 1;
  uint8_t x[16];
#define SPECDEC_BYTES(expression)                                                  \
  Bytes r;                                                                         \
  for (int j = 0; j < 16; ++j) r.x[j] = static_cast<uint8_t>(expression);          \
  return r
  static inline Bytes load(const uint8_t* p) { SPECDEC_BYTES(p[j]); }
  inline void store(uint8_t* p) const { __builtin_memcpy(p, x, 16); }
  static inline Bytes zip_low8(Bytes a, Bytes b) { SPECDEC_BYTES(j % 2 == 0 ? a.x[j / 2] : b.x[j / 2]); }
  static inline Bytes zip_high8(Bytes a, Bytes b) { SPECDEC_BYTES(j % 2 == 0 ? a.x[8 + j / 2] : b.x[8 + j / 2]); }
  static inline Bytes zip_low16(Bytes a, Bytes b) {
    SPECDEC_BYTES(j / 2 % 2 == 0 ? a.x[j / 4 * 2 + j % 2] : b.x[j / 4 * 2 + j % 2]);
  }
  static inline Bytes zip_high16(Bytes a, Bytes b) {
    SPECDEC_BYTES(j / 2 % 2 == 0 ? a.x[8 + j / 4 * 2 + j % 2] : b.x[8 + j / 4 * 2 + j % 2]);
  }
  template <int N>
  static inline Bytes left(Bytes a) {
    SPECDEC_BYTES(a.x[j] << N);
  }
  template <int N>
  static inline Bytes right(Bytes a) {
    SPECDEC_BYTES(a.x[j] >> N);
  }
  template <int M>
  static inline Bytes mask(Bytes a) {
    SPECDEC_BYTES(a.x[j] & M);
  }
  template <int M>
  static inline Bytes select(Bytes a, Bytes b) {
    SPECDEC_BYTES((a.x[j] & M) | (b.x[j] & ~M));
  }
#undef SPECDEC_BYTES
};

struct Sums {
  int32_t v[kLanes];
};
static inline Sums sums_of(int32_t start) {
  Sums r;
  for (int j = 0; j < kLanes; ++j) r.v[j] = start;
  return r;
}
static inline Sums add_sums(Sums a, Sums b) {
  for (int j = 0; j < kLanes; ++j) a.v[j] += b.v[j];
  return a;
}
static inline Sums shifted(Sums a, int by) {
  for (int j = 0; j < kLanes; ++j) a.v[j] *= 1 << by;
  return a;
}
static inline Sums load_codes(const uint8_t* p) {
  Sums r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
static inline F32 to_float(Sums x) {
  float r[kLanes];
  for (int j = 0; j < kLanes; ++j) r[j] = static_cast<float>(x.v[j]);
  return load(r);
}
static inline F32 load_u8(const uint8_t* p) {
  float r[kLanes];
  for (int j = 0; j < kLanes; ++j) r[j] = static_cast<float>(p[j]);
  return load(r);
}
static inline F32 load_s8(const uint8_t* p) {
  float r[kLanes];
  for (int j = 0; j < kLanes; ++j) r[j] = static_cast<float>(static_cast<int8_t>(p[j]));
  return load(r);
}
static inline Sums add_high(Sums sum, Sums codes, Sums words) {
  for (int j = 0; j < kLanes; ++j) {
    const auto code = static_cast<uint32_t>(codes.v[j]), word = static_cast<uint32_t>(words.v[j]);
    sum.v[j] += static_cast<int32_t>(code & 255) * static_cast<int16_t>(word & 0xFFFF) +
                static_cast<int32_t>(code >> 16 & 255) * static_cast<int16_t>(word >> 16);
  }
  return sum;
}
constexpr int kSumsOfSplit = 1;
static inline Sums joined(Sums sum, Sums) { return sum; }
static inline Sums add_low(Sums sum, Sums codes, Sums words) {
  for (int j = 0; j < kLanes; ++j) codes.v[j] = static_cast<int32_t>(static_cast<uint32_t>(codes.v[j]) >> 8);
  return add_high(sum, codes, words);
}

#endif

// a * b + c, rounded once everywhere.
#if defined(SPECDEC_SCALAR)
static inline F32 fused(F32 a, F32 b, F32 c) {
  for (int j = 0; j < kLanes; ++j) c.v[j] = __builtin_fmaf(a.v[j], b.v[j], c.v[j]);
  return c;
}
#else
static inline F32 fused(F32 a, F32 b, F32 c) { return fma(a, b, c); }
#endif

// ---- activations in whole numbers --------------------------------------------------------------------------------

constexpr float kQuantPeak = 32512.0F;  // 127 * 256: the high byte of a rounded activation stays within 127

// The largest |x| of n, a multiple of kQuantGroup; no number when one of them is none.
static inline float largest(const float* x, int64_t n) {
  F32 peak = zero(), sum = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 value = load(x + i), size = vmax(value, sub(zero(), value));
    peak = vmax(peak, size);
    sum = add(sum, mul(value, zero()));
  }
  float peaks[kLanes], sums[kLanes];
  store(peaks, peak);
  store(sums, sum);
  float most = 0.0F, none = 0.0F;
  for (int j = 0; j < kLanes; ++j) {
    most = peaks[j] > most ? peaks[j] : most;
    none += sums[j];
  }
  return none == 0.0F ? most : none;
}

#if defined(SPECDEC_BYTE_PRODUCTS)

// 32 activations, `inverse` of the step each, to the words of one of `rows` rows (see quant_kernels.h).
static inline void whole_group(const float* x, float inverse, int64_t rows, int32_t* out) {
  const __m512 by = _mm512_set1_ps(inverse);
  const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(load(x), by)),
                second = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + 16), by));
  const __m512i round = _mm512_set1_epi32(128);
  const __m512i high[2] = {_mm512_srai_epi32(_mm512_add_epi32(first, round), 8),
                           _mm512_srai_epi32(_mm512_add_epi32(second, round), 8)};
  alignas(16) int32_t words[2 * kQuads];
  auto* to = reinterpret_cast<__m128i*>(words);
  // a = 256 * high + low, both in 8 bits: low is what a's lowest byte says, signed.
  _mm_store_si128(to, _mm512_cvtepi32_epi8(high[0]));
  _mm_store_si128(to + 1, _mm512_cvtepi32_epi8(high[1]));
  _mm_store_si128(to + 2, _mm512_cvtepi32_epi8(first));
  _mm_store_si128(to + 3, _mm512_cvtepi32_epi8(second));
  for (int k = 0; k < 2 * kQuads; ++k) out[k * rows] = words[k];
  const int32_t sums[2] = {_mm512_reduce_add_epi32(first), _mm512_reduce_add_epi32(second)};
  out[2 * kQuads * rows] = sums[0];
  out[(2 * kQuads + 1) * rows] = sums[1];
  const auto sum = static_cast<float>(sums[0] + sums[1]);
  __builtin_memcpy(out + (2 * kQuads + 2) * rows, &sum, sizeof sum);
}

#else

static inline void whole_group(const float* x, float inverse, int64_t rows, int32_t* out) {
  int32_t whole[kQuantGroup], sums[2] = {0, 0};
  for (int j = 0; j < kQuantGroup; ++j) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const float value = inverse != 0.0F ? (x[j] * inverse + 12582912.0F) - 12582912.0F : 0.0F;
    whole[j] = static_cast<int32_t>(value);
  }
  for (int j = 0; j < kQuantGroup; ++j) sums[j / (kQuantGroup / 2)] += whole[j];
  for (int q = 0; q < kQuads; ++q) {
    const int32_t* a = whole + 4 * q;
    // Even inputs, then odd ones, in 16 bits.
    out[q * rows] = static_cast<int32_t>((static_cast<uint32_t>(a[0]) & 0xFFFF) | static_cast<uint32_t>(a[2]) << 16);
    out[(kQuads + q) * rows] =
        static_cast<int32_t>((static_cast<uint32_t>(a[1]) & 0xFFFF) | static_cast<uint32_t>(a[3]) << 16);
  }
  out[2 * kQuads * rows] = sums[0];
  out[(2 * kQuads + 1) * rows] = sums[1];
  const auto sum = static_cast<float>(sums[0] + sums[1]);
  __builtin_memcpy(out + (2 * kQuads + 2) * rows, &sum, sizeof sum);
}

#endif

}  // namespace specdec::SPECDEC_ISA
