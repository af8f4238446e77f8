// What each instruction set provides: one table of plain functions, filled by isa_*.cpp, picked by dispatch.cpp.
//
// Pointers and sizes are trusted here; bindings.cpp and Model check them. No function allocates or throws.
#pragma once

#include <cstddef>
#include <cstdint>

#include "coded_lines.h"
#include "draft_kernels.h"
#include "fff_kernels.h"
#include "quant_kernels.h"
#include "search_kernels.h"

// Small functions of headers that files of different instruction sets share must not be emitted as such: the linker
// would keep one copy for all of them.
#define SPECDEC_INLINE [[gnu::always_inline]] inline

namespace specdec {

// Outputs that a packed matrix keeps together: for each input, their weights lie side by side (64 bytes).
constexpr int kPanel = 32;
// A panel's weights of one input, its line: all 32, or those of the first tiers alone, in order of output behind two
// places that hold the bits of their outputs. Every line of a matrix has as many. Values in a line of `kept` weights:
SPECDEC_INLINE constexpr int64_t line_values(int kept) { return kept == kPanel ? kPanel : kept + 2; }
// Positions of the context that attention treats as one: partial results meet at multiples of it, whatever is asked.
constexpr int kChunk = 128;
// Most rows that one register tile holds, over all instruction sets.
constexpr int kMaxTile = 14;
// Weights are converted, for more rows than a tile, in blocks of this many inputs.
constexpr int kBlock = 128;

// Most panels that one tile of a wide matrix holds, whose lines of one input lie side by side (2 KiB).
constexpr int kWidePanels = 32;

enum class Dtype : int { float16 = 0, bfloat16 = 1 };

// Rows of activations in tiles: M rows in `count` tiles whose sizes differ by at most one; tile t holds its rows
// interleaved, value (row, i) at data[start(t) * in + i * size(t) + row].
struct RowTiles {
  int rows = 0, count = 0;
  SPECDEC_INLINE RowTiles() {}
  SPECDEC_INLINE RowTiles(int m, int max_tile) : rows(m), count((m + max_tile - 1) / max_tile) {}
  SPECDEC_INLINE int start(int t) const { return static_cast<int>(static_cast<int64_t>(rows) * t / count); }
  SPECDEC_INLINE int size(int t) const { return start(t + 1) - start(t); }
};

// y[r][o] = sum over i, ascending, of w[o][i] * x[r][i]: one accumulator, fused multiply-adds, from 0.
struct DenseCall {
  const uint16_t* panels;  // [ceil(out / 32)][in][line_values(kept)], readable for another kPanel values
  Dtype dtype;
  int64_t in, out;
  const float* x;  // tiles
  RowTiles tiles;
  float* y;  // y[r * y_stride + o]
  int64_t y_stride;
  float* scratch;  // of this thread: scratch_floats(rows)
  int kept = kPanel;  // weights in a line; the others are 0
  // A wide matrix: [ceil(panels / wide)][in][wide * 32]; the last tile holds the panels that are left. Unless `active` is
  // null, x holds values of these ascending inputs alone, `active_count` in place of `in`; no row takes another input.
  int wide = 1;
  const int32_t* active = nullptr;
  int64_t active_count = 0;
  const CodedLines* coded = nullptr;  // in place of `panels`, with all inputs
  bool asks_alone = false;            // for weights ahead of one row too: asks_alone() of dispatch.h
};

// The same over chosen products only. Input i takes part in row r for the outputs in its first n(r, i) tiers.
//
// A panel's masks are [none, all][in][K - 1]: a word of no outputs, one of every output, then for each input the
// outputs in its tiers 0..k. So one offset names the mask of any n(r, i).
struct MaskedCall {
  DenseCall dense;
  int tiers;               // K
  const uint32_t* masks;   // panel p at p * mask_words(in, K)
  const int32_t* offsets;  // mask_offset(i, n(r, i), K), in tiles as x
  const int32_t* active;   // ascending inputs that any row takes a tier of
  int64_t active_count;
};

SPECDEC_INLINE constexpr int64_t mask_words(int64_t in, int tiers) { return 2 + in * (tiers - 1); }
SPECDEC_INLINE constexpr int32_t mask_offset(int64_t input, int taken, int tiers) {
  return taken == 0 ? 0 : taken == tiers ? 1 : static_cast<int32_t>(2 + input * (tiers - 1) + taken - 1);
}

SPECDEC_INLINE constexpr int64_t scratch_floats(int64_t rows) {
  return rows * kPanel + kBlock * kPanel;  // accumulators, converted weights
}

struct DenseKernels {
  int max_tile;  // rows per tile that this instruction set wants, at most kMaxTile
  void (*multiply)(const DenseCall&, int64_t first_panel, int64_t last_panel);
  void (*multiply_masked)(const MaskedCall&, int64_t first_panel, int64_t last_panel);
};

// One chunk of positions seen by some rows of one key-value head. Row r is (token, query head of the group).
struct AttentionCall {
  const void* keys;     // float16, or float32 where `single`: [kChunk / 32][head_dim][32]
  const void* values;   // of the same type, [kChunk][value_stride]
  bool single;
  int64_t value_stride;    // head_dim rounded up to 32
  int head_dim;
  float scale;
  float softcap;        // scaled scores become softcap * tanh(score / softcap); 0: they stay
  const float* q;       // tile: q[d * rows + r]
  int rows;             // at most max_tile
  const int32_t* from;  // per row: first and one past the last position seen, within the chunk, 0..kChunk
  const int32_t* to;
  float* peak;     // out, per row: largest score, -inf when the row sees nothing
  float* total;    // out, per row: sum of exp(score - peak)
  float* sums;     // out, row r at sums + r * value_stride: sum of exp(score - peak) * value
  float* scratch;  // attention_scratch_floats()
  const void* next = nullptr;  // keys that this thread multiplies next, prefetched with the values; null: none
};

SPECDEC_INLINE constexpr int64_t attention_scratch_floats() { return int64_t{kMaxTile} * kChunk + 64; }

struct AttentionKernels {
  void (*chunk)(const AttentionCall&);
  // Adds a chunk's result to a running one (peak, total, sums), in place; a first chunk starts from peak = -inf.
  void (*combine)(float* peak, float* total, float* sums, float chunk_peak, float chunk_total, const float* chunk_sums,
                  int64_t value_stride);
};

// A stretch of logits, summed up. Weights are e^(logit - highest).
struct LogitSummary {
  float highest, second;  // the two largest; equal ones count twice; NaN and anything where a logit is NaN
  float weight, moment;   // sum of the weights, and of weight * (logit - highest)
};
constexpr int64_t kLogitStretch = 1024;

struct ElementKernels {
  // y = x / sqrt(mean(x^2) + eps) * weight, over n values.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  // Turns the pairs (j, j + pairs) of each of `heads` heads by the angles of cosine and sine (`pairs` each); or the pairs
  // (2j, 2j + 1).
  void (*rope)(float* x, int64_t heads, int64_t head_dim, int64_t pairs, const float* cosine, const float* sine);
  void (*rope_interleaved)(float* x, int64_t heads, int64_t head_dim, int64_t pairs, const float* cosine,
                           const float* sine);
  // gate = silu(gate) * up; gelu(gate) * up, GELU by tanh; silu(1.702 gate) / 1.702 * (up + 1) with gate at most 7 and up
  // within 7 of 0.
  void (*silu_mul)(float* gate, const float* up, int64_t n);
  void (*gelu_mul)(float* gate, const float* up, int64_t n);
  void (*clamped_mul)(float* gate, const float* up, int64_t n);
  // x = x * sigmoid(gate).
  void (*sigmoid_mul)(float* x, const float* gate, int64_t n);
  // x = most * tanh(x / most).
  void (*cap)(float* x, float most, int64_t n);
  // Rounds to float16.
  void (*to_half)(const float* x, uint16_t* y, int64_t n);
  // Exact values of 16-bit weights.
  void (*widen)(const uint16_t* bits, Dtype dtype, int64_t n, float* y);
  // Sums up 1 to kLogitStretch logits.
  void (*summarise)(const float* logits, int64_t n, LogitSummary* summary);
};

// Tiers that one row takes of each input of a matrix, as kernels/reference/selection.py defines them.
struct SelectCall {
  int64_t in;
  int tiers;
  const int* tier_sizes;
  const float* x;
  const float* scores;  // [K][in]
  int64_t target;       // weights to take, counted in one bucket per input: 1 .. in * bucket_size
  uint8_t* chosen;      // out: n(i)
  uint32_t* keys;       // scratch: K * in
};

struct KernelTable {
  const char* name;
  DenseKernels dense;
  void (*select)(const SelectCall&);
  AttentionKernels attention;
  ElementKernels element;
  DraftKernels draft;
  QuantKernels quant;
  SearchKernels search;
  FffKernels fff;
};

}  // namespace specdec
