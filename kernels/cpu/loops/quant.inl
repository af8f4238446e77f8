// Quantised matrices times rows: whole products of codes and 16-bit activations in int32, scaled once per group.
//
// A block of a group (32 inputs of 128 outputs) is multiplied by a few rows at a time, its codes unpacked in registers
// on the way: some lanes of its rows at a time, as many as a register holds. For each (row, output) the steps are the
// same whatever the number of rows: a whole number for the group, to float32, times the scale, added to the
// span's sum; the offset's share subtracted; a span's sum times the row's step added to the result; groups and spans
// ascend. Every instruction set fuses the same products and sums, so all get the same bits.

#include "quant_simd.inl"
#include "quant_ahead.inl"

namespace specdec::SPECDEC_ISA {

// The most rows of a tile: codes come in pairs of vectors. More than 6 read no less and take compilers minutes.
constexpr int kQuantTileRows = kQuantSums / 2 < 6 ? kQuantSums / 2 : 6;
// A tile of one block is read in order; it is asked for so many bytes ahead.
constexpr int64_t kQuantAhead = 4096;
// Where inputs are chosen, how many groups later the lines that are asked for are multiplied.
constexpr int64_t kQuantGroupsAhead = 1;

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

// Rows of four inputs, at the lanes that are wanted: where their four highest bits lie, and, so many bytes on, the rest of a
// code. A block's vectors are of 16 outputs, of which these lanes hold some.
struct QuantQuad {
  const uint8_t *a, *b, *c, *d;
  int64_t rest;
  // What the rows hold from `at` bytes behind the beginning of their rest on.
  SPECDEC_UNPACK inline Bytes rest_at(int at) const {
    return Bytes::quad(a + rest + at, b + rest + at, c + rest + at, d + rest + at);
  }
};

// Codes of four inputs of vectors 2 J (low) and 2 J + 1 (high); how bits lie in a row is in quant_matrix.cpp.
template <int Bits, int J>
SPECDEC_UNPACK static inline void unpack_pair(const QuantQuad& rows, Bytes* low, Bytes* high) {
  const Bytes a = Bytes::load(rows.a), b = Bytes::load(rows.b), c = Bytes::load(rows.c), d = Bytes::load(rows.d);
  const Bytes ab = J < 2 ? Bytes::zip_low8(a, b) : Bytes::zip_high8(a, b);
  const Bytes cd = J < 2 ? Bytes::zip_low8(c, d) : Bytes::zip_high8(c, d);
  const Bytes both = J % 2 == 0 ? Bytes::zip_low16(ab, cd) : Bytes::zip_high16(ab, cd);
  if constexpr (Bits == 4) {
    *low = Bytes::mask<15>(both);
    *high = Bytes::mask<15>(Bytes::right<4>(both));
  } else if constexpr (Bits == 8) {
    const Bytes other = rows.rest_at(16 * J);
    *low = Bytes::select<0xF0>(Bytes::left<4>(both), other);
    *high = Bytes::select<0xF0>(both, Bytes::right<4>(other));
  } else if constexpr (Bits == 6) {
    Bytes other = rows.rest_at(16 * (J / 2));
    if constexpr (J % 2 == 1) other = Bytes::right<4>(other);
    *low = Bytes::mask<63>(Bytes::select<0x3C>(Bytes::left<2>(both), other));
    *high = Bytes::mask<63>(Bytes::select<0x3C>(Bytes::right<2>(both), Bytes::right<2>(other)));
  } else {
    static_assert(Bits == 5);
    Bytes other = rows.rest_at(0);
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
  const uint8_t* rows;     // of the group, at the block
  const int32_t* offsets;  // where the rows of the inputs to multiply begin, part by part
  const uint8_t* quads;    // of each part
  int64_t rest;            // from a row's four highest bits to the rest of the same outputs
  int32_t zero;            // of the format; in halves where bits are hidden
  int shift;               // what turns a sum of upper bits into halves of codes
};

// ---- products ----------------------------------------------------------------------------------------------------

// V vectors, from vector First on and of the lanes from `lane` on, of a part of a group times R rows: added to the span's
// sums ([R][kQuantBlock]). Asks for `asks` lines for each quad of inputs.
template <int Bits, class Scales, int R, int First, int V, int Part>
[[gnu::always_inline]] static inline void quant_vectors(const QuantBlock& block, int lane, const int32_t* x, float* span,
                                                        QuantAhead& ahead, int64_t asks) {
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
  const int32_t* offset = block.offsets + 4 * Part * kPartQuads;
  const uint8_t* rows = block.rows + 16 * lane;
  const int64_t to_rest = block.rest - 12 * lane;
  const int quads = block.quads[Part];
  for (int q = 0; q < quads; ++q, offset += 4, high += R, low += R) {
    for (int64_t k = 0; k < asks; ++k) ahead.line();
    const QuantQuad four{rows + offset[0], rows + offset[1], rows + offset[2], rows + offset[3], to_rest};
    auto pair = [&](auto at) __attribute__((always_inline)) {
      constexpr int kAt = decltype(at)::value;
      if constexpr (kAt < V) {
        Bytes first, second;
        unpack_pair<Bits, (First + kAt) / 2>(four, &first, &second);
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

// Asks for a share of the lines ahead.
template <int Bits, class Scales, int R>
static void quant_rows(const QuantBlock& block, const int32_t* x, float* span, QuantAhead& ahead, int64_t lines) {
  constexpr int kFit = kQuantSums / R, V = kFit >= 8 ? 8 : kFit >= 4 ? 4 : 2;
  constexpr int kTurns = kQuantBlock / kLanes / V;
  const int64_t steps = kTurns * (block.quads[0] + (Scales::kParts == 2 ? block.quads[1] : 0));
  const int64_t asks = steps == 0 ? 0 : (lines + steps - 1) / steps;
  QuantAhead asked = ahead;  // where nothing else can change it
  for (int lane = 0; lane < 4; lane += Bytes::kWidth) {
    auto vectors = [&](auto at) __attribute__((always_inline)) {
      constexpr int kFirst = decltype(at)::value;
      if constexpr (kFirst % V == 0) {
        quant_vectors<Bits, Scales, R, kFirst, V, 0>(block, lane, x, span, asked, asks);
        if constexpr (Scales::kParts == 2) quant_vectors<Bits, Scales, R, kFirst, V, 1>(block, lane, x, span, asked, asks);
      }
    };
    vectors(Constant<0>{});
    vectors(Constant<2>{});
    vectors(Constant<4>{});
    vectors(Constant<6>{});
  }
  ahead = asked;
}

using QuantRows = void (*)(const QuantBlock&, const int32_t*, float*, QuantAhead&, int64_t);
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

// Where the parts of a call's tile lie.
template <class Scales>
struct QuantTilePlaces {
  const QuantCall& call;
  int64_t width = call.tile.width, row_bytes = call.format.row_bytes(width);
  int64_t group_bytes = call.format.group_bytes() * width, unit_bytes = call.format.unit_bytes() * width;

  inline explicit QuantTilePlaces(const QuantCall& of) : call(of) {}
  inline const uint8_t* unit(int64_t g) const { return call.tile.data + g / call.format.unit * unit_bytes; }
  inline const uint8_t* group(int64_t g) const {
    return unit(g) + call.format.unit_head() * width + g % call.format.unit * group_bytes;
  }
  inline const uint8_t* rows(int64_t g) const { return group(g) + call.format.group_head() * width; }
  // The block from output `first` of the tile on.
  inline QuantBlock block(int64_t g, int64_t first, const int32_t* offsets, const uint8_t* quads) const {
    const QuantFormat& format = call.format;
    return {unit(g) + first * format.unit_head(),
            group(g) + first * format.group_head(),
            rows(g) + first / 2,
            offsets,
            quads,
            width / 2 - first / 2 + first * format.rest_bits() / 8,
            Scales::kUpper ? format.twice_zero() : format.zero,
            format.hidden + 1};
  }
  // Adds the sums of the span from group `from` on, of one block of the rows.
  inline void finish_span(int64_t from, int64_t first, const float* span, float* y) const {
    for (int t = 0; t < call.tiles; ++t) {
      const int n = call.rows[t];
      const auto* steps = reinterpret_cast<const float*>(call.x[t] + (call.groups * kQuantRowWords + from / kSpanGroups) * n);
      add_span<Scales>(unit(from) + first * call.format.unit_head(), group(from) + first * call.format.group_head(),
                       group_bytes, n, call.x[t] + from * kQuantRowWords * n, steps, span, y, call.sums_stride);
      span += n * kQuantBlock;
      y += n * call.sums_stride;
    }
  }
};

static inline int64_t quant_rows_in_all(const QuantCall& call) {
  int64_t count = 0;
  for (int t = 0; t < call.tiles; ++t) count += call.rows[t];
  return count;
}

// All inputs: a span of a block after the other, lines in the order in which they lie in memory.
template <int Bits, class Scales>
static void quant_multiply_all(const QuantCall& call, const QuantRows* by_rows) {
  const QuantTilePlaces<Scales> at(call);
  const int64_t blocks = (call.last_out - call.first_out) / kQuantBlock, count = quant_rows_in_all(call);
  auto* spans = reinterpret_cast<float*>(call.scratch);
  const int64_t span_bytes = at.unit_bytes * (kSpanGroups / call.format.unit);
  const int64_t lines = span_bytes / 64 / (at.width / kQuantBlock) / kSpanGroups;
  constexpr uint8_t kQuadsOf[2] = {kQuads / Scales::kParts, kQuads / Scales::kParts};
  int32_t offsets[kQuantGroup];
  for (int j = 0; j < kQuantGroup; ++j) offsets[j] = static_cast<int32_t>(j * at.row_bytes);
  for (int64_t from = 0; from < call.groups; from += kSpanGroups) {
    const int64_t to = from + kSpanGroups < call.groups ? from + kSpanGroups : call.groups;
    const uint8_t* next = at.unit(from) + (at.width == kQuantBlock ? kQuantAhead : span_bytes);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = call.first_out + b * kQuantBlock;
      for (int64_t o = 0; o < count * kQuantBlock; o += kLanes) store(spans + o, zero());
      for (int64_t g = from; g < to; ++g) {
        const QuantBlock block = at.block(g, first, offsets, kQuadsOf);
        float* span = spans;
        QuantAhead ahead(next, lines), none;
        for (int t = 0; t < call.tiles; ++t) {
          const int n = call.rows[t];
          by_rows[n](block, call.x[t] + g * kQuantRowWords * n, span, t == 0 ? ahead : none, t == 0 ? lines : 0);
          span += n * kQuantBlock;
        }
        next += lines * 64;
      }
      at.finish_span(from, first, spans, call.sums + b * kQuantBlock);
    }
  }
}

// Chosen inputs: a group after the other, in all of the tile, and meanwhile the lines of a later one are asked for.
template <int Bits, class Scales>
static void quant_multiply_chosen(const QuantCall& call, const QuantRows* by_rows) {
  const QuantTilePlaces<Scales> at(call);
  const int64_t blocks = (call.last_out - call.first_out) / kQuantBlock, count = quant_rows_in_all(call);
  auto* spans = reinterpret_cast<float*>(call.scratch);
  // Of this call's groups, and of the next one's after them.
  auto lines_of = [&](int64_t g) {
    if (g < call.groups) return QuantAhead(g % call.format.unit == 0 ? at.unit(g) : at.group(g), at.rows(g), at.row_bytes, call.choices[g].mask);
    if (call.next == nullptr || g - call.groups >= call.next->groups) return QuantAhead();
    const QuantTilePlaces<Scales> other(*call.next);
    const int64_t h = g - call.groups;
    return QuantAhead(h % call.next->format.unit == 0 ? other.unit(h) : other.group(h), other.rows(h), other.row_bytes, call.next->choices[h].mask);
  };
  if (call.cold)
    for (int64_t g = 0; g < kQuantGroupsAhead; ++g) lines_of(g).rest();
  for (int64_t g = 0; g < call.groups; ++g) {
    const QuantChoice& choice = call.choices[g];
    if (g % kSpanGroups == 0)
      for (int64_t o = 0; o < blocks * count * kQuantBlock; o += kLanes) store(spans + o, zero());
    int32_t offsets[kQuantGroup];
    for (int j = 0; j < kQuantGroup; ++j) offsets[j] = static_cast<int32_t>(choice.index[j] * at.row_bytes);
    QuantAhead ahead = lines_of(g + kQuantGroupsAhead), none;
    const int64_t lines = (ahead.left() + blocks - 1) / blocks;
    float* span = spans;
    for (int64_t b = 0; b < blocks && choice.mask != 0; ++b) {
      const QuantBlock block = at.block(g, call.first_out + b * kQuantBlock, offsets, choice.quads);
      for (int t = 0; t < call.tiles; ++t) {
        const int n = call.rows[t];
        by_rows[n](block, call.x[t] + g * kQuantRowWords * n, span, t == 0 ? ahead : none, t == 0 ? lines : 0);
        span += n * kQuantBlock;
      }
    }
    ahead.rest();
    if (g % kSpanGroups != kSpanGroups - 1 && g != call.groups - 1) continue;
    for (int64_t b = 0; b < blocks; ++b)
      at.finish_span(g / kSpanGroups * kSpanGroups, call.first_out + b * kQuantBlock, spans + b * count * kQuantBlock,
                     call.sums + b * kQuantBlock);
  }
}

template <int Bits, class Scales>
static void quant_multiply_as(const QuantCall& call) {
  static constexpr QuantRows by_rows[] = SPECDEC_BY_ROWS(SPECDEC_QUANT_ROWS);
  const int64_t blocks = (call.last_out - call.first_out) / kQuantBlock, count = quant_rows_in_all(call);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t o = 0; o < blocks * kQuantBlock; o += kLanes) store(call.sums + r * call.sums_stride + o, zero());
  if (call.choices == nullptr)
    quant_multiply_all<Bits, Scales>(call, by_rows);
  else
    quant_multiply_chosen<Bits, Scales>(call, by_rows);
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

}  // namespace specdec::SPECDEC_ISA
