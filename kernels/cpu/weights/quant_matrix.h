// A quantised matrix in memory: its source's own codes and scales, in the order of quant_kernels.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "buffer.h"
#include "quant_kernels.h"

namespace specdec {

// A matrix as a store has it (specdec.weights.quantised.QuantisedTable); borrowed, usually memory-mapped. Rows are outputs.
struct QuantSource {
  const uint8_t* codes = nullptr;     // blocks of a GGUF type, or the words of an affine one; null if codes lie in planes
  const uint16_t* scales = nullptr;   // of an affine type
  const uint16_t* biases = nullptr;
  // Codes of more than four bits in planes (specdec.weights.planes): their upper four bits, and the rest, null if hidden.
  const uint8_t* upper = nullptr;
  const uint8_t* rest = nullptr;
  const uint8_t* heads = nullptr;     // what blocks of a GGUF type have beside their codes
};

// What one type of quantised blocks looks like.
class QuantType {
 public:
  // Throws std::invalid_argument for a name that specdec.weights.quantised does not know.
  explicit QuantType(const std::string& name);

  const QuantFormat& format() const { return format_; }
  // Of one row: bytes of `codes`, numbers of `scales` and of `biases`, bytes of `upper`, `rest` and `heads`.
  int64_t row_bytes(int64_t in) const { return in / block_ * block_bytes_; }
  int64_t row_factors(int64_t in) const { return is_affine() ? in / block_ : 0; }
  int64_t row_upper(int64_t in) const { return in / 2; }
  int64_t row_rest(int64_t in) const { return in * (format_.bits - 4) / 8; }
  int64_t row_heads(int64_t in) const { return is_affine() ? 0 : in / block_ * head_bytes(); }
  // The source without its first rows.
  QuantSource from_row(const QuantSource& source, int64_t in, int64_t row) const;
  bool fits(int64_t in) const { return in > 0 && in % block_ == 0; }
  // Keeps the four highest bits of every code alone.
  void hide_rest() { format_.hidden = format_.bits - 4; }

  // Group g of one output: its codes, and raw scales and offsets: 16-bit floats of its unit (offset: the number that is
  // subtracted), and the group's own scale and offset (two scales where the format has two parts).
  struct Group {
    uint8_t codes[kQuantGroup];
    uint16_t scale, offset;
    uint8_t own[2];
  };
  void read(const QuantSource& source, int64_t in, int64_t row, int64_t g, Group* group) const;

 private:
  enum class Blocks { q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, affine };
  bool is_affine() const { return blocks_ == Blocks::affine; }
  int64_t head_bytes() const { return block_bytes_ - block_ * format_.bits / 8; }
  void read_head(const uint8_t* head, int64_t within, Group* group) const;
  void read_codes(const uint8_t* block, int64_t within, uint8_t* codes) const;

  Blocks blocks_;
  QuantFormat format_;
  int64_t block_ = kQuantGroup, block_bytes_ = 0;
};

// Weights of one output, `in` floats: what the gguf package and MLX make of them.
void dequantise_row(const QuantType& type, const QuantSource& source, int64_t in, int64_t row, float* out);

struct QuantMatrix {
  QuantMatrix() : type("q8_0") {}
  // Shares the outputs out in tiles, as many for each of `threads`. `upper`: the four highest bits of every code alone.
  QuantMatrix(const std::string& type_name, int64_t outputs, int64_t inputs, int threads, bool upper = false);

  size_t bytes() const { return static_cast<size_t>(groups() / type.format().unit * type.format().unit_bytes() * padded_out()); }
  int64_t groups() const { return in / kQuantGroup; }
  int64_t blocks() const { return (out + kQuantBlock - 1) / kQuantBlock; }
  int64_t padded_out() const { return blocks() * kQuantBlock; }
  bool empty() const { return out == 0; }
  // The first output of a tile.
  int64_t tile_start(int tile) const { return blocks() * tile / tiles * kQuantBlock; }
  int64_t tile_width(int tile) const { return tile_start(tile + 1) - tile_start(tile); }
  QuantTile tile(int t) const;

  // Packs outputs [first, last) from rows 0.. of the source; first is a multiple of kQuantBlock, last too or all outputs.
  // Returns "" or what is wrong with the matrix.
  std::string pack(const QuantSource& source, int64_t first, int64_t last);
  // Weights of one output, as dequantise_row; of hidden bits, half their range.
  void row(int64_t output, float* weights) const;

  QuantType type;
  int64_t out = 0, in = 0;
  int tiles = 1;
  Buffer<uint8_t> data;   // bytes(), part of one array for all matrices
  Buffer<float> scores;   // [in], zeros up to whole groups
};

}  // namespace specdec
