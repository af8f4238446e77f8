// Quantised matrices times rows: whole products of codes and 16-bit activations in int32, scaled once per group.
//
// A block of a group (32 inputs of 128 outputs) is unpacked once, into a buffer in the first-level cache, and multiplied
// by every row. For each (row, output) the steps are the same whatever the number of rows: a whole number for the group,
// to float32, times the scale, added to the span's sum; the offset's share subtracted; a span's sum times the row's step
// added to the result; groups and spans ascending. Every instruction set fuses the same products and sums, so all get the
// same bits.

#include "quant_simd.inl"

namespace specdec::SPECDEC_ISA {

// Sums that stay in registers, and the most rows of a tile.
constexpr int kQuantSums = kLanes == 16 ? 24 : kLanes == 8 ? 10 : 16;
constexpr int kQuantTileRows = kLanes == 16 ? 12 : 8;
// A tile of one block is read in order; it is asked for so many bytes ahead.
constexpr int64_t kQuantAhead = 4096;

// ---- scales: of kLanes outputs from `o` of a block on ------------------------------------------------------------

// What a group's whole numbers are multiplied by. `unit` and `group` are the heads of the block.
template <F32 (*Load)(const uint16_t*), bool Offset>
struct PlainScales {
  static constexpr int kParts = 1;
  static constexpr bool kOffset = Offset, kTwoLevels = false;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t* unit, const uint8_t*, int, int o) {
    return Load(reinterpret_cast<const uint16_t*>(unit) + o);
  }
  [[gnu::always_inline]] static inline F32 offset(const uint8_t* unit, const uint8_t*, int o) {
    return Load(reinterpret_cast<const uint16_t*>(unit) + kQuantBlock + o);
  }
  // What `scale` and `offset` leave to the end of a span.
  static inline F32 outer(const uint8_t*, int) { return set1(1.0F); }
  static inline F32 outer_offset(const uint8_t*, int) { return set1(1.0F); }
};
// Scales of scales are left to the end of a span.
static inline F32 half_of(const uint8_t* unit, int o) { return load_half(reinterpret_cast<const uint16_t*>(unit) + o); }
struct SixBitScales {
  static constexpr int kParts = 1;
  static constexpr bool kOffset = true, kTwoLevels = true;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t*, const uint8_t* group, int, int o) {
    return load_u8(group + o);
  }
  [[gnu::always_inline]] static inline F32 offset(const uint8_t*, const uint8_t* group, int o) {
    return load_u8(group + kQuantBlock + o);
  }
  static inline F32 outer(const uint8_t* unit, int o) { return half_of(unit, o); }
  static inline F32 outer_offset(const uint8_t* unit, int o) { return half_of(unit, kQuantBlock + o); }
};
struct ByteScales {
  static constexpr int kParts = 2;
  static constexpr bool kOffset = false, kTwoLevels = true;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t*, const uint8_t* group, int part, int o) {
    return load_s8(group + part * kQuantBlock + o);
  }
  static inline F32 offset(const uint8_t*, const uint8_t*, int) { return zero(); }
  static inline F32 outer(const uint8_t* unit, int o) { return half_of(unit, o); }
  static inline F32 outer_offset(const uint8_t*, int) { return zero(); }
};

// ---- codes -------------------------------------------------------------------------------------------------------

// Codes of four inputs from their rows of the first plane and the rest: Bits - 4 low bits, see quant_matrix.cpp.
template <int Bits>
[[gnu::always_inline]] static inline void unpack_quad(const uint8_t* row, int64_t stride, const uint8_t* rest,
                                                      uint8_t* codes) {
  constexpr int kRest = Bits - 4;
  for (int lane = 0; lane < 4; lane += Bytes::kWidth) {
    const Bytes a = Bytes::load(row + 16 * lane), b = Bytes::load(row + stride + 16 * lane),
                c = Bytes::load(row + 2 * stride + 16 * lane), d = Bytes::load(row + 3 * stride + 16 * lane);
    const Bytes ab = Bytes::zip_low8(a, b), ab2 = Bytes::zip_high8(a, b);
    const Bytes cd = Bytes::zip_low8(c, d), cd2 = Bytes::zip_high8(c, d);
    const Bytes both[4] = {Bytes::zip_low16(ab, cd), Bytes::zip_high16(ab, cd), Bytes::zip_low16(ab2, cd2),
                           Bytes::zip_high16(ab2, cd2)};
    SPECDEC_UNROLL for (int j = 0; j < 4; ++j) {
      uint8_t* to = codes + 128 * j + 16 * lane;  // outputs 32 j and, 64 bytes on, 32 j + 16
      Bytes low, high;
      if constexpr (kRest == 0) {
        low = Bytes::mask<15>(both[j]);
        high = Bytes::mask<15>(Bytes::right<4>(both[j]));
      } else if constexpr (kRest == 4) {
        const Bytes other = Bytes::load(rest + 64 * j + 16 * lane);
        low = Bytes::select<0xF0>(Bytes::left<4>(both[j]), other);
        high = Bytes::select<0xF0>(both[j], Bytes::right<4>(other));
      } else if constexpr (kRest == 2) {
        Bytes other = Bytes::load(rest + 64 * (j / 2) + 16 * lane);
        if (j % 2 == 1) other = Bytes::right<4>(other);
        low = Bytes::mask<63>(Bytes::select<0x3C>(Bytes::left<2>(both[j]), other));
        high = Bytes::mask<63>(Bytes::select<0x3C>(Bytes::right<2>(both[j]), Bytes::right<2>(other)));
      } else {
        Bytes other = Bytes::load(rest + 16 * lane);
        if (j == 1) other = Bytes::right<2>(other);
        if (j == 2) other = Bytes::right<4>(other);
        if (j == 3) other = Bytes::right<6>(other);
        low = Bytes::mask<31>(Bytes::select<0x1E>(Bytes::left<1>(both[j]), other));
        high = Bytes::mask<31>(Bytes::select<0x1E>(Bytes::right<3>(both[j]), Bytes::right<1>(other)));
      }
      low.store(to);
      high.store(to + 64);
    }
  }
}

// Asks for `lines` lines from `next` on, while a block is unpacked.
template <int Bits>
static void unpack_codes(const uint8_t* row, int64_t stride, const uint8_t* rest, uint8_t* codes, const uint8_t* next,
                         int64_t lines) {
  constexpr int64_t kRestBytes = (Bits - 4) * kQuantBlock * 4 / 8;
  const int64_t each = (lines + kQuads - 1) / kQuads;
  for (int q = 0; q < kQuads; ++q) {
    for (int64_t k = 0; k < each; ++k) SPECDEC_PREFETCH_FAR(next + 64 * k);
    next += 64 * each;
    unpack_quad<Bits>(row, stride, rest, codes);
    row += 4 * stride;
    rest += kRestBytes;
    codes += 4 * kQuantBlock;
  }
}

// ---- products ----------------------------------------------------------------------------------------------------

// A block of a group: the heads that belong to it, its codes ([kQuads][kQuantBlock][4]).
struct QuantHeads {
  const uint8_t *unit, *group;
  int32_t zero;  // of the format
};

// Running sums of a span for one row: [kQuantBlock], and those of the offsets where they have their own scale.
constexpr int kSpanSums = 2 * kQuantBlock;

template <class Scales, int Part>
[[gnu::always_inline]] static inline void add_group(Sums whole, F32 scale, F32 offset, float sum, float* span) {
  F32 total = fused(to_float(whole), scale, load(span));
  if (Scales::kOffset && Part + 1 == Scales::kParts) {
    if (Scales::kTwoLevels)
      store(span + kQuantBlock, fused(set1(sum), offset, load(span + kQuantBlock)));
    else
      total = fused(set1(-sum), offset, total);
  }
  store(span, total);
}

// V vectors of outputs of a part of a group times R rows.
template <class Scales, int R, int V, int Part>
[[gnu::always_inline]] static inline void quant_vectors(const QuantHeads& heads, const uint8_t* codes, int first,
                                                        const int32_t* x, float* span) {
  constexpr int kPartQuads = kQuads / Scales::kParts;
  const int32_t *high = x + Part * kPartQuads * R, *low = high + kQuads * R, *added = x + (2 * kQuads + Part) * R;
  const auto* sum = reinterpret_cast<const float*>(x + (2 * kQuads + 2) * R);
  Sums acc[R][V];
  SPECDEC_UNROLL for (int r = 0; r < R; ++r) SPECDEC_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = sums_of(0);
  codes += (Part * kPartQuads * kQuantBlock + first) * 4;
  for (int q = 0; q < kPartQuads; ++q) {
    Sums w[V];
    SPECDEC_UNROLL for (int v = 0; v < V; ++v) w[v] = load_codes(codes + (q * kQuantBlock + v * kLanes) * 4);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const Sums words = sums_of(high[q * R + r]);
      SPECDEC_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = add_high(acc[r][v], w[v], words);
    }
  }
  SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
    // Codes were counted from zero: what that adds is taken away. A group of one part holds both halves.
    const Sums extra = sums_of(-heads.zero * (Scales::kParts == 1 ? added[r] + added[R + r] : added[r]));
    SPECDEC_UNROLL for (int v = 0; v < V; ++v) {
      acc[r][v] = between(acc[r][v]);
      if constexpr (!Scales::kOffset) acc[r][v] = add_sums(acc[r][v], extra);
    }
  }
  for (int q = 0; q < kPartQuads; ++q) {
    Sums w[V];
    SPECDEC_UNROLL for (int v = 0; v < V; ++v) w[v] = load_codes(codes + (q * kQuantBlock + v * kLanes) * 4);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const Sums words = sums_of(low[q * R + r]);
      SPECDEC_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = add_low(acc[r][v], w[v], words);
    }
  }
  SPECDEC_UNROLL for (int v = 0; v < V; ++v) {
    const int o = first + v * kLanes;
    const F32 scale = Scales::scale(heads.unit, heads.group, Part, o);
    const F32 offset = Scales::offset(heads.unit, heads.group, o);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r)
        add_group<Scales, Part>(acc[r][v], scale, offset, sum[r], span + r * kSpanSums + o);
  }
}

template <class Scales, int R>
static void quant_rows(const QuantHeads& heads, const uint8_t* codes, const int32_t* x, float* span) {
  constexpr int kVectors = kQuantBlock / kLanes;
  constexpr int kWanted = kQuantSums / R >= 8 ? 8 : kQuantSums / R >= 4 ? 4 : kQuantSums / R >= 2 ? 2 : 1;
  constexpr int V = kWanted < kVectors ? kWanted : kVectors;
  for (int v = 0; v < kVectors; v += V) {
    quant_vectors<Scales, R, V, 0>(heads, codes, v * kLanes, x, span);
    if constexpr (Scales::kParts == 2) quant_vectors<Scales, R, V, 1>(heads, codes, v * kLanes, x, span);
  }
}

using QuantRows = void (*)(const QuantHeads&, const uint8_t*, const int32_t*, float*);
template <class Scales, int R>
static constexpr QuantRows quant_rows_of() {
  if constexpr (R <= kQuantTileRows)
    return quant_rows<Scales, R>;
  else
    return nullptr;
}
#define SPECDEC_QUANT_ROWS(rows) quant_rows_of<Scales, rows>()

// A span's sums of one row, times the row's step, and the scale of the scales where there is one.
template <class Scales>
static void add_span(const uint8_t* unit, float step, const float* span, float* y) {
  for (int o = 0; o < kQuantBlock; o += kLanes) {
    F32 total = load(y + o);
    if constexpr (Scales::kTwoLevels) {
      total = fused(mul(load(span + o), set1(step)), Scales::outer(unit, o), total);
      if (Scales::kOffset)
        total = fused(mul(load(span + kQuantBlock + o), set1(-step)), Scales::outer_offset(unit, o), total);
    } else {
      total = fused(load(span + o), set1(step), total);
    }
    store(y + o, total);
  }
}

template <int Bits, class Scales>
static void quant_multiply_as(const QuantCall& call) {
  static constexpr QuantRows by_rows[] = SPECDEC_BY_ROWS(SPECDEC_QUANT_ROWS);
  const QuantFormat format = call.format;
  const int64_t width = call.tile.width, blocks = (call.last_out - call.first_out) / kQuantBlock;
  auto* spans = reinterpret_cast<float*>(call.scratch);
  int64_t count = 0;
  for (int t = 0; t < call.tiles; ++t) count += call.rows[t];
  uint8_t* codes = call.scratch + count * kSpanSums * static_cast<int64_t>(sizeof(float));
  for (int64_t r = 0; r < count; ++r)
    for (int64_t o = 0; o < blocks * kQuantBlock; o += kLanes) store(call.sums + r * call.sums_stride + o, zero());
  const int64_t group_bytes = format.group_bytes() * width, unit_bytes = format.unit_bytes() * width;
  const int64_t rest_bytes = kQuantGroup * kQuantBlock * (Bits - 4) / 8;
  const int64_t span_bytes = unit_bytes * (kSpanGroups / format.unit);
  const int64_t lines = span_bytes / 64 / (width / kQuantBlock) / kSpanGroups;
  for (int64_t from = 0; from < call.groups; from += kSpanGroups) {
    const int64_t to = from + kSpanGroups < call.groups ? from + kSpanGroups : call.groups;
    const uint8_t* begin = call.tile.data + from / format.unit * unit_bytes;
    const uint8_t* next = begin + (width == kQuantBlock ? kQuantAhead : span_bytes);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = call.first_out + b * kQuantBlock;
      for (int64_t o = 0; o < count * kSpanSums; o += kLanes) store(spans + o, zero());
      for (int64_t g = from; g < to; ++g) {
        const uint8_t* unit = call.tile.data + g / format.unit * unit_bytes;
        const uint8_t* group = unit + format.unit_head() * width + g % format.unit * group_bytes;
        const uint8_t* rows = group + format.group_head() * width + first / 2;
        const uint8_t* rest =
            group + format.group_head() * width + kQuantGroup / 2 * width + first / kQuantBlock * rest_bytes;
        const QuantHeads heads{unit + first * format.unit_head(), group + first * format.group_head(), format.zero};
        unpack_codes<Bits>(rows, width / 2, rest, codes, next, lines);
        next += lines * 64;
        float* span = spans;
        for (int t = 0; t < call.tiles; ++t) {
          const int n = call.rows[t];
          by_rows[n](heads, codes, call.x[t] + g * kQuantRowWords * n, span);
          span += n * kSpanSums;
        }
      }
      float *span = spans, *y = call.sums + b * kQuantBlock;
      for (int t = 0; t < call.tiles; ++t) {
        const int n = call.rows[t];
        const auto* steps = reinterpret_cast<const float*>(call.x[t] + (call.groups * kQuantRowWords + from / kSpanGroups) * n);
        for (int r = 0; r < n; ++r, span += kSpanSums, y += call.sums_stride)
          add_span<Scales>(begin + first * format.unit_head(), steps[r], span, y);
      }
    }
  }
}

// Calls one<Bits, Scales>() for a format.
template <template <int, class> class One, class Call>
static inline void by_format(const QuantFormat& format, const Call& call) {
  using Half = PlainScales<load_half, false>;
  using HalfOffset = PlainScales<load_half, true>;
  using BfloatOffset = PlainScales<load_bfloat, true>;
  switch (format.scale) {
    case QuantScale::half:
      if (format.offset)
        (format.bits == 4 ? One<4, HalfOffset>::run : format.bits == 5 ? One<5, HalfOffset>::run : One<8, HalfOffset>::run)(call);
      else
        (format.bits == 4 ? One<4, Half>::run : format.bits == 5 ? One<5, Half>::run : One<8, Half>::run)(call);
      break;
    case QuantScale::bfloat:
      (format.bits == 4 ? One<4, BfloatOffset>::run : One<8, BfloatOffset>::run)(call);
      break;
    case QuantScale::six_bit:
      (format.bits == 4 ? One<4, SixBitScales>::run : One<5, SixBitScales>::run)(call);
      break;
    case QuantScale::int8:
      One<6, ByteScales>::run(call);
      break;
  }
}

template <int Bits, class Scales>
struct Multiply {
  static void run(const QuantCall& call) { quant_multiply_as<Bits, Scales>(call); }
};
static void quant_multiply(const QuantCall& call) { by_format<Multiply>(call.format, call); }

static void quant_activations(const QuantRowsCall& call) {
  const int64_t groups = call.in / kQuantGroup, rows = call.rows;
  auto* steps = reinterpret_cast<float*>(call.out + groups * kQuantRowWords * rows);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t span = call.first; span < call.last; ++span) {
      const int64_t first = span * kQuantSpan, left = call.in - first, count = left < kQuantSpan ? left : kQuantSpan;
      const float* x = call.x + row * call.stride + first;
      alignas(64) float chosen[kQuantSpan];
      if (call.taken != nullptr) {
        const uint8_t* taken = call.taken + row * call.in + first;
        for (int64_t i = 0; i < count; ++i) chosen[i] = taken[i] != 0 ? x[i] : 0.0F;
        x = chosen;
      }
      const float peak = largest(x, count);
      // Anything too small to divide by counts as zero. What is no number makes the step none.
      const float inverse = peak >= 1e-30F && peak <= 3e38F ? kQuantPeak / peak : 0.0F;
      for (int64_t i = 0; i < count; i += kQuantGroup)
        whole_group(x + i, inverse, rows, call.out + (first + i) / kQuantGroup * kQuantRowWords * rows + row);
      steps[span * rows + row] = peak * (1.0F / kQuantPeak);
    }
}


}  // namespace specdec::SPECDEC_ISA
