// Where the parts of a quantised tile lie, codes taken apart, and what follows the products of a span. For quant.inl and
// quant_amx.inl, which differ in how they multiply.

#include "hints.h"
#include "quant_simd.inl"
#include "quant_ahead.inl"
#include "quant_scales.inl"

namespace specdec::SPECDEC_ISA {

// A tile of one block is read in order; it is asked for so many bytes ahead.
constexpr int64_t kQuantAhead = 4096;
// Where inputs are chosen, how many groups later the lines that are asked for are multiplied.
constexpr int64_t kQuantGroupsAhead = 1;

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

static inline int64_t quant_end(const QuantCall& call) { return call.last_group == 0 ? call.groups : call.last_group; }
// Where the sums of a span go: to their place among all spans, or to scratch memory.
static inline float* quant_spans(const QuantCall& call, int64_t group, int64_t floats) {
  return call.spans == nullptr ? reinterpret_cast<float*>(call.scratch) : call.spans + group / kSpanGroups * floats;
}

static inline int64_t quant_rows_in_all(const QuantCall& call) {
  int64_t count = 0;
  for (int t = 0; t < call.tiles; ++t) count += call.rows[t];
  return count;
}

static void quant_clear(const QuantCall& call) {
  const int64_t outputs = call.last_out - call.first_out, count = quant_rows_in_all(call);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t o = 0; o < outputs; o += kLanes) store(call.sums + r * call.sums_stride + o, zero());
}

// `multiply_rows` takes the number of rows of a tile, and what quant_rows does (quant.inl).
//
// All inputs: a span of a block after the other, lines in the order in which they lie in memory.
template <class Scales, class Rows>
static void quant_multiply_all(const QuantCall& call, const Rows& multiply_rows) {
  const QuantTilePlaces<Scales> at(call);
  const int64_t blocks = (call.last_out - call.first_out) / kQuantBlock, count = quant_rows_in_all(call);
  const int64_t span_bytes = at.unit_bytes * (kSpanGroups / call.format.unit);
  const int64_t lines = span_bytes / 64 / (at.width / kQuantBlock) / kSpanGroups;
  constexpr uint8_t kQuadsOf[2] = {kQuads / Scales::kParts, kQuads / Scales::kParts};
  int32_t offsets[kQuantGroup];
  for (int j = 0; j < kQuantGroup; ++j) offsets[j] = static_cast<int32_t>(j * at.row_bytes);
  const int64_t end = quant_end(call);
  for (int64_t from = call.first_group; from < end; from += kSpanGroups) {
    const int64_t to = from + kSpanGroups < end ? from + kSpanGroups : end;
    const uint8_t* next = at.unit(from) + (at.width == kQuantBlock ? kQuantAhead : span_bytes);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = call.first_out + b * kQuantBlock;
      float* spans = quant_spans(call, from, blocks * count * kQuantBlock) + (call.spans == nullptr ? 0 : b * count * kQuantBlock);
      for (int64_t o = 0; o < count * kQuantBlock; o += kLanes) store(spans + o, zero());
      for (int64_t g = from; g < to; ++g) {
        const QuantBlock block = at.block(g, first, offsets, kQuadsOf);
        float* span = spans;
        QuantAhead ahead(next, lines), none;
        for (int t = 0; t < call.tiles; ++t) {
          const int n = call.rows[t];
          multiply_rows(n, block, call.x[t] + g * kQuantRowWords * n, span, t == 0 ? ahead : none, t == 0 ? lines : 0);
          span += n * kQuantBlock;
        }
        next += lines * 64;
      }
      if (call.spans == nullptr) at.finish_span(from, first, spans, call.sums + b * kQuantBlock);
    }
  }
}

// Chosen inputs: a group after the other, in all of the tile, and meanwhile the lines of a later one are asked for.
template <class Scales, class Rows>
static void quant_multiply_chosen(const QuantCall& call, const Rows& multiply_rows) {
  const QuantTilePlaces<Scales> at(call);
  const int64_t blocks = (call.last_out - call.first_out) / kQuantBlock, count = quant_rows_in_all(call);
  const int64_t end = quant_end(call), floats = blocks * count * kQuantBlock;
  // Of this call's groups, and of the next one's after them.
  auto lines_of = [&](int64_t g) {
    if (g < end) return QuantAhead(g % call.format.unit == 0 ? at.unit(g) : at.group(g), at.rows(g), at.row_bytes, call.choices[g].mask);
    if (call.next == nullptr) return QuantAhead();
    const QuantTilePlaces<Scales> other(*call.next);
    const int64_t h = g - end + call.next->first_group;
    if (h >= quant_end(*call.next)) return QuantAhead();
    return QuantAhead(h % call.next->format.unit == 0 ? other.unit(h) : other.group(h), other.rows(h), other.row_bytes, call.next->choices[h].mask);
  };
  if (call.cold)
    for (int64_t g = 0; g < kQuantGroupsAhead; ++g) lines_of(call.first_group + g).rest();
  for (int64_t g = call.first_group; g < end; ++g) {
    float* spans = quant_spans(call, g, floats);
    const QuantChoice& choice = call.choices[g];
    if (g % kSpanGroups == 0)
      for (int64_t o = 0; o < floats; o += kLanes) store(spans + o, zero());
    int32_t offsets[kQuantGroup];
    for (int j = 0; j < kQuantGroup; ++j) offsets[j] = static_cast<int32_t>(choice.index[j] * at.row_bytes);
    QuantAhead ahead = lines_of(g + kQuantGroupsAhead), none;
    const int64_t lines = (ahead.left() + blocks - 1) / blocks;
    float* span = spans;
    for (int64_t b = 0; b < blocks && choice.mask != 0; ++b) {
      const QuantBlock block = at.block(g, call.first_out + b * kQuantBlock, offsets, choice.quads);
      for (int t = 0; t < call.tiles; ++t) {
        const int n = call.rows[t];
        multiply_rows(n, block, call.x[t] + g * kQuantRowWords * n, span, t == 0 ? ahead : none, t == 0 ? lines : 0);
        span += n * kQuantBlock;
      }
    }
    ahead.rest();
    if ((g % kSpanGroups != kSpanGroups - 1 && g != end - 1) || call.spans != nullptr) continue;
    for (int64_t b = 0; b < blocks; ++b)
      at.finish_span(g / kSpanGroups * kSpanGroups, call.first_out + b * kQuantBlock, spans + b * count * kQuantBlock,
                     call.sums + b * kQuantBlock);
  }
}

template <class Scales, class Rows>
static void quant_multiply_with(const QuantCall& call, const Rows& multiply_rows) {
  if (call.spans == nullptr) quant_clear(call);
  if (call.choices == nullptr)
    quant_multiply_all<Scales>(call, multiply_rows);
  else
    quant_multiply_chosen<Scales>(call, multiply_rows);
}

// The sums of all spans, ascending.
template <class Scales>
static void quant_add_spans_as(const QuantCall& call) {
  const QuantTilePlaces<Scales> at(call);
  const int64_t blocks = (call.last_out - call.first_out) / kQuantBlock, floats = quant_rows_in_all(call) * kQuantBlock;
  quant_clear(call);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t from = 0; from < call.groups; from += kSpanGroups)
      at.finish_span(from, call.first_out + b * kQuantBlock, call.spans + (from / kSpanGroups * blocks + b) * floats,
                     call.sums + b * kQuantBlock);
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

}  // namespace specdec::SPECDEC_ISA
