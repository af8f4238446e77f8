// Matrix times rows for the exact view: every product, or only those that effort has chosen.
//
// The contract: for each (row, output) one accumulator takes its products in ascending order of input, each by one
// fused multiply-add, starting at zero. Tiles, blocks, panels and threads only decide when that happens.

#include "hints.h"

namespace specdec::SPECDEC_ISA {

constexpr int kPanelVectors = kPanel / kLanes;
constexpr int kAccumulators = kTileRows * kTileVectors;  // that stay in registers
// How far ahead of the loads weights are asked for: about one memory latency of one core's share of the bandwidth. One row
// alone asks into the first level, and only where DenseCall says so.
constexpr int64_t kAheadInputs = 64;
enum Asks { kAsksNothing, kAsksNear, kAsksFar };
constexpr int64_t kAheadActive = 32;
// Inputs of a part that two tiles of rows go through in turn, and how far ahead the first asks.
constexpr int64_t kPairInputs = 64, kAheadOfPairs = 256;

struct Half {
  static inline F32 read(const uint16_t* p) { return load_half(p); }
#if defined(SPECDEC_EXPANDS_LINES)
  static inline F32 widen(__m256i bits) { return widen_half(bits); }
#endif
};
struct Bfloat {
  static inline F32 read(const uint16_t* p) { return load_bfloat(p); }
#if defined(SPECDEC_EXPANDS_LINES)
  static inline F32 widen(__m256i bits) { return widen_bfloat(bits); }
#endif
};
// Vector `vector` of a line that holds all 32 weights.
template <class Type>
struct Whole {
  using Bits = uint16_t;
  static inline int64_t line(const DenseCall&) { return kPanel; }
  static inline F32 get(const uint16_t* p, int vector) { return Type::read(p + vector * kLanes); }
};
// And of one that holds some, behind the bits of their outputs.
template <class Type>
struct Thin {
  using Bits = uint16_t;
  static inline int64_t line(const DenseCall& call) { return line_values(call.kept); }
  static inline F32 get(const uint16_t* p, int vector) {
    uint32_t outputs;
    __builtin_memcpy(&outputs, p, sizeof outputs);
#if defined(SPECDEC_EXPANDS_LINES)
    return Type::widen(expand_line(p + 2, outputs, vector));
#else
    const int before = __builtin_popcount(outputs & ((uint32_t{1} << (vector * kLanes)) - 1));
    return expand(Type::read(p + 2 + before), outputs >> (vector * kLanes));
#endif
  }
};
struct Float {
  using Bits = float;
  static inline F32 get(const float* p, int vector) { return load(p + vector * kLanes); }
};

// The line of input 0 of a panel, and how far the next input's is.
struct Lines {
  const uint16_t* first;
  int64_t stride;
};
template <class W>
static inline Lines lines_of(const DenseCall& call, int64_t panel) {
  const int64_t line = W::line(call);
  if (call.wide == 1) return {call.panels + panel * call.in * line, line};
  const int64_t begin = panel / call.wide * call.wide, left = (call.out + kPanel - 1) / kPanel - begin;
  return {call.panels + (begin * call.in + panel - begin) * line, (left < call.wide ? left : call.wide) * line};
}
static inline int64_t inputs_of(const DenseCall& call) { return call.active == nullptr ? call.in : call.active_count; }
static inline int64_t input_of(const DenseCall& call, int64_t e) { return call.active == nullptr ? e : call.active[e]; }

template <int R, int V>
[[gnu::always_inline]] static inline void clear(F32 (&acc)[R][V]) {
  SPECDEC_UNROLL for (int r = 0; r < R; ++r) SPECDEC_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = zero();
}

template <int R, int V>
[[gnu::always_inline]] static inline void load_tile(F32 (&acc)[R][V], const float* p, int64_t stride) {
  SPECDEC_UNROLL for (int r = 0; r < R; ++r) SPECDEC_UNROLL for (int v = 0; v < V; ++v) acc[r][v] =
      load(p + r * stride + v * kLanes);
}

template <int R, int V>
[[gnu::always_inline]] static inline void store_tile(const F32 (&acc)[R][V], float* p, int64_t stride) {
  SPECDEC_UNROLL for (int r = 0; r < R; ++r) SPECDEC_UNROLL for (int v = 0; v < V; ++v)
      store(p + r * stride + v * kLanes, acc[r][v]);
}

// acc[r][v] += w[i][v] * x[i][r] for i = 0..n-1; P panels lie `panel_stride` apart, V vectors in each.
template <class W, int R, int V, int P, int kAhead>
[[gnu::always_inline]] static inline void accumulate(F32 (&acc)[R][V * P], const typename W::Bits* w, int64_t stride,
                                                     int64_t panel_stride, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    F32 weights[V * P];
    SPECDEC_UNROLL for (int p = 0; p < P; ++p) {
      if (kAhead == kAsksFar) SPECDEC_PREFETCH_FAR(w + p * panel_stride + kAheadInputs * stride);
      if (kAhead == kAsksNear) SPECDEC_PREFETCH_NEAR(w + p * panel_stride + kAheadInputs * stride);
      SPECDEC_UNROLL for (int v = 0; v < V; ++v) weights[p * V + v] = W::get(w + p * panel_stride, v);
    }
    loaded(weights);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const F32 value = set1(x[r]);
      SPECDEC_UNROLL for (int v = 0; v < V * P; ++v) acc[r][v] = fma(weights[v], value, acc[r][v]);
    }
    w += stride;
    x += R;
  }
}

// Stores one panel's row; the last panel may be cut.
static inline void store_outputs(const DenseCall& call, int64_t panel, int row, const float* values) {
  const int64_t first = panel * kPanel, left = call.out - first;
  float* y = call.y + row * call.y_stride + first;
  if (left >= kPanel) {
    for (int v = 0; v < kPanelVectors; ++v) store(y + v * kLanes, load(values + v * kLanes));
  } else {
    for (int64_t j = 0; j < left; ++j) y[j] = values[j];
  }
}

// Weights straight from memory into one tile of R rows, P panels at a time.
template <class W, int R, int P, int kAhead>
static void direct(const DenseCall& call, int64_t panel) {
  const int64_t line = W::line(call), panel_stride = call.in * line;
  F32 acc[R][kPanelVectors * P];
  clear(acc);
  accumulate<W, R, kPanelVectors, P, kAhead>(acc, call.panels + panel * panel_stride, line, panel_stride, call.x, call.in);
  for (int p = 0; p < P; ++p) {
    float values[R][kPanel];
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) SPECDEC_UNROLL for (int v = 0; v < kPanelVectors; ++v)
        store(values[r] + v * kLanes, acc[r][p * kPanelVectors + v]);
    for (int r = 0; r < R; ++r) store_outputs(call, panel + p, r, values[r]);
  }
}

template <class W, int R, int kAhead>
static void direct_ahead(const DenseCall& call, int64_t first, int64_t last) {
  if constexpr (R * kPanelVectors * 2 <= kAccumulators) {
    for (; first + 2 <= last; first += 2) direct<W, R, 2, kAhead>(call, first);
  }
  for (; first < last; ++first) direct<W, R, 1, kAhead>(call, first);
}

template <class W, int R>
static void direct_panels(const DenseCall& call, int64_t first, int64_t last) {
  if constexpr (R > 1)
    direct_ahead<W, R, kAsksFar>(call, first, last);
  else if (call.asks_alone)
    direct_ahead<W, 1, kAsksNear>(call, first, last);
  else
    direct_ahead<W, 1, kAsksNothing>(call, first, last);
}

// Converted weights of one block times one tile.
template <int R>
static void block_tile(const float* weights, const float* x, int64_t n, float* acc) {
  for (int first = 0; first < kPanelVectors; first += kTileVectors) {
    F32 tile[R][kTileVectors];
    load_tile(tile, acc + first * kLanes, kPanel);
    accumulate<Float, R, kTileVectors, 1, kAsksNothing>(tile, weights + first * kLanes, kPanel, 0, x, n);
    store_tile(tile, acc + first * kLanes, kPanel);
  }
}

using BlockTile = void (*)(const float*, const float*, int64_t, float*);
using DirectPanels = void (*)(const DenseCall&, int64_t, int64_t);

// Functions by number of rows, R = 1 .. kTileRows (nullptr where a tile would not stay in registers).
template <class W, int R>
static constexpr DirectPanels direct_of() {
  if constexpr (R <= kTileRows && R * kPanelVectors <= kAccumulators)
    return direct_panels<W, R>;
  else
    return nullptr;
}
template <int R>
static constexpr BlockTile block_of() {
  if constexpr (R <= kTileRows)
    return block_tile<R>;
  else
    return nullptr;
}
#define SPECDEC_BY_ROWS(of) \
  { nullptr, of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), of(13), of(14) }
#define SPECDEC_DIRECT(rows) direct_of<W, rows>()
#define SPECDEC_BLOCK(rows) block_of<rows>()
#define SPECDEC_MASKED(rows) masked_of<W, rows>()

// Part of a panel times one of two tiles. The first asks for lines far ahead, into the second-level cache; the second,
// which finds its lines in the first level, for those of the next part, into that.
template <class W, int R, bool kSecond>
static void pair_part(const typename W::Bits* w, int64_t line, const float* x, int64_t n, float* sums) {
  F32 acc[R][kPanelVectors];
  load_tile(acc, sums, kPanel);
  const typename W::Bits* near = w + n * line;
  for (int64_t i = 0; i < n; ++i, w += line, near += line, x += R) {
    if (kSecond)
      SPECDEC_PREFETCH_NEAR(near);
    else
      SPECDEC_PREFETCH_FAR(w + kAheadOfPairs * line);
    F32 weights[kPanelVectors];
    SPECDEC_UNROLL for (int v = 0; v < kPanelVectors; ++v) weights[v] = W::get(w, v);
    loaded(weights);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const F32 value = set1(x[r]);
      SPECDEC_UNROLL for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = fma(weights[v], value, acc[r][v]);
    }
  }
  store_tile(acc, sums, kPanel);
}

template <class W>
using PairPart = void (*)(const typename W::Bits*, int64_t, const float*, int64_t, float*);
template <class W, int R, bool kSecond>
static constexpr PairPart<W> pair_part_of() {
  if constexpr (R <= kTileRows && R * kPanelVectors <= kAccumulators)
    return pair_part<W, R, kSecond>;
  else
    return nullptr;
}
#define SPECDEC_FIRST_OF_PAIR(rows) pair_part_of<W, rows, false>()
#define SPECDEC_SECOND_OF_PAIR(rows) pair_part_of<W, rows, true>()

// Two tiles of rows, which take turns over short parts of a panel.
template <class W>
static void by_turns(const DenseCall& call, int64_t first, int64_t last) {
  static constexpr PairPart<W> firsts[] = SPECDEC_BY_ROWS(SPECDEC_FIRST_OF_PAIR);
  static constexpr PairPart<W> seconds[] = SPECDEC_BY_ROWS(SPECDEC_SECOND_OF_PAIR);
  const int rows[2] = {call.tiles.size(0), call.tiles.size(1)};
  const int64_t line = W::line(call), second = call.tiles.start(1);
  alignas(64) float sums[2 * kTileRows][kPanel];
  for (int64_t panel = first; panel < last; ++panel) {
    for (int r = 0; r < call.tiles.rows; ++r)
      for (int v = 0; v < kPanelVectors; ++v) store(sums[r] + v * kLanes, zero());
    const typename W::Bits* w = call.panels + panel * call.in * line;
    for (int64_t i = 0; i < call.in; i += kPairInputs, w += kPairInputs * line) {
      const int64_t n = call.in - i < kPairInputs ? call.in - i : kPairInputs;
      firsts[rows[0]](w, line, call.x + i * rows[0], n, sums[0]);
      seconds[rows[1]](w, line, call.x + second * call.in + i * rows[1], n, sums[second]);
    }
    for (int r = 0; r < call.tiles.rows; ++r) store_outputs(call, panel, r, sums[r]);
  }
}

// Two tiles panel by panel: the second finds a panel in the second-level cache.
static void by_panels(const DenseCall& call, int64_t first, int64_t last, const DirectPanels* by_rows) {
  const RowTiles& tiles = call.tiles;
  for (int64_t panel = first; panel < last; ++panel)
    for (int t = 0; t < 2; ++t) {
      DenseCall part = call;
      part.tiles = RowTiles(tiles.size(t), tiles.size(t));
      part.x += tiles.start(t) * call.in;
      part.y += tiles.start(t) * call.y_stride;
      by_rows[part.tiles.rows](part, panel, panel + 1);
    }
}

// Converts a panel's inputs e..e+n-1 of those that take part.
template <class W>
struct LineBlocks {
  Lines lines;
  LineBlocks(const DenseCall& call, int64_t panel) : lines(lines_of<W>(call, panel)) {}
  void operator()(const DenseCall& call, int64_t e, int64_t n, float* out) const {
    for (int64_t i = 0; i < n; ++i, out += kPanel) {
      const uint16_t* bits = lines.first + input_of(call, e + i) * lines.stride;
      SPECDEC_UNROLL for (int v = 0; v < kPanelVectors; ++v) store(out + v * kLanes, W::get(bits, v));
    }
  }
  static void two_tiles(const DenseCall& call, int64_t first, int64_t last, const DirectPanels*) {
    by_turns<W>(call, first, last);
  }
};

// `Blocks` converts the weights of a panel, block by block in order.
template <class Blocks>
static void blocked(const DenseCall& call, int64_t first, int64_t last) {
  static constexpr BlockTile by_rows[] = SPECDEC_BY_ROWS(SPECDEC_BLOCK);
  float* acc = call.scratch;
  float* weights = acc + static_cast<int64_t>(call.tiles.rows) * kPanel;
  const int64_t inputs = inputs_of(call);
  for (int64_t panel = first; panel < last; ++panel) {
    Blocks convert(call, panel);
    for (int64_t j = 0; j < static_cast<int64_t>(call.tiles.rows) * kPanel; j += kLanes) store(acc + j, zero());
    for (int64_t i = 0; i < inputs; i += kBlock) {
      const int64_t n = inputs - i < kBlock ? inputs - i : kBlock;
      convert(call, i, n, weights);
      for (int t = 0; t < call.tiles.count; ++t) {
        const int rows = call.tiles.size(t);
        const int64_t start = call.tiles.start(t);
        by_rows[rows](weights, call.x + start * inputs + i * rows, n, acc + start * kPanel);
      }
    }
    for (int r = 0; r < call.tiles.rows; ++r) store_outputs(call, panel, r, acc + r * kPanel);
  }
}

// Straight from memory where the rows are one tile or two that stay in registers, else block by block.
template <class Blocks>
static void multiply_by(const DenseCall& call, int64_t first, int64_t last, const DirectPanels* by_rows) {
  const RowTiles& tiles = call.tiles;
  if (tiles.count > 2 || by_rows[tiles.size(0)] == nullptr || by_rows[tiles.size(tiles.count - 1)] == nullptr) {
    blocked<Blocks>(call, first, last);
    return;
  }
  if (tiles.count == 1) {
    by_rows[tiles.rows](call, first, last);
    return;
  }
  Blocks::two_tiles(call, first, last, by_rows);
}

template <class W>
static void multiply_as(const DenseCall& call, int64_t first, int64_t last) {
  static constexpr DirectPanels by_rows[] = SPECDEC_BY_ROWS(SPECDEC_DIRECT);
  multiply_by<LineBlocks<W>>(call, first, last, by_rows);
}

}  // namespace specdec::SPECDEC_ISA

#include "coded.inl"
#include "wide.inl"

namespace specdec::SPECDEC_ISA {

// run(W{}), W being how the lines of a call hold weights.
template <template <class> class Line, class Run>
static void with_type(const DenseCall& call, const Run& run) {
  if (call.dtype == Dtype::float16)
    run(Line<Half>{});
  else
    run(Line<Bfloat>{});
}
template <class Run>
static void with_weights(const DenseCall& call, const Run& run) {
  if (call.kept == kPanel)
    with_type<Whole>(call, run);
  else
    with_type<Thin>(call, run);
}

static void multiply(const DenseCall& call, int64_t first, int64_t last) {
  if (call.coded != nullptr)
    multiply_coded(call, first, last);
  else if (call.wide > 1)
    with_type<Whole>(call, [&](auto weights) { multiply_wide<decltype(weights)>(call, first, last); });
  else
    with_weights(call, [&](auto weights) { multiply_as<decltype(weights)>(call, first, last); });
}

// One tile of R rows: the lines of active inputs only, each row under the mask that its offset names.
template <class W, int R>
static void masked_tile(const MaskedCall& call, int64_t panel, int tile) {
  const DenseCall& dense = call.dense;
  const int64_t start = dense.tiles.start(tile), last = call.active_count - 1;
  const auto [bits, line] = lines_of<W>(dense, panel);
  const uint32_t* masks = call.masks + panel * mask_words(dense.in, call.tiers);
  const float* x = dense.x + start * dense.in;
  const int32_t* offsets = call.offsets + start * dense.in;
  float values[R][kPanel];
  for (int first = 0; first < kPanelVectors; first += kTileVectors) {
    F32 acc[R][kTileVectors];
    clear(acc);
    for (int64_t e = 0; e <= last; ++e) {
      const int64_t i = call.active[e], ahead = call.active[e + kAheadActive < last ? e + kAheadActive : last];
      prefetch(bits + ahead * line);
      prefetch(masks + ahead * (call.tiers - 1));
      F32 w[kTileVectors];
      SPECDEC_UNROLL for (int v = 0; v < kTileVectors; ++v) w[v] = W::get(bits + i * line, first + v);
      const float* values_of_input = x + i * R;
      const int32_t* offsets_of_input = offsets + i * R;
      SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
        const F32 value = set1(values_of_input[r]);
        const Word word = load_word(masks + offsets_of_input[r]);
        SPECDEC_UNROLL for (int v = 0; v < kTileVectors; ++v) acc[r][v] =
            fma_where(lanes_of(word, first + v), w[v], value, acc[r][v]);
      }
    }
    store_tile(acc, values[0] + first * kLanes, kPanel);
  }
  for (int r = 0; r < R; ++r) store_outputs(dense, panel, static_cast<int>(start) + r, values[r]);
}

using MaskedTile = void (*)(const MaskedCall&, int64_t, int);
template <class W, int R>
static constexpr MaskedTile masked_of() {
  if constexpr (R <= kTileRows)
    return masked_tile<W, R>;
  else
    return nullptr;
}

template <class W>
static void masked_as(const MaskedCall& call, int64_t first, int64_t last) {
  static constexpr MaskedTile by_rows[] = SPECDEC_BY_ROWS(SPECDEC_MASKED);
  const RowTiles& tiles = call.dense.tiles;
  for (int64_t panel = first; panel < last; ++panel)
    for (int t = 0; t < tiles.count; ++t) by_rows[tiles.size(t)](call, panel, t);
}

static void multiply_masked(const MaskedCall& call, int64_t first, int64_t last) {
  with_weights(call.dense, [&](auto weights) { masked_as<decltype(weights)>(call, first, last); });
}

inline DenseKernels dense_kernels() { return DenseKernels{kTileRows, multiply, multiply_masked}; }

}  // namespace specdec::SPECDEC_ISA
