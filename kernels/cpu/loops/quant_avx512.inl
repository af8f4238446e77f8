// Bytes, products and activations of quant.inl with AVX-512.

namespace specdec::SPECDEC_ISA {

struct Bytes {
  static constexpr int kWidth = 4;
  __m512i x;
  static inline Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  // 16 bytes of each of four rows, byte k of all of them side by side.
  static inline Bytes quad(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    auto row = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
    __m512i rows = _mm512_inserti32x4(_mm512_castsi128_si512(row(a)), row(b), 1);
    rows = _mm512_inserti32x4(_mm512_inserti32x4(rows, row(c), 2), row(d), 3);
    const __m512i dwords = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return {_mm512_shuffle_epi8(_mm512_permutexvar_epi32(dwords, rows), bytes)};
  }
  static inline Bytes zip_low8(Bytes a, Bytes b) { return {_mm512_unpacklo_epi8(a.x, b.x)}; }
  static inline Bytes zip_high8(Bytes a, Bytes b) { return {_mm512_unpackhi_epi8(a.x, b.x)}; }
  static inline Bytes zip_low16(Bytes a, Bytes b) { return {_mm512_unpacklo_epi16(a.x, b.x)}; }
  static inline Bytes zip_high16(Bytes a, Bytes b) { return {_mm512_unpackhi_epi16(a.x, b.x)}; }
  template <int N>
  static inline Bytes left(Bytes a) {
    return {_mm512_slli_epi16(a.x, N)};
  }
  template <int N>
  static inline Bytes right(Bytes a) {
    return {_mm512_srli_epi16(a.x, N)};
  }
  template <int M>
  static inline Bytes mask(Bytes a) {
    return {_mm512_and_si512(a.x, _mm512_set1_epi8(static_cast<char>(M)))};
  }
  template <int M>
  static inline Bytes select(Bytes a, Bytes b) {
    return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(M)), a.x, b.x, 0xCA)};
  }
};

using Sums = __m512i;
static inline Sums sums_of(int32_t start) { return _mm512_set1_epi32(start); }
static inline Sums add_sums(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
static inline Sums shifted(Sums a, int by) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(by)); }
static inline F32 to_float(Sums x) { return _mm512_cvtepi32_ps(x); }
static inline F32 load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline F32 load_s8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

#if defined(__AVX512VNNI__)

#define SPECDEC_BYTE_WORDS 1
constexpr int kQuantSums = 12;
struct Products {
  Sums high, low;
  [[gnu::always_inline]] inline void start(Sums sum) { high = _mm512_setzero_si512(), low = sum; }
  [[gnu::always_inline]] inline void add_high(Bytes codes, int32_t word) { high = dot(high, codes.x, sums_of(word)); }
  [[gnu::always_inline]] inline void add_low(Bytes codes, int32_t word) { low = dot(low, codes.x, sums_of(word)); }
  [[gnu::always_inline]] inline Sums total() const { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
};

// 32 activations, `inverse` of the step each, to `words`; their sums by halves.
static inline void whole_numbers(const float* x, float inverse, int32_t* words, int32_t* sums) {
  const __m512 by = _mm512_set1_ps(inverse);
  const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(load(x), by)),
                second = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + 16), by));
  const __m512i round = _mm512_set1_epi32(128);
  const __m512i high[2] = {_mm512_srai_epi32(_mm512_add_epi32(first, round), 8),
                           _mm512_srai_epi32(_mm512_add_epi32(second, round), 8)};
  auto* to = reinterpret_cast<__m128i*>(words);
  _mm_store_si128(to, _mm512_cvtepi32_epi8(high[0]));
  _mm_store_si128(to + 1, _mm512_cvtepi32_epi8(high[1]));
  _mm_store_si128(to + 2, _mm512_cvtepi32_epi8(first));
  _mm_store_si128(to + 3, _mm512_cvtepi32_epi8(second));
  sums[0] = _mm512_reduce_add_epi32(first);
  sums[1] = _mm512_reduce_add_epi32(second);
}

#else

constexpr int kQuantSums = 24;
struct Products {
  Sums sum;
  [[gnu::always_inline]] inline void start(Sums from) { sum = from; }
  [[gnu::always_inline]] inline void add(__m512i codes, int32_t word) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(codes, sums_of(word)));
    asm("" : "+v"(sum));  // GCC would add up products first, which takes more registers
  }
  [[gnu::always_inline]] inline void add_high(Bytes codes, int32_t word) {
    add(_mm512_and_si512(codes.x, _mm512_set1_epi16(255)), word);
  }
  [[gnu::always_inline]] inline void add_low(Bytes codes, int32_t word) { add(_mm512_srli_epi16(codes.x, 8), word); }
  [[gnu::always_inline]] inline Sums total() const { return sum; }
};

static inline void whole_numbers(const float* x, float inverse, int32_t* words, int32_t* sums) {
  const __m512 by = _mm512_set1_ps(inverse);
  for (int half = 0; half < 2; ++half) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + 16 * half), by));
    // Lane k: inputs 4 k to 4 k + 3 in 16 bits.
    const __m256i all = _mm512_cvtepi32_epi16(whole);
    const __m256i split = _mm256_shuffle_epi8(all, _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
                                                                    0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    _mm_store_si128(reinterpret_cast<__m128i*>(words + 4 * half), _mm256_cvtepi64_epi32(split));
    _mm_store_si128(reinterpret_cast<__m128i*>(words + kQuads + 4 * half),
                    _mm256_cvtepi64_epi32(_mm256_srli_epi64(split, 32)));
    sums[half] = _mm512_reduce_add_epi32(whole);
  }
}

#endif

}  // namespace specdec::SPECDEC_ISA
