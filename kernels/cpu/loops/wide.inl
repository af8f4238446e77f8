// Matrix times rows over a wide matrix, in which an input that no row takes is a gap of 2 KiB or so. Part of dense.inl.
//
// The contract is that of the dense product: one accumulator for each (row, output), in ascending order of input. A block
// of inputs is multiplied while the next one is fetched, because the hardware does not foresee gaps.

namespace specdec::SPECDEC_ISA {

constexpr int kWideInputs = 16;
constexpr int kWideRows = 2 * kTileRows;  // that go through one block together
constexpr int64_t kWideOutputs = int64_t{kWidePanels} * kPanel;

// Lines of the block under way, and of the next.
struct WideBlock {
  int inputs;
  const uint16_t *lines[kWideInputs], *next[kWideInputs];
};

// Vectors of outputs whose accumulators R rows keep in registers, beside a value of each row or the weights.
template <int R>
static constexpr int wide_vectors() {
  int vectors = 1;
  while (vectors * 2 * R <= kAccumulators && vectors < 8) vectors *= 2;
  return vectors;
}

// Outputs from `output` on, V vectors: acc += block * x.
template <class W, int R, int V, bool kAhead>
[[gnu::always_inline]] static inline void wide_chunk(const WideBlock& block, int64_t output, const float* x, float* acc) {
  F32 sums[R][V];
  load_tile(sums, acc, kWideOutputs);
  for (int i = 0; i < block.inputs; ++i, x += R) {
    const uint16_t* line = block.lines[i] + output;
    if (kAhead)
      SPECDEC_UNROLL for (int at = 0; at < V * kLanes; at += kPanel) SPECDEC_PREFETCH_FAR(block.next[i] + output + at);
    F32 values[R];
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) values[r] = set1(x[r]);
    SPECDEC_UNROLL for (int v = 0; v < V; ++v) {
      const F32 weights = W::get(line, v);
      SPECDEC_UNROLL for (int r = 0; r < R; ++r) sums[r][v] = fma(weights, values[r], sums[r][v]);
    }
  }
  store_tile(sums, acc, kWideOutputs);
}

// `width` outputs, a multiple of a panel, of one tile of rows.
template <class W, int R, int V, bool kAhead>
static void wide_chunks(const WideBlock& block, int64_t output, int64_t width, const float* x, float* acc) {
  for (; output + V * kLanes <= width; output += V * kLanes)
    wide_chunk<W, R, V, kAhead>(block, output, x, acc + output);
  if constexpr (V * kLanes > kPanel) {
    if (output < width) wide_chunks<W, R, V / 2, kAhead>(block, output, width, x, acc);
  }
}

template <class W, int R>
static void wide_tile(const WideBlock& block, int64_t width, const float* x, float* acc, bool ahead) {
  if (ahead)
    wide_chunks<W, R, wide_vectors<R>(), true>(block, 0, width, x, acc);
  else
    wide_chunks<W, R, wide_vectors<R>(), false>(block, 0, width, x, acc);
}

using WideTile = void (*)(const WideBlock&, int64_t, const float*, float*, bool);
template <class W, int R>
static constexpr WideTile wide_of() {
  if constexpr (R <= kTileRows)
    return wide_tile<W, R>;
  else
    return nullptr;
}
#define SPECDEC_WIDE(rows) wide_of<W, rows>()

// Panels first..last, all of one tile of the matrix.
template <class W>
static void wide_panels(const DenseCall& call, int64_t first, int64_t last) {
  static constexpr WideTile by_rows[] = SPECDEC_BY_ROWS(SPECDEC_WIDE);
  alignas(64) float acc[kWideRows * kWideOutputs];
  const int64_t inputs = inputs_of(call), width = (last - first) * kPanel;
  for (int r = 0; r < call.tiles.rows; ++r)
    for (int64_t o = 0; o < width; o += kLanes) store(acc + r * kWideOutputs + o, zero());
  const Lines lines = lines_of<W>(call, first);
  for (int64_t e = 0; e < inputs; e += kWideInputs) {
    WideBlock block;
    block.inputs = static_cast<int>(inputs - e < kWideInputs ? inputs - e : kWideInputs);
    for (int i = 0; i < block.inputs; ++i) {
      const int64_t ahead = e + i + kWideInputs;
      block.lines[i] = lines.first + input_of(call, e + i) * lines.stride;
      block.next[i] = lines.first + input_of(call, ahead < inputs ? ahead : inputs - 1) * lines.stride;
    }
    for (int t = 0; t < call.tiles.count; ++t) {
      const int rows = call.tiles.size(t);
      const int64_t start = call.tiles.start(t);
      by_rows[rows](block, width, call.x + start * inputs + e * rows, acc + start * kWideOutputs, t == 0);
    }
  }
  for (int r = 0; r < call.tiles.rows; ++r)
    for (int64_t panel = first; panel < last; ++panel)
      store_outputs(call, panel, r, acc + r * kWideOutputs + (panel - first) * kPanel);
}

template <class W>
static void multiply_wide(const DenseCall& call, int64_t first, int64_t last) {
  if (call.tiles.rows > kWideRows) {
    blocked<LineBlocks<W>>(call, first, last);
    return;
  }
  while (first < last) {
    const int64_t end = (first / call.wide + 1) * call.wide, next = end < last ? end : last;
    wide_panels<W>(call, first, next);
    first = next;
  }
}

}  // namespace specdec::SPECDEC_ISA
