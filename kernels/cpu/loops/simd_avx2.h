// Vectors of 8 floats for AVX2 with FMA and F16C. The functions are those of every simd_*.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace specdec::SPECDEC_ISA {

constexpr int kLanes = 8;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
using F32 = __m256;
using I32 = __m256i;
using Mask = __m256;  // all bits of a lane, or none

static inline F32 zero() { return _mm256_setzero_ps(); }
static inline F32 set1(float x) { return _mm256_set1_ps(x); }
static inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x); }
static inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
static inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
static inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
static inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
static inline F32 vmax(F32 a, F32 b) { return _mm256_max_ps(a, b); }
static inline F32 vmin(F32 a, F32 b) { return _mm256_min_ps(a, b); }
static inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }

static inline Mask mask_of(uint32_t bits) {
  const I32 lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const I32 all = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(all, lane_bit));
}
// The lanes of a word of 32 outputs, and those of its vector `vector`.
using Word = uint32_t;
static inline Word load_word(const uint32_t* p) { return *p; }
static inline Mask lanes_of(Word word, int vector) { return mask_of(word >> (vector * kLanes)); }
static inline F32 choose(Mask m, F32 yes, F32 no) { return _mm256_blendv_ps(no, yes, m); }
static inline F32 fma_where(Mask m, F32 a, F32 b, F32 c) { return choose(m, fma(a, b, c), c); }
static inline Mask lanes_between(int base, int first, int last) {
  const I32 lane = _mm256_add_epi32(_mm256_set1_epi32(base), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const I32 from = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1));
  const I32 to = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane);
  return _mm256_castsi256_ps(_mm256_and_si256(from, to));
}

static inline F32 load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline F32 load_bfloat(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline void store_half(uint16_t* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// Of every byte of lanes that are set, a byte for each lane: how many are set before it.
struct LanesBefore {
  uint64_t bytes[256];
  constexpr LanesBefore() : bytes() {
    for (uint32_t bits = 0; bits < 256; ++bits)
      for (uint32_t lane = 0, before = 0; lane < 8; before += bits >> lane++ & 1)
        bytes[bits] |= uint64_t{before} << (8 * lane);
  }
};
static constexpr LanesBefore kLanesBefore;
// The first values of x, in order, in the lanes whose bits are set; 0 in the others.
static inline F32 expand(F32 x, uint32_t bits) {
  const __m128i before = _mm_loadu_si64(&kLanesBefore.bytes[bits & 0xFF]);
  return _mm256_and_ps(_mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(before)), mask_of(bits));
}

// ByteVec of vectors of 16-bit values, and the tables of coded lines (coded_lines.h).
constexpr int kByteLanes = 32;
using ByteVec = __m256i;
using ByteTable = __m256i;
static inline ByteVec load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline void store_bytes(uint8_t* p, ByteVec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
static inline ByteTable load_table(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The entries that the lower, or the upper, four bits of each byte name.
static inline ByteVec look_up(ByteTable table, ByteVec codes) {
  return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
}
static inline ByteVec look_up_upper(ByteTable table, ByteVec codes) { return look_up(table, _mm256_srli_epi16(codes, 4)); }
// Of every 16 bytes the lower, or the upper, 8 in turn with those of b.
static inline ByteVec interleave_low(ByteVec a, ByteVec b) { return _mm256_unpacklo_epi8(a, b); }
static inline ByteVec interleave_high(ByteVec a, ByteVec b) { return _mm256_unpackhi_epi8(a, b); }
// The bfloat16 values at even and at odd places.
static inline F32 even_bfloats(ByteVec x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
static inline F32 odd_bfloats(ByteVec x) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

static inline F32 nearest(F32 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline F32 power_of_two(F32 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// See simd_avx512.h: here the compiler's order of loads is left as it is.
template <int N>
[[gnu::always_inline]] static inline void loaded(F32 (&)[N]) {}

}  // namespace specdec::SPECDEC_ISA
