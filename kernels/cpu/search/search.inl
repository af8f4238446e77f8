// Scanning codes, exact products and collecting candidates; definitions in search_kernels.h.

#include "half.h"
#include "search_kernels.h"

namespace specdec::SPECDEC_ISA {

#if defined(__AVX512VNNI__)

// Four runs as 16 quads of bytes in each of four vectors.
SPECDEC_INLINE void interleave(const uint8_t* const* from, int64_t offset, __m512i* to) {
  const __m512i a = _mm512_loadu_si512(from[0] + offset), b = _mm512_loadu_si512(from[1] + offset);
  const __m512i c = _mm512_loadu_si512(from[2] + offset), d = _mm512_loadu_si512(from[3] + offset);
  const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
  const __m512i ef = _mm512_unpackhi_epi8(a, b), gh = _mm512_unpackhi_epi8(c, d);
  to[0] = _mm512_unpacklo_epi16(ab, cd);
  to[1] = _mm512_unpackhi_epi16(ab, cd);
  to[2] = _mm512_unpacklo_epi16(ef, gh);
  to[3] = _mm512_unpackhi_epi16(ef, gh);
}

static void scan_group(const ScanCall& call, const uint8_t* const* from, const int8_t* weights, int quads, float step,
                       bool first) {
  const __m512i low = _mm512_set1_epi8(15);
  const __m512 scale = _mm512_set1_ps(step);
  for (int64_t v = 0; v < call.width; v += kLineVectors) {
    __m512i sums[8];
    for (auto& sum : sums) sum = _mm512_setzero_si512();
    for (int q = 0; q < quads; ++q) {
      int32_t word;
      __builtin_memcpy(&word, weights + q * kQuad, 4);
      const __m512i weight = _mm512_set1_epi32(word);
      __m512i bytes[4];
      interleave(from + q * kQuad, v / 2, bytes);
      for (int j = 0; j < 4; ++j) {
        sums[j] = _mm512_dpbusd_epi32(sums[j], _mm512_and_si512(bytes[j], low), weight);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes[j], 4), low);
        sums[4 + j] = _mm512_dpbusd_epi32(sums[4 + j], high, weight);
      }
    }
    for (int j = 0; j < 8; ++j) {
      float* to = call.sums + v + 16 * j;
      const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[j]), scale);
      _mm512_storeu_ps(to, first ? part : _mm512_add_ps(_mm512_loadu_ps(to), part));
    }
  }
}

#elif defined(__AVX2__)

SPECDEC_INLINE void interleave(const uint8_t* const* from, int64_t offset, __m256i* to) {
  const auto load = [&](int k) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[k] + offset)); };
  const __m256i a = load(0), b = load(1), c = load(2), d = load(3);
  const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
  const __m256i ef = _mm256_unpackhi_epi8(a, b), gh = _mm256_unpackhi_epi8(c, d);
  to[0] = _mm256_unpacklo_epi16(ab, cd);
  to[1] = _mm256_unpackhi_epi16(ab, cd);
  to[2] = _mm256_unpacklo_epi16(ef, gh);
  to[3] = _mm256_unpackhi_epi16(ef, gh);
}

static void scan_group(const ScanCall& call, const uint8_t* const* from, const int8_t* weights, int quads, float step,
                       bool first) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const __m256 scale = _mm256_set1_ps(step);
  for (int64_t v = 0; v < call.width; v += kLineVectors)
    for (int half = 0; half < 2; ++half) {
      __m256i sums[8];
      for (auto& sum : sums) sum = _mm256_setzero_si256();
      for (int q = 0; q < quads; ++q) {
        int32_t word;
        __builtin_memcpy(&word, weights + q * kQuad, 4);
        const __m256i weight = _mm256_set1_epi32(word);
        __m256i bytes[4];
        interleave(from + q * kQuad, v / 2 + half * 32, bytes);
        for (int j = 0; j < 4; ++j) {  // a pair of products is at most 2 * 15 * 127
          const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes[j], 4), low);
          const __m256i p = _mm256_maddubs_epi16(_mm256_and_si256(bytes[j], low), weight);
          sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(p, ones));
          sums[4 + j] = _mm256_add_epi32(sums[4 + j], _mm256_madd_epi16(_mm256_maddubs_epi16(high, weight), ones));
        }
      }
      for (int j = 0; j < 8; ++j) {
        float* to = call.sums + v + 16 * j + 8 * half;
        const __m256 part = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[j]), scale);
        _mm256_storeu_ps(to, first ? part : _mm256_add_ps(_mm256_loadu_ps(to), part));
      }
    }
}

#else

static void scan_group(const ScanCall& call, const uint8_t* const* from, const int8_t* weights, int quads, float step,
                       bool first) {
  for (int64_t v = 0; v < call.width; v += kLineVectors) {
    int32_t low[kLine] = {}, high[kLine] = {};  // by byte
    for (int r = 0; r < quads * kQuad; ++r) {
      const uint8_t* line = from[r] + v / 2;
      const int32_t weight = weights[r];
      for (int b = 0; b < kLine; ++b) {
        low[b] += weight * (line[b] & 15);
        high[b] += weight * (line[b] >> 4);
      }
    }
    for (int u = 0; u < kLine; ++u) {
      float* to = call.sums + v + u;
      const float part = static_cast<float>(low[line_byte(u)]) * step;
      const float other = static_cast<float>(high[line_byte(u)]) * step;
      to[0] = first ? part : to[0] + part;
      to[kLine] = first ? other : to[kLine] + other;
    }
  }
}

#endif

static void scan(const ScanCall& call) {
  const uint8_t* from[kScanQuads * kQuad];
  for (int64_t q = 0; q < call.quads; q += kScanQuads) {
    const int quads = static_cast<int>(call.quads - q < kScanQuads ? call.quads - q : kScanQuads);
    for (int r = 0; r < quads * kQuad; ++r) from[r] = call.codes + call.runs[q * kQuad + r] * (call.width / 2);
    scan_group(call, from, call.weights + q * kQuad, quads, call.steps[q / kScanQuads], q == 0);
  }
}

static void finish(const FinishCall& call) {
  for (int64_t v = 0; v < call.count; ++v)
    call.sums[v] = (call.sums[v] - call.base) * call.steps[v] + call.biases[v];
}

SPECDEC_INLINE float magnitude(float x) { return bits_to_float(float_to_bits(x) & 0x7FFFFFFFU); }

static void bounds(const BoundsCall& call) {
  for (int64_t v = 0; v < call.count; ++v) {
    const float score = call.scores[v], bias = call.biases[v];
    const float margin = call.steps[v] * (call.fixed + call.spread * call.norms[v]) + call.weight * call.errors[v] +
                         call.rounding * (magnitude(score) + magnitude(bias));
    const bool there = bias > -3e38F;  // else -inf - inf would be no number
    call.lower[v] = there ? score - margin : bias;
    call.upper[v] = there ? score + margin : bias;
  }
}

// Eight sums, value i in sum i % 8, added in pairs at distance 4, 2 and 1; products and sums are rounded apart.
SPECDEC_INLINE double add_eight(double* sums) {
  for (int half = 4; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

SPECDEC_INLINE double term(double x, double q, bool distance) { return distance ? (x - q) * (x - q) : x * q; }

#if defined(__AVX512F__)
SPECDEC_INLINE __m256 eight(const float* x) { return _mm256_loadu_ps(x); }
SPECDEC_INLINE __m256 eight(const uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
#endif
SPECDEC_INLINE double one(float x) { return static_cast<double>(x); }
SPECDEC_INLINE double one(uint16_t x) { return static_cast<double>(half_to_float(x)); }

template <class T>
SPECDEC_INLINE double exact(const T* x, const double* q, int64_t n, bool distance) {
  double sums[8] = {};
  int64_t i = 0;
#if defined(__AVX512F__)
  __m512d sum = _mm512_setzero_pd();
  for (; i + 8 <= n; i += 8) {
    const __m512d value = _mm512_cvtps_pd(eight(x + i)), other = _mm512_loadu_pd(q + i);
    const __m512d gap = _mm512_sub_pd(value, other);
    sum = _mm512_add_pd(sum, distance ? _mm512_mul_pd(gap, gap) : _mm512_mul_pd(value, other));
  }
  _mm512_storeu_pd(sums, sum);
#else
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += term(one(x[i + j]), q[i + j], distance);
#endif
  for (; i < n; ++i) sums[i % 8] += term(one(x[i]), q[i], distance);
  return add_eight(sums);
}

static double exact_float(const float* x, const double* q, int64_t n, bool distance) {
  return distance ? exact(x, q, n, true) : exact(x, q, n, false);
}

static double exact_half(const uint16_t* x, const double* q, int64_t n, bool distance) {
  return distance ? exact(x, q, n, true) : exact(x, q, n, false);
}

static int64_t above(const float* scores, int64_t first, int64_t count, float floor, int32_t* found, int64_t room,
                     int64_t* next) {
  int64_t number = 0, v = first;
#if defined(__AVX512F__)
  const __m512 least = _mm512_set1_ps(floor);
  for (; v + 16 <= count && number + 16 <= room; v += 16) {
    uint32_t mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + v), least, _CMP_GE_OQ);
    for (; mask != 0; mask &= mask - 1) found[number++] = static_cast<int32_t>(v + __builtin_ctz(mask));
  }
#elif defined(__AVX2__)
  const __m256 least = _mm256_set1_ps(floor);
  for (; v + 8 <= count && number + 8 <= room; v += 8) {
    auto mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores + v), least, _CMP_GE_OQ)));
    for (; mask != 0; mask &= mask - 1) found[number++] = static_cast<int32_t>(v + __builtin_ctz(mask));
  }
#endif
  for (; v < count && number < room; ++v)
    if (scores[v] >= floor) found[number++] = static_cast<int32_t>(v);
  *next = v;
  return number;
}

SPECDEC_INLINE SearchKernels search_kernels() { return SearchKernels{scan, finish, bounds, exact_float, exact_half, above}; }

}  // namespace specdec::SPECDEC_ISA
