// Quantised matrices times rows: whole products of codes and 16-bit activations in int32, scaled once per group.
//
// A block of a group (32 inputs of 128 outputs) is multiplied by a few rows at a time, its codes unpacked in registers
// on the way: some lanes of its rows at a time, as many as a register holds. For each (row, output) the steps are the
// same whatever the number of rows: a whole number for the group, to float32, times the scale, added to the
// span's sum; the offset's share subtracted; a span's sum times the row's step added to the result; groups and spans
// ascend. Every instruction set fuses the same products and sums, so all get the same bits.

#include "quant_simd.inl"

namespace specdec::SPECDEC_ISA {

// The most rows of a tile: codes come in pairs of vectors. More than 6 read no less and take compilers minutes.
constexpr int kQuantTileRows = kQuantSums / 2 < 6 ? kQuantSums / 2 : 6;
// A tile of one block is read in order; it is asked for so many bytes ahead.
constexpr int64_t kQuantAhead = 4096;

// ---- scales: of kLanes outputs from `o` of a block on ------------------------------------------------------------

// What a group's whole numbers are multiplied by. `unit` and `group` are the heads of the block.
template <F32 (*Load)(const uint16_t*), bool Offset>
struct PlainScales {
  static constexpr int kParts = 1;
  static constexpr bool kOffset = Offset, kTwoLevels = false, kUpper = false;
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
  static constexpr bool kOffset = true, kTwoLevels = true, kUpper = false;
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
  static constexpr bool kOffset = false, kTwoLevels = true, kUpper = false;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t*, const uint8_t* group, int part, int o) {
    return load_s8(group + part * kQuantBlock + o);
  }
  static inline F32 offset(const uint8_t*, const uint8_t*, int) { return zero(); }
  static inline F32 outer(const uint8_t* unit, int o) { return half_of(unit, o); }
  static inline F32 outer_offset(const uint8_t*, int) { return zero(); }
};
// Of codes whose lower bits are hidden: whole numbers count them, and what is hidden, in halves.
template <class Whole>
struct UpperScales : Whole {
  static constexpr bool kUpper = true;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t* unit, const uint8_t* group, int part, int o) {
    return mul(Whole::scale(unit, group, part, o), set1(0.5F));
  }
};

// ---- codes -------------------------------------------------------------------------------------------------------

// What codes are less than they should be when they are multiplied.
#if defined(SPECDEC_SIGNED_CODES)
template <int Bits>
constexpr int kCodeShift = Bits == 8 ? 128 : 0;
#else
template <int Bits>
constexpr int kCodeShift = 0;
#endif

// Codes of four inputs of vectors 2 J (low) and 2 J + 1 (high), from their rows of the first plane and the rest: Bits - 4
// low bits, see quant_matrix.cpp. Rows and rest begin at the lanes that are wanted. A block's vectors are of 16 outputs,
// of which these lanes hold some.
template <int Bits, int J>
SPECDEC_UNPACK static inline void unpack_pair(const uint8_t* row, int64_t stride, const uint8_t* rest, Bytes* low,
                                              Bytes* high) {
  const Bytes a = Bytes::load(row), b = Bytes::load(row + stride), c = Bytes::load(row + 2 * stride),
              d = Bytes::load(row + 3 * stride);
  const Bytes ab = J < 2 ? Bytes::zip_low8(a, b) : Bytes::zip_high8(a, b);
  const Bytes cd = J < 2 ? Bytes::zip_low8(c, d) : Bytes::zip_high8(c, d);
  const Bytes both = J % 2 == 0 ? Bytes::zip_low16(ab, cd) : Bytes::zip_high16(ab, cd);
  if constexpr (Bits == 4) {
    *low = Bytes::mask<15>(both);
    *high = Bytes::mask<15>(Bytes::right<4>(both));
  } else if constexpr (Bits == 8) {
    const Bytes other = Bytes::load(rest + 64 * J);
    *low = Bytes::select<0xF0>(Bytes::left<4>(both), other);
    *high = Bytes::select<0xF0>(both, Bytes::right<4>(other));
  } else if constexpr (Bits == 6) {
    Bytes other = Bytes::load(rest + 64 * (J / 2));
    if constexpr (J % 2 == 1) other = Bytes::right<4>(other);
    *low = Bytes::mask<63>(Bytes::select<0x3C>(Bytes::left<2>(both), other));
    *high = Bytes::mask<63>(Bytes::select<0x3C>(Bytes::right<2>(both), Bytes::right<2>(other)));
  } else {
    static_assert(Bits == 5);
    Bytes other = Bytes::load(rest);
    if constexpr (J > 0) other = Bytes::right<2 * J>(other);
    *low = Bytes::mask<31>(Bytes::select<0x1E>(Bytes::left<1>(both), other));
    *high = Bytes::mask<31>(Bytes::select<0x1E>(Bytes::right<3>(both), Bytes::right<1>(other)));
  }
#if defined(SPECDEC_SIGNED_CODES)
  if constexpr (kCodeShift<Bits> != 0) *low = Bytes::flip<kCodeShift<Bits>>(*low), *high = Bytes::flip<kCodeShift<Bits>>(*high);
#endif
}

// A block of a group: the heads that belong to it, and where its codes lie.
struct QuantBlock {
  const uint8_t *unit, *group;
  const uint8_t *rows, *rest;
  int64_t stride;  // of rows
  int32_t zero;    // of the format; in halves where bits are hidden
  int shift;       // what turns a sum of upper bits into halves of codes
};
template <int Bits>
constexpr int64_t kRestBytes = (Bits - 4) * kQuantBlock * 4 / 8;  // of a quad of inputs

// ---- products ----------------------------------------------------------------------------------------------------

// Lines that are asked for while blocks are multiplied: `lines` for each block, from `next` on.
struct QuantAhead {
  const uint8_t* next;
  int64_t lines;
};

// V vectors, from vector First on and of the lanes from `lane` on, of a part of a group times R rows: added to the span's
// sums ([R][kQuantBlock]). Asks for `asks` lines for each quad of inputs.
template <int Bits, class Scales, int R, int First, int V, int Part>
[[gnu::always_inline]] static inline void quant_vectors(const QuantBlock& block, int lane, const int32_t* x, float* span,
                                                        const uint8_t* ask, int64_t asks) {
  constexpr int kPartQuads = kQuads / Scales::kParts;
  constexpr bool kMoved = Scales::kUpper || !Scales::kOffset || kCodeShift<Bits> != 0;
  const int32_t *high = x + Part * kPartQuads * R, *low = high + kQuads * R, *added = x + (2 * kQuads + Part) * R;
  const auto* sum = reinterpret_cast<const float*>(x + (2 * kQuads + 2) * R);
  // Codes are counted from zero, or from elsewhere: what that adds is taken away. A group of one part holds both halves.
  auto moved = [&](int r) __attribute__((always_inline)) {
    const int32_t all = Scales::kParts == 1 ? added[r] + added[R + r] : added[r];
    return sums_of(kMoved ? (kCodeShift<Bits> - block.zero) * all : 0);
  };
  Products acc[R][V];
  SPECDEC_EACH_ROW for (int r = 0; r < R; ++r) {
    const Sums start = Scales::kUpper ? sums_of(0) : moved(r);
    SPECDEC_UNROLL for (int v = 0; v < V; ++v) acc[r][v].start(start);
  }
  const uint8_t* row = block.rows + 4 * Part * kPartQuads * block.stride + 16 * lane;
  const uint8_t* rest = block.rest + Part * kPartQuads * kRestBytes<Bits> + 16 * lane;
  for (int q = 0; q < kPartQuads; ++q, row += 4 * block.stride, rest += kRestBytes<Bits>, high += R, low += R) {
    for (int64_t k = 0; k < asks; ++k, ask += 64) SPECDEC_PREFETCH_FAR(ask);
    auto pair = [&](auto at) __attribute__((always_inline)) {
      constexpr int kAt = decltype(at)::value;
      if constexpr (kAt < V) {
        Bytes first, second;
        unpack_pair<Bits, (First + kAt) / 2>(row, block.stride, rest, &first, &second);
        SPECDEC_EACH_ROW for (int r = 0; r < R; ++r) {
          acc[r][kAt].add_high(first, high[r]);
          acc[r][kAt + 1].add_high(second, high[r]);
        }
        SPECDEC_EACH_ROW for (int r = 0; r < R; ++r) {
          acc[r][kAt].add_low(first, low[r]);
          acc[r][kAt + 1].add_low(second, low[r]);
        }
      }
    };
    pair(Constant<0>{});
    pair(Constant<2>{});
    pair(Constant<4>{});
    pair(Constant<6>{});
  }
  SPECDEC_UNROLL for (int v = 0; v < V; ++v) {
    const int o = 16 * (First + v) + 4 * lane;
    const F32 scale = Scales::scale(block.unit, block.group, Part, o);
    SPECDEC_EACH_ROW for (int r = 0; r < R; ++r) {
      float* to = span + r * kQuantBlock + o;
      Sums whole = acc[r][v].total();
      if constexpr (Scales::kUpper) whole = add_sums(shifted(whole, block.shift), moved(r));
      F32 total = fused(to_float(whole), scale, load(to));
      if constexpr (Scales::kOffset && !Scales::kTwoLevels)
        total = fused(set1(-sum[r]), Scales::offset(block.unit, block.group, o), total);
      store(to, total);
    }
  }
}

template <int Bits, class Scales, int R, int First, int V>
[[gnu::always_inline]] static inline void quant_parts(const QuantBlock& block, int lane, const int32_t* x, float* span,
                                                      QuantAhead& ahead) {
  constexpr int64_t kTurns = kQuantBlock / kLanes / V;
  const int64_t here = (ahead.lines + kTurns - 1) / kTurns, asks = here / kQuads;
  for (int64_t k = asks * kQuads; k < here; ++k) SPECDEC_PREFETCH_FAR(ahead.next + 64 * k);
  quant_vectors<Bits, Scales, R, First, V, 0>(block, lane, x, span, ahead.next, asks);
  if constexpr (Scales::kParts == 2)
    quant_vectors<Bits, Scales, R, First, V, 1>(block, lane, x, span, ahead.next + asks * kQuads / 2 * 64, asks);
  ahead.next += here * 64;
}

template <int Bits, class Scales, int R>
static void quant_rows(const QuantBlock& block, const int32_t* x, float* span, QuantAhead ahead) {
  constexpr int kFit = kQuantSums / R, V = kFit >= 8 ? 8 : kFit >= 4 ? 4 : 2;
  for (int lane = 0; lane < 4; lane += Bytes::kWidth) {
    auto vectors = [&](auto at) __attribute__((always_inline)) {
      constexpr int kFirst = decltype(at)::value;
      if constexpr (kFirst % V == 0) quant_parts<Bits, Scales, R, kFirst, V>(block, lane, x, span, ahead);
    };
    vectors(Constant<0>{});
    vectors(Constant<2>{});
    vectors(Constant<4>{});
    vectors(Constant<6>{});
  }
}

using QuantRows = void (*)(const QuantBlock&, const int32_t*, float*, QuantAhead);
template <int Bits, class Scales, int R>
static constexpr QuantRows quant_rows_of() {
  if constexpr (R <= kQuantTileRows)
    return quant_rows<Bits, Scales, R>;
  else
    return nullptr;
}
#define SPECDEC_QUANT_ROWS(rows) quant_rows_of<Bits, Scales, rows>()

// The offsets of a span's groups, for kLanes outputs, where a scale of their own is left to the end: a unit is a span.
template <class Scales>
struct SpanOffsets {
  F32 of[kSpanGroups];
  inline SpanOffsets(const uint8_t* unit, const uint8_t* group, int64_t group_bytes, int o) {
    for (int g = 0; g < kSpanGroups; ++g) of[g] = Scales::offset(unit, group + g * group_bytes, o);
  }
  // Times the sums of a row's activations, which lie `stride` apart.
  inline F32 times(const float* sums, int64_t stride) const {
    F32 total = zero();
    for (int g = 0; g < kSpanGroups; ++g) total = fused(set1(sums[g * stride]), of[g], total);
    return total;
  }
};

// The sums of a span of `rows` rows, times their steps, and the scale of the scales where there is one. `x` begins at
// the span, `group` is the head of its first group.
template <class Scales>
static void add_span(const uint8_t* unit, const uint8_t* group, int64_t group_bytes, int rows, const int32_t* x,
                     const float* steps, const float* span, float* y, int64_t y_stride) {
  const auto* sums = reinterpret_cast<const float*>(x + (2 * kQuads + 2) * rows);
  for (int o = 0; o < kQuantBlock; o += kLanes) {
    if constexpr (!Scales::kTwoLevels) {
      for (int r = 0; r < rows; ++r) {
        float* to = y + r * y_stride + o;
        store(to, fused(load(span + r * kQuantBlock + o), set1(steps[r]), load(to)));
      }
    } else {
      const F32 outer = Scales::outer(unit, o), outer_offset = Scales::outer_offset(unit, o);
      const SpanOffsets<Scales> offsets(unit, group, Scales::kOffset ? group_bytes : 0, o);
      for (int r = 0; r < rows; ++r) {
        float* to = y + r * y_stride + o;
        F32 total = fused(mul(load(span + r * kQuantBlock + o), set1(steps[r])), outer, load(to));
        if constexpr (Scales::kOffset)
          total = fused(mul(offsets.times(sums + r, kQuantRowWords * rows), set1(-steps[r])), outer_offset, total);
        store(to, total);
      }
    }
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
  for (int64_t r = 0; r < count; ++r)
    for (int64_t o = 0; o < blocks * kQuantBlock; o += kLanes) store(call.sums + r * call.sums_stride + o, zero());
  const int64_t group_bytes = format.group_bytes() * width, unit_bytes = format.unit_bytes() * width;
  const int64_t span_bytes = unit_bytes * (kSpanGroups / format.unit);
  const int64_t lines = span_bytes / 64 / (width / kQuantBlock) / kSpanGroups;
  for (int64_t from = 0; from < call.groups; from += kSpanGroups) {
    const int64_t to = from + kSpanGroups < call.groups ? from + kSpanGroups : call.groups;
    const uint8_t* begin = call.tile.data + from / format.unit * unit_bytes;
    const uint8_t* next = begin + (width == kQuantBlock ? kQuantAhead : span_bytes);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = call.first_out + b * kQuantBlock;
      for (int64_t o = 0; o < count * kQuantBlock; o += kLanes) store(spans + o, zero());
      for (int64_t g = from; g < to; ++g) {
        const uint8_t* unit = call.tile.data + g / format.unit * unit_bytes;
        const uint8_t* group = unit + format.unit_head() * width + g % format.unit * group_bytes;
        const uint8_t* rows = group + format.group_head() * width;
        const QuantBlock block{unit + first * format.unit_head(),
                               group + first * format.group_head(),
                               rows + first / 2,
                               rows + kQuantGroup / 2 * width + first / kQuantBlock * kQuads * kRestBytes<Bits>,
                               width / 2,
                               Scales::kUpper ? format.twice_zero() : format.zero,
                               format.hidden + 1};
        float* span = spans;
        for (int t = 0; t < call.tiles; ++t) {
          const int n = call.rows[t];
          by_rows[n](block, call.x[t] + g * kQuantRowWords * n, span, {next, t == 0 ? lines : 0});
          span += n * kQuantBlock;
        }
        next += lines * 64;
      }
      float *span = spans, *y = call.sums + b * kQuantBlock;
      for (int t = 0; t < call.tiles; ++t) {
        const int n = call.rows[t];
        const auto* steps = reinterpret_cast<const float*>(call.x[t] + (call.groups * kQuantRowWords + from / kSpanGroups) * n);
        add_span<Scales>(begin + first * format.unit_head(),
                         begin + format.unit_head() * width + first * format.group_head(), group_bytes, n,
                         call.x[t] + from * kQuantRowWords * n, steps, span, y, call.sums_stride);
        span += n * kQuantBlock;
        y += n * call.sums_stride;
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
template <int Bits, class Scales>
struct MultiplyUpper {
  static void run(const QuantCall& call) {
    if constexpr (Bits > 4) quant_multiply_as<4, UpperScales<Scales>>(call);
  }
};
static void quant_multiply(const QuantCall& call) {
  if (call.format.hidden == 0)
    by_format<Multiply>(call.format, call);
  else
    by_format<MultiplyUpper>(call.format, call);
}

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
