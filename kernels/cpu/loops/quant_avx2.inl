// Bytes, products and activations of quant.inl with AVX2, and with AVX-VNNI where the compiler may use it.
//
// `vpmaddubsw` would saturate with codes of 8 bits, and costs as many instructions with fewer; so codes go to 16 bits.

namespace specdec::SPECDEC_ISA {

struct Bytes {
  static constexpr int kWidth = 2;
  __m256i x;
  static inline Bytes load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  // 8 bytes of each of four rows, byte k of all of them side by side.
  static inline Bytes quad(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    auto row = [](const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); };
    const __m128i ab = _mm_unpacklo_epi8(row(a), row(b)), cd = _mm_unpacklo_epi8(row(c), row(d));
    return {_mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd))};
  }
  static inline Bytes zip_low8(Bytes a, Bytes b) { return {_mm256_unpacklo_epi8(a.x, b.x)}; }
  static inline Bytes zip_high8(Bytes a, Bytes b) { return {_mm256_unpackhi_epi8(a.x, b.x)}; }
  static inline Bytes zip_low16(Bytes a, Bytes b) { return {_mm256_unpacklo_epi16(a.x, b.x)}; }
  static inline Bytes zip_high16(Bytes a, Bytes b) { return {_mm256_unpackhi_epi16(a.x, b.x)}; }
  template <int N>
  static inline Bytes left(Bytes a) {
    return {_mm256_slli_epi16(a.x, N)};
  }
  template <int N>
  static inline Bytes right(Bytes a) {
    return {_mm256_srli_epi16(a.x, N)};
  }
  template <int M>
  static inline Bytes mask(Bytes a) {
    return {_mm256_and_si256(a.x, _mm256_set1_epi8(static_cast<char>(M)))};
  }
  template <int M>
  static inline Bytes select(Bytes a, Bytes b) {
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(M));
    return {_mm256_or_si256(_mm256_and_si256(bits, a.x), _mm256_andnot_si256(bits, b.x))};
  }
};

using Sums = __m256i;
static inline Sums sums_of(int32_t start) { return _mm256_set1_epi32(start); }
static inline Sums add_sums(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
static inline Sums shifted(Sums a, int by) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(by)); }
static inline F32 to_float(Sums x) { return _mm256_cvtepi32_ps(x); }
static inline F32 load_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline F32 load_s8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

static inline Sums add_pairs(Sums sum, __m256i codes, __m256i words) {
#if defined(__AVXVNNI__)
  // As in int4_simd.inl, but in the encoding of machines without AVX-512.
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(words));
  return sum;
#else
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes, words));
  asm("" : "+x"(sum));  // GCC would add up products first, which takes more registers than there are
  return sum;
#endif
}

constexpr int kQuantSums = 12;
struct Products {
  Sums sum;
  [[gnu::always_inline]] inline void start(Sums from) { sum = from; }
  [[gnu::always_inline]] inline void add_high(Bytes codes, int32_t word) {
    sum = add_pairs(sum, _mm256_and_si256(codes.x, _mm256_set1_epi16(255)), sums_of(word));
  }
  [[gnu::always_inline]] inline void add_low(Bytes codes, int32_t word) {
    sum = add_pairs(sum, _mm256_srli_epi16(codes.x, 8), sums_of(word));
  }
  [[gnu::always_inline]] inline Sums total() const { return sum; }
};

static inline int32_t added_up(__m256i x) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

static inline void whole_numbers(const float* x, float inverse, int32_t* words, int32_t* sums) {
  const __m256 by = _mm256_set1_ps(inverse);
  const __m256i split = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  for (int half = 0; half < 2; ++half) {
    const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + 16 * half), by)),
                  second = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + 16 * half + 8), by));
    // In 16 bits and in order; then even inputs of two quads, odd ones of the same, and of the next two.
    const __m256i all = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
    const __m256i parts = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(all, split), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words + 4 * half), _mm256_castsi256_si128(parts));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words + kQuads + 4 * half), _mm256_extracti128_si256(parts, 1));
    sums[half] = added_up(_mm256_add_epi32(first, second));
  }
}

}  // namespace specdec::SPECDEC_ISA
