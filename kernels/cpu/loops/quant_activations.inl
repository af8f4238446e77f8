// Rows of activations for quantised matrices: the inputs that they take, and their values in whole numbers.

namespace specdec::SPECDEC_ISA {

// The list of a group's chosen inputs, a group in `parts`.
static void quant_list(uint32_t mask, int parts, QuantChoice* choice) {
  choice->mask = mask;
  choice->quads[1] = 0;
  for (int p = 0; p < parts; ++p) {
    uint32_t left = parts == 1 ? mask : p == 0 ? mask & 0xFFFFU : mask & 0xFFFF0000U;
    uint8_t* index = choice->index + p * (kQuantGroup / 2);
    const int count = __builtin_popcount(left), last = left == 0 ? 0 : 31 - __builtin_clz(left);
    choice->quads[p] = static_cast<uint8_t>((count + 3) / 4);
#if defined(__AVX512VBMI2__) && !defined(SPECDEC_SCALAR)
    const __m256i places = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                            22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
    const __m256i listed = _mm256_mask_compress_epi8(_mm256_set1_epi8(static_cast<char>(last)), left, places);
    _mm256_mask_storeu_epi8(index, parts == 1 ? ~0U : 0xFFFFU, listed);
#else
    for (int j = 0; j < kQuantGroup / parts; ++j, left &= left - 1)
      index[j] = static_cast<uint8_t>(left == 0 ? last : __builtin_ctz(left));
#endif
  }
}

// x where the bit of a group's mask is set, else 0.
static inline void masked_group(const float* x, uint32_t mask, float* out) {
#if defined(__AVX512F__) && !defined(SPECDEC_SCALAR)
  store(out, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x));
  store(out + 16, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + 16));
#else
  for (int j = 0; j < kQuantGroup; ++j) out[j] = (mask >> j & 1U) != 0 ? x[j] : 0.0F;
#endif
}

// A group's activations in the order of its list, and zeros.
static inline void listed_group(const float* x, const QuantChoice& choice, int parts, float* out) {
#if defined(__AVX512F__) && !defined(SPECDEC_SCALAR)
  const auto low = static_cast<__mmask16>(choice.mask), high = static_cast<__mmask16>(choice.mask >> 16);
  store(out, _mm512_maskz_compress_ps(low, load(x)));
  store(out + 16, zero());
  store(out + (parts == 1 ? __builtin_popcount(low) : 16), _mm512_maskz_compress_ps(high, load(x + 16)));
#else
  for (int p = 0; p < 2; ++p) {
    const uint32_t part = parts == 1 ? ~0U : p == 0 ? 0xFFFFU : 0xFFFF0000U;
    const int from = p * (kQuantGroup / 2), taken = __builtin_popcount(choice.mask & part) - (parts == 1 ? from : 0);
    for (int j = 0; j < kQuantGroup / 2; ++j) out[from + j] = j < taken ? x[choice.index[from + j]] : 0.0F;
  }
#endif
}

static void quant_activations(const QuantRowsCall& call) {
  const int64_t groups = call.in / kQuantGroup, rows = call.rows;
  auto* steps = reinterpret_cast<float*>(call.out + groups * kQuantRowWords * rows);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t span = call.first; span < call.last; ++span) {
      const int64_t first = span * kQuantSpan, left = call.in - first, count = left < kQuantSpan ? left : kQuantSpan;
      const float* x = call.x + row * call.stride + first;
      alignas(64) float chosen[kQuantSpan];
      if (call.masks != nullptr) {
        const uint32_t* masks = call.masks + row * groups + first / kQuantGroup;
        for (int64_t i = 0; i < count; i += kQuantGroup) masked_group(x + i, masks[i / kQuantGroup], chosen + i);
        x = chosen;
      }
      const float peak = largest(x, count);
      // Anything too small to divide by counts as zero. A value that is not a number leaves no step.
      const float inverse = peak >= 1e-30F && peak <= 3e38F ? kQuantPeak / peak : 0.0F;
      for (int64_t i = 0; i < count; i += kQuantGroup) {
        const int64_t g = (first + i) / kQuantGroup;
        alignas(64) float listed[kQuantGroup];
        if (call.choices != nullptr) listed_group(x + i, call.choices[g], call.parts, listed);
        whole_group(call.choices != nullptr ? listed : x + i, inverse, rows, call.out + g * kQuantRowWords * rows + row);
      }
      steps[span * rows + row] = peak * (1.0F / kQuantPeak);
    }
}

}  // namespace specdec::SPECDEC_ISA
