// The steps of select_draft.inl that instruction sets do differently.

namespace specdec::SPECDEC_ISA {

// 1 / step for a group whose largest |activation| is `peak`. Anything too small to divide by counts as zero.
static inline float inverse_step(float peak) { return peak >= 1e-30F && peak <= 3e38F ? 127.0F / peak : 0.0F; }

#if defined(__AVX512BW__) && !defined(SPECDEC_SCALAR)

// |x_i| * scores_i for n inputs, a multiple of kGroup; returns their sum.
static float score_inputs(const float* x, const float* scores, int64_t n, float* out) {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < n; i += 32)
    for (int k = 0; k < 2; ++k) {
      const __m512 score = _mm512_mul_ps(_mm512_abs_ps(load(x + i + 16 * k)), load(scores + i + 16 * k));
      store(out + i + 16 * k, score);
      sum[k] = _mm512_add_ps(sum[k], score);
    }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

// How many of n scores are at least `cut`.
static int64_t count_from(const float* scores, int64_t n, float cut) {
  const __m512 limit = _mm512_set1_ps(cut);
  const __m512i one = _mm512_set1_epi32(1);
  __m512i counts[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int k = 0; k < 2; ++k) {
      const __mmask16 taken = _mm512_cmp_ps_mask(load(scores + i + 16 * k), limit, _CMP_GE_OQ);
      counts[k] = _mm512_mask_add_epi32(counts[k], taken, counts[k], one);
    }
  int64_t count = _mm512_reduce_add_epi32(_mm512_add_epi32(counts[0], counts[1]));
  for (; i < n; ++i) count += scores[i] >= cut;
  return count;
}

// Bit j: score j of a group is at least `cut`.
static inline uint32_t mask_from(const float* scores, float cut) {
  const __m512 limit = _mm512_set1_ps(cut);
  const uint32_t low = _mm512_cmp_ps_mask(load(scores), limit, _CMP_GE_OQ);
  const uint32_t high = _mm512_cmp_ps_mask(load(scores + 16), limit, _CMP_GE_OQ);
  return low | high << 16;
}

// Moves the bytes whose bit is set to the front, `fill` after them.
static inline __m256i compress_bytes(__m256i fill, uint32_t mask, __m256i bytes) {
#if defined(__AVX512VBMI2__)
  return _mm256_mask_compress_epi8(fill, mask, bytes);
#else
  // 16 bytes at a time as 32-bit lanes.
  alignas(32) uint8_t out[64];
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), fill);
  const auto low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
  const __m512i first = _mm512_maskz_compress_epi32(low, _mm512_cvtepu8_epi32(_mm256_castsi256_si128(bytes)));
  const __m512i second = _mm512_maskz_compress_epi32(high, _mm512_cvtepu8_epi32(_mm256_extracti128_si256(bytes, 1)));
  const int count = __builtin_popcount(low);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(first));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + count), _mm512_cvtepi32_epi8(second));
  const int taken = __builtin_popcount(mask);
  const __mmask32 rest = taken == 32 ? 0 : ~0U << taken;
  return _mm256_mask_mov_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(out)), rest, fill);
#endif
}

static inline void quantise_group(const float* x, uint32_t mask, ChosenGroup* group) {
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + 16);
  const float peak = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
  // NaN, should there be any, becomes -127.
  const __m512 inverse = _mm512_set1_ps(inverse_step(peak)), least = _mm512_set1_ps(-127.0F),
               most = _mm512_set1_ps(127.0F);
  const __m512i first = _mm512_cvtps_epi32(vmin(vmax(_mm512_mul_ps(low, inverse), least), most));
  const __m512i second = _mm512_cvtps_epi32(vmin(vmax(_mm512_mul_ps(high, inverse), least), most));
  const __m256i values = _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first));
  const __m256i places = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                          22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
  const int last = mask == 0 ? 0 : 31 - __builtin_clz(mask);
  _mm256_store_si256(reinterpret_cast<__m256i*>(group->index),
                     compress_bytes(_mm256_set1_epi8(static_cast<char>(last)), mask, places));
  _mm256_store_si256(reinterpret_cast<__m256i*>(group->value), compress_bytes(_mm256_setzero_si256(), mask, values));
  group->step = peak * (1.0F / 127.0F);
  group->sum = _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
  group->count = __builtin_popcount(mask);
  group->quads = (group->count + 3) / 4;
}

#else

static float score_inputs(const float* x, const float* scores, int64_t n, float* out) {
  F32 sum = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 value = load(x + i), score = mul(vmax(value, sub(zero(), value)), load(scores + i));
    store(out + i, score);
    sum = add(sum, score);
  }
  return sum_lanes(sum);
}

static int64_t count_from(const float* scores, int64_t n, float cut) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += scores[i] >= cut;  // compilers vectorise this
  return count;
}

static inline uint32_t mask_from(const float* scores, float cut) {
  uint32_t mask = 0;
  for (int j = 0; j < kGroup; ++j) mask |= static_cast<uint32_t>(scores[j] >= cut) << j;
  return mask;
}

static inline void quantise_group(const float* x, uint32_t mask, ChosenGroup* group) {
  float chosen[kGroup], peak = 0.0F;
  int count = 0;
  for (int j = 0; j < kGroup; ++j) {  // without branches: a mask is random
    const uint32_t taken = mask >> j & 1U;
    const float size = __builtin_fabsf(x[j]);
    group->index[count] = static_cast<uint8_t>(j);
    chosen[count] = x[j];
    peak = taken != 0 && size > peak ? size : peak;
    count += static_cast<int>(taken);
  }
  const float inverse = inverse_step(peak);
  const int last = mask == 0 ? 0 : 31 - __builtin_clz(mask);
  int32_t sum = 0;
  for (int j = 0; j < kGroup; ++j) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    float value = j < count ? (chosen[j] * inverse + 12582912.0F) - 12582912.0F : 0.0F;
    value = value > -127.0F ? value : -127.0F;  // NaN, should there be any, too
    value = value < 127.0F ? value : 127.0F;
    group->value[j] = static_cast<int8_t>(value);
    if (j >= count) group->index[j] = static_cast<uint8_t>(last);
    sum += static_cast<int32_t>(value);
  }
  group->step = peak * (1.0F / 127.0F);
  group->sum = sum;
  group->count = count;
  group->quads = (count + 3) / 4;
}

#endif

}  // namespace specdec::SPECDEC_ISA
