// Vectors of 16 floats for AVX-512 (F, BW, VL, DQ). The functions are those of every simd_*.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace specdec::SPECDEC_ISA {

constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // rows of a register tile; with kTileVectors they leave room for weights and a broadcast
constexpr int kTileVectors = 2;  // vectors of outputs of a register tile
using F32 = __m512;
using I32 = __m512i;
using Mask = __mmask16;

static inline F32 zero() { return _mm512_setzero_ps(); }
static inline F32 set1(float x) { return _mm512_set1_ps(x); }
static inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
static inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
static inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
static inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
static inline F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
static inline F32 vmax(F32 a, F32 b) { return _mm512_max_ps(a, b); }
static inline F32 vmin(F32 a, F32 b) { return _mm512_min_ps(a, b); }
// a * b + c, rounded once.
static inline F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }

// Of all lanes, in halves.
#define SPECDEC_JOINS_LANES
static inline float joined_sum(F32 x) {
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}
static inline float joined_max(F32 x) {
  __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}

static inline Mask mask_of(uint32_t bits) { return static_cast<Mask>(bits); }
// The lanes of a word of 32 outputs, and those of its vector `vector`. In assembly, as compilers would go through
// general registers, which takes half as long again.
using Word = __mmask32;
static inline Word load_word(const uint32_t* p) {
  Word word;
  asm("kmovd %1, %0" : "=k"(word) : "m"(*p));
  return word;
}
static inline Mask lanes_of(Word word, int vector) {
  if (vector != 0) asm("kshiftrd $16, %1, %0" : "=k"(word) : "k"(word));
  return static_cast<Mask>(word);
}
// c, with a * b added where the mask is set.
static inline F32 fma_where(Mask m, F32 a, F32 b, F32 c) { return _mm512_mask3_fmadd_ps(a, b, c, m); }
// Lanes first..last-1 of a vector that starts at lane `base`.
static inline Mask lanes_between(int base, int first, int last) {
  const I32 lane = _mm512_add_epi32(_mm512_set1_epi32(base),
                                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  return _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first)) &
         _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(last));
}
static inline F32 choose(Mask m, F32 yes, F32 no) { return _mm512_mask_blend_ps(m, no, yes); }

static inline F32 widen_half(__m256i bits) { return _mm512_cvtph_ps(bits); }
static inline F32 widen_bfloat(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline __m256i load_bits(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline F32 load_half(const uint16_t* p) { return widen_half(load_bits(p)); }
static inline F32 load_bfloat(const uint16_t* p) { return widen_bfloat(load_bits(p)); }
static inline void store_half(uint16_t* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#if defined(__AVX512VBMI2__)
#define SPECDEC_EXPANDS_LINES
// Vector `vector` of 32 outputs of which those whose bits are set have values at p. All 32 are expanded at once, for both
// vectors, and from a register: some processors run the form that takes memory as microcode.
static inline __m256i expand_line(const uint16_t* p, uint32_t outputs, int vector) {
  __m512i values = _mm512_loadu_si512(p);
  asm("" : "+v"(values));
  values = _mm512_maskz_expand_epi16(outputs, values);
  return vector == 0 ? _mm512_castsi512_si256(values) : _mm512_extracti64x4_epi64(values, 1);
}
#endif
// The first values of x, in order, in the lanes whose bits are set; 0 in the others.
static inline F32 expand(F32 x, uint32_t bits) { return _mm512_maskz_expand_ps(mask_of(bits), x); }

// ByteVec of vectors of 16-bit values, and the tables of coded lines (coded_lines.h).
constexpr int kByteLanes = 64;
using ByteVec = __m512i;
using ByteTable = __m512i;
static inline ByteVec load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline void store_bytes(uint8_t* p, ByteVec x) { _mm512_storeu_si512(p, x); }
static inline ByteTable load_table(const uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The entries that the lower, or the upper, four bits of each byte name.
static inline ByteVec upper_bits(ByteVec codes) { return _mm512_srli_epi16(codes, 4); }
#if defined(__AVX512VBMI__)
// Six bits of each byte count, and the table repeats itself.
static inline ByteVec look_up(ByteTable table, ByteVec codes) { return _mm512_permutexvar_epi8(codes, table); }
#else
static inline ByteVec look_up(ByteTable table, ByteVec codes) {
  return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}
#endif
static inline ByteVec look_up_upper(ByteTable table, ByteVec codes) { return look_up(table, upper_bits(codes)); }
// Of every 16 bytes the lower, or the upper, 8 in turn with those of b.
static inline ByteVec interleave_low(ByteVec a, ByteVec b) { return _mm512_unpacklo_epi8(a, b); }
static inline ByteVec interleave_high(ByteVec a, ByteVec b) { return _mm512_unpackhi_epi8(a, b); }
// The bfloat16 values at even and at odd places.
static inline F32 even_bfloats(ByteVec x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
static inline F32 odd_bfloats(ByteVec x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// Nearest whole number, and 2 to the power of a whole number from -126 to 127.
static inline F32 nearest(F32 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline F32 power_of_two(F32 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

// Nothing that uses `x` comes before all of `x` has been loaded. Loads of several streams that stand together keep
// memory a fifth busier than the same loads among arithmetic, where GCC likes to put them.
template <int N>
[[gnu::always_inline]] static inline void loaded(F32 (&x)[N]) {
  static_assert(N == 2 || N == 4, "one or two panels");
  if constexpr (N == 2)
    asm volatile("" : "+v"(x[0]), "+v"(x[1]));
  else
    asm volatile("" : "+v"(x[0]), "+v"(x[1]), "+v"(x[2]), "+v"(x[3]));
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace specdec::SPECDEC_ISA
