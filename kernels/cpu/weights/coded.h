// A 16-bit matrix whose values are all bfloat16 values, in 12 bits a weight and without loss (coded_lines.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernel_table.h"

namespace specdec {

class CodedMatrix {
 public:
  CodedMatrix() = default;
  // Bytes that a matrix needs, without its patches.
  static size_t bytes_for(int64_t out, int64_t in);
  // In `data`, bytes_for(out, in) of them.
  CodedMatrix(int64_t out, int64_t in, Buffer<uint8_t> data);

  // Gives its memory back before it goes.
  void discard() { data_.discard(); }

  bool empty() const { return data_.empty(); }
  bool complete() const { return lines_.low != nullptr; }
  size_t bytes() const { return data_.bytes() + patches_.bytes() + first_patch_.bytes(); }
  // Bytes of a panel that one pass reads, patches aside.
  int64_t panel_bytes() const { return panel_bytes_; }
  const CodedLines* lines() const { return &lines_; }

  // Takes over `count` inputs of a panel from `first` on, a multiple of kTableInputs: bfloat16 in `weights`,
  // [count][kPanel]. As many as kTableInputs, or those up to the last. Threads may encode different blocks.
  void encode(int64_t panel, int64_t first, int64_t count, const uint16_t* weights);
  // Once all is encoded: lists patches. Returns the share of groups that have one.
  double finish();

  // The inverse, once all is encoded, or before that of the blocks that are.
  void decode(int64_t panel, int64_t first, int64_t count, uint16_t* weights) const;
  // Weights of one output, all its inputs.
  void row(int64_t output, uint16_t* weights) const;

 private:
  // run(input, lane, byte) for the patches of inputs first..first+count-1 of a panel.
  template <class Run>
  void for_patches(int64_t panel, int64_t first, int64_t count, const Run& run) const;

  int64_t in_ = 0, groups_ = 0, tables_ = 0, panels_ = 0, panel_bytes_ = 0;
  Buffer<uint8_t> data_;
  uint8_t *low_ = nullptr, *codes_ = nullptr, *table_ = nullptr;
  std::vector<std::vector<uint32_t>> loose_;  // of each panel and table, until they are listed
  Buffer<uint32_t> patches_, first_patch_;
  CodedLines lines_;
};

}  // namespace specdec
