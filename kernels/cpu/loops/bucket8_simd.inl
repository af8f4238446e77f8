// The innermost step of bucket8.inl for each instruction set: a bucket of four inputs times four activations.
//
// A bucket's weights lie at 64 places; place 16 L + 4 q + l is output 16 q + 4 L + l of the bucket, so that interleaving
// four buckets by bytes leaves the products of 16 consecutive outputs in each of four sums. Weights are levels + 128, and
// 128 where a weight is not chosen: what that adds is the same for every output and is taken away at the start.

namespace specdec::SPECDEC_ISA {

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && !defined(SPECDEC_SCALAR)

// The chosen weights of one input and bucket; `row` points to the record of tier 0, `rest` to that of the last tier.
template <int kTaken>
[[gnu::always_inline]] static inline __m512i expand_tiers(const uint8_t* row, int64_t tier_stride, const uint8_t* rest) {
  // Expanding from memory is slow, and so is expanding with zeros: it waits for what its target held before.
  __m512i places = _mm512_set1_epi8(static_cast<char>(128));
  uint64_t left = ~uint64_t{0};
  SPECDEC_UNROLL for (int k = 0; k < kTaken; ++k) {
    const uint8_t* record = k < kTiers - 1 ? row + k * tier_stride : rest;
    uint64_t mask = left;
    if (k < kTiers - 1) {
      __builtin_memcpy(&mask, record, sizeof mask);
      left &= ~mask;
      record += sizeof mask;
    }
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(record));
    places = _mm512_mask_expand_epi8(places, mask, _mm512_castsi128_si512(values));
  }
  return places;
}

struct BucketSums {
  __m512i sum[4];
  [[gnu::always_inline]] inline void start(int32_t start) {
    SPECDEC_UNROLL for (int q = 0; q < 4; ++q) sum[q] = _mm512_set1_epi32(start);
  }
  template <int kTaken>
  [[gnu::always_inline]] inline void add(const uint8_t* const* rows, int64_t at, int64_t tier_stride, int64_t rest,
                                         int32_t values) {
    const __m512i a = expand_tiers<kTaken>(rows[0] + at, tier_stride, rows[0] + rest);
    const __m512i b = expand_tiers<kTaken>(rows[1] + at, tier_stride, rows[1] + rest);
    const __m512i c = expand_tiers<kTaken>(rows[2] + at, tier_stride, rows[2] + rest);
    const __m512i d = expand_tiers<kTaken>(rows[3] + at, tier_stride, rows[3] + rest);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), ab2 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd = _mm512_unpacklo_epi8(c, d), cd2 = _mm512_unpackhi_epi8(c, d);
    const __m512i s = _mm512_set1_epi32(values);
    sum[0] = dot(sum[0], _mm512_unpacklo_epi16(ab, cd), s);
    sum[1] = dot(sum[1], _mm512_unpackhi_epi16(ab, cd), s);
    sum[2] = dot(sum[2], _mm512_unpacklo_epi16(ab2, cd2), s);
    sum[3] = dot(sum[3], _mm512_unpackhi_epi16(ab2, cd2), s);
  }
  // totals += sums * step
  [[gnu::always_inline]] inline void finish(float step, float* totals) const {
    SPECDEC_UNROLL for (int q = 0; q < 4; ++q)
        store(totals + 16 * q, fma(_mm512_cvtepi32_ps(sum[q]), _mm512_set1_ps(step), load(totals + 16 * q)));
  }
};

#else

// Without an instruction that expands bytes by a mask, weights are placed one by one.
struct BucketSums {
  int32_t sum[kBucket];
  void start(int32_t start) {
    for (int32_t& one : sum) one = start;
  }
  template <int kTaken>
  static inline void place(const uint8_t* row, int64_t tier_stride, const uint8_t* rest, uint8_t* places) {
    for (int j = 0; j < kBucket; ++j) places[j] = 128;
    uint64_t left = ~uint64_t{0};
    for (int k = 0; k < kTaken; ++k) {
      const uint8_t* record = k < kTiers - 1 ? row + k * tier_stride : rest;
      uint64_t mask = left;
      if (k < kTiers - 1) {
        __builtin_memcpy(&mask, record, sizeof mask);
        left &= ~mask;
        record += sizeof mask;
      }
      for (; mask != 0; mask &= mask - 1) places[__builtin_ctzll(mask)] = *record++;
    }
  }
  template <int kTaken>
  inline void add(const uint8_t* const* rows, int64_t at, int64_t tier_stride, int64_t rest, int32_t values) {
    int8_t s[4];
    __builtin_memcpy(s, &values, 4);
    for (int r = 0; r < 4; ++r) {
      uint8_t places[kBucket];
      place<kTaken>(rows[r] + at, tier_stride, rows[r] + rest, places);
      for (int j = 0; j < kBucket; ++j) sum[j] += places[j] * s[r];
    }
  }
  void finish(float step, float* totals) const {
    for (int q = 0; q < 4; ++q)
      for (int lane = 0; lane < 4; ++lane)
        for (int l = 0; l < 4; ++l)
          totals[16 * q + 4 * lane + l] += static_cast<float>(sum[16 * lane + 4 * q + l]) * step;
  }
};

#endif

}  // namespace specdec::SPECDEC_ISA
