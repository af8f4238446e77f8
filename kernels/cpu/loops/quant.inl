// Quantised matrices times rows: whole products of codes and 16-bit activations in int32, scaled once per group.
//
// A block of a group (32 inputs of 128 outputs) is multiplied by a few rows at a time, its codes unpacked in registers
// on the way: some lanes of its rows at a time, as many as a register holds. For each (row, output) the steps are the
// same whatever the number of rows: a whole number for the group, to float32, times the scale, added to the
// span's sum; the offset's share subtracted; a span's sum times the row's step added to the result; groups and spans
// ascend. Every instruction set fuses the same products and sums, so all get the same bits.

#include "quant_tiles.inl"

namespace specdec::SPECDEC_ISA {

// The most rows of a tile: codes come in pairs of vectors. More than 6 read no less and take compilers minutes.
constexpr int kQuantTileRows = kQuantSums / 2 < 6 ? kQuantSums / 2 : 6;
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

template <int Bits, class Scales>
static void quant_multiply_as(const QuantCall& call) {
  static constexpr QuantRows by_rows[] = SPECDEC_BY_ROWS(SPECDEC_QUANT_ROWS);
  quant_multiply_with<Scales>(call, [](int n, const QuantBlock& block, const int32_t* x, float* span, QuantAhead& ahead,
                                       int64_t lines) { by_rows[n](block, x, span, ahead, lines); });
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
template <int Bits, class Scales>
struct AddSpans {
  static void run(const QuantCall& call) { quant_add_spans_as<Scales>(call); }
};
template <int Bits, class Scales>
struct AddSpansUpper {
  static void run(const QuantCall& call) { quant_add_spans_as<UpperScales<Scales>>(call); }
};
static void quant_add_spans(const QuantCall& call) {
  if (call.format.hidden == 0)
    by_format<AddSpans>(call.format, call);
  else
    by_format<AddSpansUpper>(call.format, call);
}
static void quant_multiply(const QuantCall& call) {
  if (call.format.hidden == 0)
    by_format<Multiply>(call.format, call);
  else
    by_format<MultiplyUpper>(call.format, call);
}

}  // namespace specdec::SPECDEC_ISA
