// The steps of quant.inl that instruction sets do differently, each in a file of its own that has:
//
// - Bytes: kWidth lanes of 16 bytes; interleaved within lanes; shifts may carry bits between neighbouring bytes (mask
//   what comes out); select<M> takes bits of M from the first argument, the others from the second.
// - Sums: kLanes whole numbers of 32 bits; kQuantSums: how many Products stay in registers.
// - Products: kLanes outputs of one row: codes (four inputs of an output side by side) times words of activations. A
//   word belongs to four inputs: with SPECDEC_BYTE_WORDS high and low bytes of all four (a = 256 high + low, both with a
//   sign), else the even inputs, and the odd ones, in 16 bits. Products are whole numbers: every instruction set gets the
//   same sums.
// - whole_numbers: 32 activations, `inverse` of the step each, to the high words of each four and then the low ones; and
//   their sums by halves. Nearest whole numbers, ties to even ones.

namespace specdec::SPECDEC_ISA {

// A number that the type says.
template <int N>
struct Constant {
  static constexpr int value = N;
};

}  // namespace specdec::SPECDEC_ISA

#if defined(SPECDEC_SCALAR)
#include "quant_portable.inl"
#elif defined(__AVX512BW__)
#include "quant_avx512.inl"
#elif defined(__AVX2__)
#include "quant_avx2.inl"
#elif defined(__ARM_NEON)
#include "quant_neon.inl"
#else
#include "quant_portable.inl"
#endif

#if !defined(SPECDEC_EACH_ROW)
#define SPECDEC_EACH_ROW SPECDEC_UNROLL
#define SPECDEC_UNPACK [[gnu::always_inline]]
#endif

namespace specdec::SPECDEC_ISA {

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

// A group's activations to the words of one of `rows` rows (see quant_kernels.h).
static inline void whole_group(const float* x, float inverse, int64_t rows, int32_t* out) {
  alignas(16) int32_t words[2 * kQuads], sums[2];
  whole_numbers(x, inverse, words, sums);
  if (rows == 1)
    __builtin_memcpy(out, words, sizeof words);
  else
    for (int k = 0; k < 2 * kQuads; ++k) out[k * rows] = words[k];
  out[2 * kQuads * rows] = sums[0];
  out[(2 * kQuads + 1) * rows] = sums[1];
  const auto sum = static_cast<float>(sums[0] + sums[1]);
  __builtin_memcpy(out + (2 * kQuads + 2) * rows, &sum, sizeof sum);
}

}  // namespace specdec::SPECDEC_ISA
