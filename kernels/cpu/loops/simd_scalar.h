// Vectors of 4 floats in plain C++, which any compiler turns into whatever the machine has. The functions are those of
// every simd_*.h, except that products and sums are rounded apart: machines without a fused instruction are slow at it.
#pragma once

#include <cstdint>

#include "half.h"

namespace specdec::SPECDEC_ISA {

constexpr int kLanes = 4;
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
struct F32 {
  float v[kLanes];
};
struct Mask {
  bool v[kLanes];
};

#define SPECDEC_LANES(expression)                         \
  F32 r;                                                  \
  for (int j = 0; j < kLanes; ++j) r.v[j] = (expression); \
  return r
static inline F32 set1(float x) { SPECDEC_LANES(x); }
static inline F32 zero() { return set1(0.0F); }
static inline F32 load(const float* p) { SPECDEC_LANES(p[j]); }
static inline void store(float* p, F32 x) {
  for (int j = 0; j < kLanes; ++j) p[j] = x.v[j];
}
static inline F32 add(F32 a, F32 b) { SPECDEC_LANES(a.v[j] + b.v[j]); }
static inline F32 sub(F32 a, F32 b) { SPECDEC_LANES(a.v[j] - b.v[j]); }
static inline F32 mul(F32 a, F32 b) { SPECDEC_LANES(a.v[j] * b.v[j]); }
static inline F32 div(F32 a, F32 b) { SPECDEC_LANES(a.v[j] / b.v[j]); }
static inline F32 vmax(F32 a, F32 b) { SPECDEC_LANES(a.v[j] > b.v[j] ? a.v[j] : b.v[j]); }
static inline F32 vmin(F32 a, F32 b) { SPECDEC_LANES(a.v[j] < b.v[j] ? a.v[j] : b.v[j]); }
static inline F32 fma(F32 a, F32 b, F32 c) { SPECDEC_LANES(a.v[j] * b.v[j] + c.v[j]); }

static inline Mask mask_of(uint32_t bits) {
  Mask m;
  for (int j = 0; j < kLanes; ++j) m.v[j] = (bits >> j & 1) != 0;
  return m;
}
// The lanes of a word of 32 outputs, and those of its vector `vector`.
using Word = uint32_t;
static inline Word load_word(const uint32_t* p) { return *p; }
static inline Mask lanes_of(Word word, int vector) { return mask_of(word >> (vector * kLanes)); }
static inline F32 choose(Mask m, F32 yes, F32 no) { SPECDEC_LANES(m.v[j] ? yes.v[j] : no.v[j]); }
static inline F32 fma_where(Mask m, F32 a, F32 b, F32 c) { return choose(m, fma(a, b, c), c); }
static inline Mask lanes_between(int base, int first, int last) {
  Mask m;
  for (int j = 0; j < kLanes; ++j) m.v[j] = base + j >= first && base + j < last;
  return m;
}

static inline F32 load_half(const uint16_t* p) { SPECDEC_LANES(half_to_float(p[j])); }
static inline F32 load_bfloat(const uint16_t* p) { SPECDEC_LANES(bits_to_float(static_cast<uint32_t>(p[j]) << 16)); }
static inline void store_half(uint16_t* p, F32 x) {
  for (int j = 0; j < kLanes; ++j) p[j] = float_to_half(x.v[j]);
}

// The first values of x, in order, in the lanes whose bits are set; 0 in the others.
static inline F32 expand(F32 x, uint32_t bits) {
  F32 r = zero();
  for (int lane = 0, next = 0; lane < kLanes; ++lane)
    if ((bits >> lane & 1) != 0) r.v[lane] = x.v[next++];
  return r;
}

// ByteVec of vectors of 16-bit values, and the tables of coded lines (coded_lines.h).
constexpr int kByteLanes = 16;
struct ByteVec {
  uint8_t v[kByteLanes];
};
using ByteTable = ByteVec;
static inline ByteVec load_bytes(const uint8_t* p) {
  ByteVec x;
  __builtin_memcpy(x.v, p, sizeof x.v);
  return x;
}
static inline void store_bytes(uint8_t* p, ByteVec x) { __builtin_memcpy(p, x.v, sizeof x.v); }
static inline ByteTable load_table(const uint8_t* p) { return load_bytes(p); }
// The entries that the lower, or the upper, four bits of each byte name.
static inline ByteVec look_up(const ByteTable& table, ByteVec codes) {
  for (auto& code : codes.v) code = table.v[code & 15];
  return codes;
}
static inline ByteVec look_up_upper(const ByteTable& table, ByteVec codes) {
  for (auto& code : codes.v) code = table.v[code >> 4];
  return codes;
}
// The lower, or the upper, 8 bytes in turn with those of b.
static inline ByteVec interleave(const uint8_t* a, const uint8_t* b) {
  ByteVec x;
  for (int j = 0; j < kByteLanes; ++j) x.v[j] = (j % 2 == 0 ? a : b)[j / 2];
  return x;
}
static inline ByteVec interleave_low(const ByteVec& a, const ByteVec& b) { return interleave(a.v, b.v); }
static inline ByteVec interleave_high(const ByteVec& a, const ByteVec& b) {
  return interleave(a.v + kByteLanes / 2, b.v + kByteLanes / 2);
}
// The bfloat16 values at even and at odd places: little-endian pairs of bytes, whatever the machine's order.
static inline uint32_t bfloat_bits(const ByteVec& x, int place) {
  return static_cast<uint32_t>(x.v[2 * place]) << 16 | static_cast<uint32_t>(x.v[2 * place + 1]) << 24;
}
static inline F32 even_bfloats(const ByteVec& x) { SPECDEC_LANES(bits_to_float(bfloat_bits(x, 2 * j))); }
static inline F32 odd_bfloats(const ByteVec& x) { SPECDEC_LANES(bits_to_float(bfloat_bits(x, 2 * j + 1))); }

// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, for magnitudes below 2^22.
static inline F32 nearest(F32 x) { SPECDEC_LANES((x.v[j] + 12582912.0F) - 12582912.0F); }
static inline F32 power_of_two(F32 n) {
  SPECDEC_LANES(bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[j]) + 127) << 23));
}
#undef SPECDEC_LANES

static inline void prefetch(const void*) {}

// See simd_avx512.h: here the compiler's order of loads is left as it is.
template <int N>
[[gnu::always_inline]] static inline void loaded(F32 (&)[N]) {}

}  // namespace specdec::SPECDEC_ISA
