// Float16 and float32 without instructions for it; for packing, for the scalar kernels and for tests.
#pragma once

#include <cstdint>

namespace specdec {

// Each file gets its own copy (static): files of different instruction sets must not share one.
static inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

static inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Exact. Scaling by a power of two moves the exponent and makes denormals normal without a branch.
static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFFU) << 13;
  const float scaled = bits_to_float(magnitude) * 0x1p112F;
  const uint32_t bits = (half & 0x7C00U) == 0x7C00U ? magnitude | 0x7F800000U : float_to_bits(scaled);
  return bits_to_float(bits | sign);
}

// Rounds to nearest, ties to even; too large becomes infinite.
static inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>(sign | 0x7E00U);  // NaN
  if (magnitude >= 0x477FF000U) return static_cast<uint16_t>(sign | 0x7C00U);
  if (magnitude < 0x38800000U) {  // denormal: adding 0.5 leaves its last bit at 2^-24
    const uint32_t shifted = float_to_bits(bits_to_float(magnitude) + 0.5F) - 0x3F000000U;
    return static_cast<uint16_t>(sign | shifted);
  }
  const uint32_t odd = magnitude >> 13 & 1U;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + odd) >> 13));
}

}  // namespace specdec
