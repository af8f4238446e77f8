// Vectors of 4 floats for 64-bit Arm (Advanced SIMD). The functions are those of every simd_*.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace specdec::SPECDEC_ISA {

constexpr int kLanes = 4;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;
using F32 = float32x4_t;
using I32 = int32x4_t;
using Mask = uint32x4_t;

static inline F32 zero() { return vdupq_n_f32(0.0F); }
static inline F32 set1(float x) { return vdupq_n_f32(x); }
static inline F32 load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, F32 x) { vst1q_f32(p, x); }
static inline F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
static inline F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
static inline F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
static inline F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
static inline F32 vmax(F32 a, F32 b) { return vmaxq_f32(a, b); }
static inline F32 vmin(F32 a, F32 b) { return vminq_f32(a, b); }
static inline F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }

static inline Mask mask_of(uint32_t bits) {
  const uint32_t values[4] = {1, 2, 4, 8};
  return vtstq_u32(vdupq_n_u32(bits), vld1q_u32(values));
}
// The lanes of a word of 32 outputs, and those of its vector `vector`.
using Word = uint32_t;
static inline Word load_word(const uint32_t* p) { return *p; }
static inline Mask lanes_of(Word word, int vector) { return mask_of(word >> (vector * kLanes)); }
static inline F32 choose(Mask m, F32 yes, F32 no) { return vbslq_f32(m, yes, no); }
static inline F32 fma_where(Mask m, F32 a, F32 b, F32 c) { return choose(m, fma(a, b, c), c); }
static inline Mask lanes_between(int base, int first, int last) {
  const int32_t values[4] = {0, 1, 2, 3};
  const I32 lane = vaddq_s32(vdupq_n_s32(base), vld1q_s32(values));
  return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(first)), vcltq_s32(lane, vdupq_n_s32(last)));
}

static inline F32 load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline F32 load_bfloat(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline void store_half(uint16_t* p, F32 x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }

// Of every four lanes that are set, the bytes of a vector that each takes, or one outside for a lane that is not.
struct LaneBytes {
  uint8_t bytes[16][16];
  constexpr LaneBytes() : bytes() {
    for (int bits = 0; bits < 16; ++bits)
      for (int lane = 0, before = 0; lane < 4; before += bits >> lane++ & 1)
        for (int j = 0; j < 4; ++j)
          bytes[bits][4 * lane + j] = static_cast<uint8_t>((bits >> lane & 1) != 0 ? 4 * before + j : 0xFF);
  }
};
static constexpr LaneBytes kLaneBytes;
// The first values of x, in order, in the lanes whose bits are set; 0 in the others.
static inline F32 expand(F32 x, uint32_t bits) {
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x), vld1q_u8(kLaneBytes.bytes[bits & 15])));
}

// ByteVec of vectors of 16-bit values, and the tables of coded lines (coded_lines.h).
constexpr int kByteLanes = 16;
using ByteVec = uint8x16_t;
using ByteTable = uint8x16_t;
static inline ByteVec load_bytes(const uint8_t* p) { return vld1q_u8(p); }
static inline void store_bytes(uint8_t* p, ByteVec x) { vst1q_u8(p, x); }
static inline ByteTable load_table(const uint8_t* p) { return vld1q_u8(p); }
// The entries that the lower, or the upper, four bits of each byte name.
static inline ByteVec look_up(ByteTable table, ByteVec codes) { return vqtbl1q_u8(table, vandq_u8(codes, vdupq_n_u8(15))); }
static inline ByteVec look_up_upper(ByteTable table, ByteVec codes) { return vqtbl1q_u8(table, vshrq_n_u8(codes, 4)); }
// The lower, or the upper, 8 bytes in turn with those of b.
static inline ByteVec interleave_low(ByteVec a, ByteVec b) { return vzip1q_u8(a, b); }
static inline ByteVec interleave_high(ByteVec a, ByteVec b) { return vzip2q_u8(a, b); }
// The bfloat16 values at even and at odd places.
static inline F32 even_bfloats(ByteVec x) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(x), 16)); }
static inline F32 odd_bfloats(ByteVec x) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(x), vdupq_n_u32(0xFFFF0000U)));
}

static inline F32 nearest(F32 x) { return vrndnq_f32(x); }
static inline F32 power_of_two(F32 n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

// See simd_avx512.h: here the compiler's order of loads is left as it is.
template <int N>
[[gnu::always_inline]] static inline void loaded(F32 (&)[N]) {}

}  // namespace specdec::SPECDEC_ISA
