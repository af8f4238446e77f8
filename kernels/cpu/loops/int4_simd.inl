// The innermost step of int4.inl for each instruction set: four rows of packed nibbles times four activations.
//
// `Nibbles` adds, into eight vectors of int32, the products of 32 * kWidth outputs... see below for the order of outputs.
//
// A row of a block of 128 outputs is 64 bytes in four lanes of 16 (a half block: 32 bytes in two). Byte 4 q + l of lane L
// holds two outputs of the block, c (2 q) + 4 L + l in its low nibble and c (2 q + 1) + 4 L + l in its high one, where c
// is 4 times the number of lanes. Interleaving four rows by bytes then leaves, in every 32 bits, four products' weights of
// one output, and the eight sums of a block in ascending order of output.

namespace specdec::SPECDEC_ISA {

#if defined(__AVX512BW__) && !defined(SPECDEC_SCALAR)

static inline __m512i dot(__m512i sum, __m512i u, __m512i s) {
#if defined(__AVX512VNNI__)
  // The intrinsic, in GCC 12, copies every sum to another register and back.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
#else  // nibbles times bytes: sums of two stay far from saturating
  return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
#endif
}
static inline __m256i dot(__m256i sum, __m256i u, __m256i s) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
#endif
}

#if defined(__AVX512VNNI__)
// Products with bytes up to 240 fit, so high nibbles stay where they are: their sums are 16 times too large.
constexpr int kHighScale = 16;
static inline __m512i high_nibbles(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(0xF0))); }
static inline __m256i high_nibbles(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(0xF0))); }
#else
constexpr int kHighScale = 1;
static inline __m512i high_nibbles(__m512i x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
static inline __m256i high_nibbles(__m256i x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
#endif

// A whole block: four lanes.
struct WideNibbles {
  static constexpr int kWidth = 4;
  __m512i sum[8];
  [[gnu::always_inline]] inline void start(int32_t start) {
    SPECDEC_UNROLL for (int j = 0; j < 8; ++j) sum[j] = _mm512_set1_epi32(j % 2 == 0 ? start : start * kHighScale);
  }
  [[gnu::always_inline]] inline void add(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2, const uint8_t* r3,
                                         int32_t values) {
    const __m512i a = _mm512_loadu_si512(r0), b = _mm512_loadu_si512(r1), c = _mm512_loadu_si512(r2),
                  d = _mm512_loadu_si512(r3);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), ab2 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd = _mm512_unpacklo_epi8(c, d), cd2 = _mm512_unpackhi_epi8(c, d);
    const __m512i quads[4] = {_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd),
                              _mm512_unpacklo_epi16(ab2, cd2), _mm512_unpackhi_epi16(ab2, cd2)};
    const __m512i s = _mm512_set1_epi32(values), nibble = _mm512_set1_epi8(15);
    SPECDEC_UNROLL for (int q = 0; q < 4; ++q) {
      sum[2 * q] = dot(sum[2 * q], _mm512_and_si512(quads[q], nibble), s);
      sum[2 * q + 1] = dot(sum[2 * q + 1], high_nibbles(quads[q]), s);
    }
  }
  // The sums of vector j.
  [[gnu::always_inline]] inline F32 value(int j) const {
    const F32 sums = _mm512_cvtepi32_ps(sum[j]);
    return j % 2 == 0 || kHighScale == 1 ? sums : mul(sums, set1(1.0F / kHighScale));
  }
  // totals[j] += sum * code * step for the outputs of vector j.
  [[gnu::always_inline]] inline void finish(int j, const int8_t* codes, float step, float* totals) const {
    const __m512 code = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
    const __m512 scaled = _mm512_mul_ps(code, _mm512_set1_ps(j % 2 == 0 ? step : step * (1.0F / kHighScale)));
    store(totals, fma(_mm512_cvtepi32_ps(sum[j]), scaled, load(totals)));
  }
};

#endif

#if defined(__AVX2__) && !defined(SPECDEC_SCALAR)

#if !defined(__AVX512BW__)
constexpr int kHighScale = 1;
static inline __m256i high_nibbles(__m256i x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
static inline __m256i dot(__m256i sum, __m256i u, __m256i s) {
#if defined(__AVXVNNI__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(s));
  return sum;
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
#endif
}
#endif

// Two lanes: half a block, or a half block.
struct HalfNibbles {
  static constexpr int kWidth = 2;
  __m256i sum[8];
  [[gnu::always_inline]] inline void start(int32_t start) {
    SPECDEC_UNROLL for (int j = 0; j < 8; ++j) sum[j] = _mm256_set1_epi32(j % 2 == 0 ? start : start * kHighScale);
  }
  [[gnu::always_inline]] static inline __m256i row(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  [[gnu::always_inline]] inline void add(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2, const uint8_t* r3,
                                         int32_t values) {
    const __m256i a = row(r0), b = row(r1), c = row(r2), d = row(r3);
    const __m256i ab = _mm256_unpacklo_epi8(a, b), ab2 = _mm256_unpackhi_epi8(a, b);
    const __m256i cd = _mm256_unpacklo_epi8(c, d), cd2 = _mm256_unpackhi_epi8(c, d);
    const __m256i quads[4] = {_mm256_unpacklo_epi16(ab, cd), _mm256_unpackhi_epi16(ab, cd),
                              _mm256_unpacklo_epi16(ab2, cd2), _mm256_unpackhi_epi16(ab2, cd2)};
    const __m256i s = _mm256_set1_epi32(values), nibble = _mm256_set1_epi8(15);
    SPECDEC_UNROLL for (int q = 0; q < 4; ++q) {
      sum[2 * q] = dot(sum[2 * q], _mm256_and_si256(quads[q], nibble), s);
      sum[2 * q + 1] = dot(sum[2 * q + 1], high_nibbles(quads[q]), s);
    }
  }
#if !defined(__AVX512BW__)
  [[gnu::always_inline]] inline F32 value(int j) const { return _mm256_cvtepi32_ps(sum[j]); }
#endif
  [[gnu::always_inline]] inline void finish(int j, const int8_t* codes, float step, float* totals) const {
    const __m256 code = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
    const __m256 scaled = _mm256_mul_ps(code, _mm256_set1_ps(j % 2 == 0 ? step : step * (1.0F / kHighScale)));
    _mm256_storeu_ps(totals, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[j]), scaled, _mm256_loadu_ps(totals)));
  }
};
using NarrowNibbles = HalfNibbles;
#if !defined(__AVX512BW__)
using WideNibbles = HalfNibbles;
#endif

#elif defined(__ARM_NEON) && !defined(SPECDEC_SCALAR)

struct LaneNibbles {
  static constexpr int kWidth = 1;
  int32x4_t sum[8];
  [[gnu::always_inline]] inline void start(int32_t start) {
    SPECDEC_UNROLL for (int j = 0; j < 8; ++j) sum[j] = vdupq_n_s32(start);
  }
  [[gnu::always_inline]] static inline int32x4_t dot(int32x4_t sum, int8x16_t u, int8x16_t s) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, u, s);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(u), vget_low_s8(s)), high = vmull_high_s8(u, s);
    return vaddq_s32(sum, vpaddlq_s16(vpaddq_s16(low, high)));
#endif
  }
  [[gnu::always_inline]] inline void add(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2, const uint8_t* r3,
                                         int32_t values) {
    const uint8x16_t a = vld1q_u8(r0), b = vld1q_u8(r1), c = vld1q_u8(r2), d = vld1q_u8(r3);
    const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(a, b)), ab2 = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    const uint16x8_t cd = vreinterpretq_u16_u8(vzip1q_u8(c, d)), cd2 = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    const uint16x8_t quads[4] = {vzip1q_u16(ab, cd), vzip2q_u16(ab, cd), vzip1q_u16(ab2, cd2), vzip2q_u16(ab2, cd2)};
    const int8x16_t s = vreinterpretq_s8_s32(vdupq_n_s32(values));
    SPECDEC_UNROLL for (int q = 0; q < 4; ++q) {
      const uint8x16_t both = vreinterpretq_u8_u16(quads[q]);
      sum[2 * q] = dot(sum[2 * q], vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), s);
      sum[2 * q + 1] = dot(sum[2 * q + 1], vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), s);
    }
  }
  [[gnu::always_inline]] inline F32 value(int j) const { return vcvtq_f32_s32(sum[j]); }
  [[gnu::always_inline]] inline void finish(int j, const int8_t* codes, float step, float* totals) const {
    int32_t four;
    __builtin_memcpy(&four, codes, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    const F32 code = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    store(totals, fma(vcvtq_f32_s32(sum[j]), mul(code, set1(step)), load(totals)));
  }
};
using NarrowNibbles = LaneNibbles;
using WideNibbles = LaneNibbles;

#else

struct LaneNibbles {
  static constexpr int kWidth = 1;
  int32_t sum[8][4];
  void start(int32_t start) {
    for (auto& four : sum)
      for (int32_t& one : four) one = start;
  }
  void add(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2, const uint8_t* r3, int32_t values) {
    int8_t s[4];
    __builtin_memcpy(s, &values, 4);
    for (int q = 0; q < 4; ++q)
      for (int l = 0; l < 4; ++l) {
        const int a = r0[4 * q + l], b = r1[4 * q + l], c = r2[4 * q + l], d = r3[4 * q + l];
        sum[2 * q][l] += (a & 15) * s[0] + (b & 15) * s[1] + (c & 15) * s[2] + (d & 15) * s[3];
        sum[2 * q + 1][l] += (a >> 4) * s[0] + (b >> 4) * s[1] + (c >> 4) * s[2] + (d >> 4) * s[3];
      }
  }
  F32 value(int j) const {
    float sums[4];
    for (int l = 0; l < 4; ++l) sums[l] = static_cast<float>(sum[j][l]);
    return load(sums);
  }
  void finish(int j, const int8_t* codes, float step, float* totals) const {
    for (int l = 0; l < 4; ++l)
      totals[l] += static_cast<float>(sum[j][l]) * (static_cast<float>(codes[l]) * step);
  }
};
using NarrowNibbles = LaneNibbles;
using WideNibbles = LaneNibbles;

#endif

}  // namespace specdec::SPECDEC_ISA
