// Bytes, products and activations of quant.inl for 64-bit Arm, with dot products where the compiler may use them.

namespace specdec::SPECDEC_ISA {

struct Bytes {
  static constexpr int kWidth = 1;
  uint8x16_t x;
  static inline uint16x8_t wide(Bytes a) { return vreinterpretq_u16_u8(a.x); }
  static inline Bytes load(const uint8_t* p) { return {vld1q_u8(p)}; }
  // 4 bytes of each of four rows, byte k of all of them side by side.
  static inline Bytes quad(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    auto row = [](const uint8_t* p) {
      uint32_t four;
      __builtin_memcpy(&four, p, 4);
      return vcreate_u8(four);
    };
    const uint8x8_t ab = vzip1_u8(row(a), row(b)), cd = vzip1_u8(row(c), row(d));
    const uint16x4_t x = vreinterpret_u16_u8(ab), y = vreinterpret_u16_u8(cd);
    return {vreinterpretq_u8_u16(vcombine_u16(vzip1_u16(x, y), vzip2_u16(x, y)))};
  }
  static inline Bytes zip_low8(Bytes a, Bytes b) { return {vzip1q_u8(a.x, b.x)}; }
  static inline Bytes zip_high8(Bytes a, Bytes b) { return {vzip2q_u8(a.x, b.x)}; }
  static inline Bytes zip_low16(Bytes a, Bytes b) { return {vreinterpretq_u8_u16(vzip1q_u16(wide(a), wide(b)))}; }
  static inline Bytes zip_high16(Bytes a, Bytes b) { return {vreinterpretq_u8_u16(vzip2q_u16(wide(a), wide(b)))}; }
  template <int N>
  static inline Bytes left(Bytes a) {
    return {vshlq_n_u8(a.x, N)};
  }
  template <int N>
  static inline Bytes right(Bytes a) {
    return {vshrq_n_u8(a.x, N)};
  }
  template <int M>
  static inline Bytes mask(Bytes a) {
    return {vandq_u8(a.x, vdupq_n_u8(M))};
  }
  template <int M>
  static inline Bytes select(Bytes a, Bytes b) {
    return {vbslq_u8(vdupq_n_u8(M), a.x, b.x)};
  }
  template <int M>
  static inline Bytes flip(Bytes a) {
    return {veorq_u8(a.x, vdupq_n_u8(M))};
  }
};

using Sums = int32x4_t;
static inline Sums sums_of(int32_t start) { return vdupq_n_s32(start); }
static inline Sums add_sums(Sums a, Sums b) { return vaddq_s32(a, b); }
static inline Sums shifted(Sums a, int by) { return vshlq_s32(a, vdupq_n_s32(by)); }
static inline F32 to_float(Sums x) { return vcvtq_f32_s32(x); }
static inline F32 load_u8(const uint8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
static inline F32 load_s8(const uint8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
}

constexpr int kQuantSums = 12;

#if defined(__ARM_FEATURE_DOTPROD)

#define SPECDEC_BYTE_WORDS 1
#define SPECDEC_SIGNED_CODES 1  // both factors of a product have a sign
struct Products {
  Sums high, low;
  static inline Sums dot(Sums sum, Bytes codes, int32_t word) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(codes.x), vreinterpretq_s8_s32(vdupq_n_s32(word)));
  }
  [[gnu::always_inline]] inline void start(Sums sum) { high = vdupq_n_s32(0), low = sum; }
  [[gnu::always_inline]] inline void add_high(Bytes codes, int32_t word) { high = dot(high, codes, word); }
  [[gnu::always_inline]] inline void add_low(Bytes codes, int32_t word) { low = dot(low, codes, word); }
  [[gnu::always_inline]] inline Sums total() const { return vaddq_s32(vshlq_n_s32(high, 8), low); }
};

#else

// Products of pairs of inputs that are added at the end: the first two outputs, and the others.
struct Products {
  Sums first, second;
  [[gnu::always_inline]] inline void start(Sums sum) {
    first = vsetq_lane_s32(0, vsetq_lane_s32(0, sum, 1), 3);
    second = first;
  }
  [[gnu::always_inline]] inline void add(uint16x8_t codes, int32_t word) {
    const int16x8_t x = vreinterpretq_s16_u16(codes), y = vreinterpretq_s16_s32(vdupq_n_s32(word));
    first = vmlal_s16(first, vget_low_s16(x), vget_low_s16(y));
    second = vmlal_high_s16(second, x, y);
  }
  [[gnu::always_inline]] inline void add_high(Bytes codes, int32_t word) {
    add(vandq_u16(Bytes::wide(codes), vdupq_n_u16(255)), word);
  }
  [[gnu::always_inline]] inline void add_low(Bytes codes, int32_t word) { add(vshrq_n_u16(Bytes::wide(codes), 8), word); }
  [[gnu::always_inline]] inline Sums total() const { return vpaddq_s32(first, second); }
};

#endif

static inline void whole_numbers(const float* x, float inverse, int32_t* words, int32_t* sums) {
  const F32 by = set1(inverse);
  for (int half = 0; half < 2; ++half) {
    Sums whole[4];
    for (int k = 0; k < 4; ++k) whole[k] = vcvtnq_s32_f32(mul(load(x + 16 * half + 4 * k), by));
    sums[half] = vaddvq_s32(vaddq_s32(vaddq_s32(whole[0], whole[1]), vaddq_s32(whole[2], whole[3])));
    const int16x8_t a = vcombine_s16(vmovn_s32(whole[0]), vmovn_s32(whole[1])),
                    b = vcombine_s16(vmovn_s32(whole[2]), vmovn_s32(whole[3]));
#if defined(SPECDEC_BYTE_WORDS)
    const int8x16_t high = vrshrn_high_n_s16(vrshrn_n_s16(a, 8), b, 8), low = vmovn_high_s16(vmovn_s16(a), b);
    vst1q_s32(words + 4 * half, vreinterpretq_s32_s8(high));
    vst1q_s32(words + kQuads + 4 * half, vreinterpretq_s32_s8(low));
#else
    vst1q_s32(words + 4 * half, vreinterpretq_s32_s16(vuzp1q_s16(a, b)));
    vst1q_s32(words + kQuads + 4 * half, vreinterpretq_s32_s16(vuzp2q_s16(a, b)));
#endif
  }
}

}  // namespace specdec::SPECDEC_ISA
