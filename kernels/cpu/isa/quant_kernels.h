// Quantised matrices as the kernels see them: codes in planes, scales beside them. How they are filled: quant_matrix.h.
//
// A matrix is cut into tiles of outputs, a tile into groups of 32 inputs. A group is a row for each input: the four highest
// bits of every output's code, so that a draft can read those alone, then the other bits (rest), a block of 128 outputs
// after the other. So at an effort below 1 the rows of inputs that are left out are not read.
#pragma once

#include <cstdint>

namespace specdec {

// Inputs that are multiplied together: the least that any type's scales cover (but for q6_k, see `parts`).
constexpr int kQuantGroup = 32;
// Outputs whose high bits of one input are one line of memory.
constexpr int kQuantBlock = 128;
// Groups of four inputs whose codes lie side by side, ready for one dot product.
constexpr int kQuads = kQuantGroup / 4;

enum class QuantScale : int {
  half,     // a float16 scale, and perhaps an offset, for each output and unit
  bfloat,   // the same in bfloat16
  six_bit,  // float16 scale and offset of a unit, times 6 bits for each group (q4_k, q5_k)
  int8,     // float16 scale of a unit, times int8 for each half of a group (q6_k)
};

// A weight is scale * (code - zero) - offset.
struct QuantFormat {
  int bits = 0;            // of a code: 4, 5, 6 or 8
  int zero = 0;            // code of weight zero
  QuantScale scale = QuantScale::half;
  bool offset = false;
  int unit = 1;            // groups that share what `scale` says
  int hidden = 0;          // lower bits of every code that were not loaded, and count as half their range

  constexpr bool has_offset() const { return offset || scale == QuantScale::six_bit; }
  constexpr int rest_bits() const { return bits - 4 - hidden; }
  // The code of weight zero less what hidden bits count as, in halves.
  constexpr int twice_zero() const { return 2 * zero - ((1 << hidden) - 1); }
  constexpr int parts() const { return scale == QuantScale::int8 ? 2 : 1; }  // of a group, each with its own scale
  // Bytes for each output: in front of a unit, and in front of a group.
  constexpr int64_t unit_head() const { return has_offset() ? 4 : 2; }
  constexpr int64_t group_head() const {
    return scale == QuantScale::six_bit || scale == QuantScale::int8 ? 2 : 0;
  }
  // Bytes of one input's row, of `width` outputs.
  constexpr int64_t row_bytes(int64_t width) const { return width * (bits - hidden) / 8; }
  // Bytes of a group for each output, and of a unit.
  constexpr int64_t group_bytes() const { return group_head() + kQuantGroup * (bits - hidden) / 8; }
  constexpr int64_t unit_bytes() const { return unit_head() + unit * group_bytes(); }
};

// Some outputs of a matrix and all its inputs: units, each a head and `unit` groups; a group is a head and the rows of its
// inputs. Heads are stored block by block.
struct QuantTile {
  const uint8_t* data;
  int64_t width;  // outputs, a multiple of kQuantBlock
};

// Activations of some rows in whole numbers. A span of inputs shares a step for each row. For each group of inputs come
// words of int32, `rows` of one kind side by side: high[kQuads], low[kQuads] (four activations each, in the form that the
// instruction set wants), sums[2] (the activations of either half of the group added up), then a float: those of the
// group. After all groups: a float for each span and row, the step.
//
// Where inputs are chosen, a group's words are those of the chosen ones in the order of their list (QuantChoice); a quad
// that is not full is filled up with zeros.
constexpr int kQuantSpan = 256;
constexpr int kSpanGroups = kQuantSpan / kQuantGroup;
constexpr int kQuantRowWords = 2 * kQuads + 3;
constexpr int64_t quant_words(int64_t groups, int64_t rows) {
  return (groups * kQuantRowWords + (groups + kSpanGroups - 1) / kSpanGroups) * rows;
}

// The inputs of a group that some row takes. A group of two parts lists each half by itself, the second from place 16 on.
struct QuantChoice {
  uint32_t mask;                // bit j: input j of the group
  uint8_t quads[2];             // of each part
  uint8_t index[kQuantGroup];   // of the chosen inputs, ascending; a quad is filled up with the last one
};

// y[r][o] = sum over the groups, ascending. The inputs that no row takes may be left out: their products are zeros.
struct QuantCall {
  QuantFormat format;
  QuantTile tile;
  int64_t groups;               // of the matrix
  int64_t first_out, last_out;  // of the tile, multiples of kQuantBlock
  int tiles;                    // of rows
  const int32_t* const* x;      // for each tile of rows: quant_words(groups, rows)
  const int* rows;              // of each tile
  float* sums;                  // out: row after row, sums_stride floats apart, from first_out on
  int64_t sums_stride;          // at least last_out - first_out
  uint8_t* scratch;             // quant_scratch_bytes(rows of all tiles, outputs)
  const QuantChoice* choices = nullptr;  // of each group; null: all inputs
  // Some groups alone, from a span's beginning to a span's end: their span sums, without steps and outer scales, go to
  // `spans` ([span][block][row][kQuantBlock], all spans of the tile), and add_spans makes `sums` of them.
  int64_t first_group = 0, last_group = 0;  // 0: to the last
  float* spans = nullptr;
  const QuantCall* next = nullptr;       // with choices: what this thread is likely to multiply afterwards: fetched ahead
  bool cold = true;                      // with choices: nothing has fetched the first group ahead
};
// Sums of a span.
constexpr int64_t quant_scratch_bytes(int64_t rows, int64_t outputs) { return outputs * 4 * rows; }

// Activations in whole numbers: rows `stride` floats apart, `in` a multiple of kQuantGroup.
struct QuantRowsCall {
  const float* x;
  int64_t stride, in;
  int rows;
  int64_t first, last;          // spans to do
  const uint32_t* masks;        // of the inputs of each group that take part, row after row; nullptr: all of them
  const QuantChoice* choices;   // of each group; nullptr: words of all inputs
  int parts;                    // of a group, as the choices have them
  int32_t* out;                 // quant_words(in / kQuantGroup, rows)
};

// One row times the chosen inputs of the first plane (specdec.weights.nested): what the rest of a code would add counts as
// half its range. Activations are rounded to 8 bits for each group.
struct NestedCall {
  QuantFormat format;
  QuantTile tile;
  int64_t groups;
  const float* x;
  const uint32_t* masks;     // of the chosen inputs, a word for each group
  float* sums;               // out: one for each output of the tile
  const NestedCall* next;    // what this thread is likely to multiply afterwards, or nullptr: fetched ahead
  bool cold;                 // nothing has fetched the first group ahead
};

struct QuantKernels {
  int tile_rows;  // most rows of a tile of activations
  void (*list)(uint32_t mask, int parts, QuantChoice* choice);
  void (*activations)(const QuantRowsCall&);  // writes nothing outside its spans
  void (*multiply)(const QuantCall&);
  void (*add_spans)(const QuantCall&);  // sums of all outputs from `spans`, which are complete
  // One call a row, at most kDraftRows, all of the same tile. Rows share what they read, never results.
  void (*nested)(const NestedCall* calls, int rows);
};

}  // namespace specdec
