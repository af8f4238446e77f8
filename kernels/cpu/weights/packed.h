// The exact view in memory: a matrix's weights, all or those of its first tiers, in panels of 32 outputs, and tier masks
// when effort needs them. Of bfloat16 values in 12 bits, until effort below 1 needs plain lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
#include "coded.h"
#include "kernel_table.h"
#include "quant_matrix.h"

namespace specdec {

// What effort below 1 chooses of matrices in tiers; of quantised ones always inputs.
enum class Choice { tiers, inputs };

// Bucket and tier sizes of a store (specdec.weights.layout.BucketLayout).
struct Layout {
  int bucket_size = 16;
  std::vector<int> tier_sizes = {4, 4, 4, 4};
  int tiers() const { return static_cast<int>(tier_sizes.size()); }
};

// A matrix as the store keeps it (specdec.weights.bucket.BucketedMatrix), or its first tiers; borrowed, usually
// memory-mapped.
struct BucketSource {
  std::vector<const uint16_t*> values;  // tier k: [in][buckets][tier_sizes[k]]
  std::vector<const uint8_t*> masks;    // the same tiers, but for K-1: [in][buckets][bucket_size / 8]
  const float* scores = nullptr;        // [in][K]
};

struct PackedMatrix {
  int64_t out = 0, in = 0;
  QuantMatrix quantised;  // in place of everything below, unless empty
  Dtype dtype = Dtype::float16;
  CodedMatrix coded;        // in place of `panels`, unless empty
  Buffer<uint16_t> panels;  // as DenseCall has them; outputs past `out` are +0; part of one array for all matrices
  int wide = 1;             // panels in a tile of `panels`
  int tiers = 1;
  int loaded_tiers = 1;  // weights of the others are 0
  int kept = kPanel;      // weights in a line of `panels`
  Buffer<uint32_t> masks;  // as MaskedCall has them, empty until needed
  Buffer<float> scores;    // [K][in], with the masks
  Buffer<float> input_scores;  // [in], of whole inputs
  void set_shape(int64_t outputs, int64_t inputs, Dtype kind, const Layout& layout) {
    out = outputs;
    in = inputs;
    dtype = kind;
    tiers = loaded_tiers = layout.tiers();
  }
  int64_t panel_count() const { return (out + kPanel - 1) / kPanel; }
  bool is_quantised() const { return !quantised.empty(); }
  bool is_coded() const { return !coded.empty(); }
  bool loaded() const { return !panels.empty() || coded.complete() || !quantised.data.empty(); }
  int64_t line() const { return line_values(kept); }
  // Leaves out the tiers from `count` on, before anything is loaded. Where buckets do not divide panels, lines hold zeros
  // in their place.
  void keep_tiers(int count, const Layout& layout);
  // Lays the lines that an input has in up to `tile` panels side by side, so that an input which is not taken leaves a gap
  // worth skipping. Tiles first..last of the matrix, before `wide` says so.
  void widen(int tile, int64_t first, int64_t last);
  // The lines of `count` inputs, 32 places each: where they lie, or in `buffer`.
  const uint16_t* whole_lines(int64_t panel, int64_t first, int64_t count, uint16_t* buffer) const;
  const uint16_t* whole_line(int64_t panel, int64_t input, uint16_t* buffer) const;
  // Weights of one output.
  void row(int64_t output, uint16_t* bits) const;
  // Whether the matrix may take the coded form, as far as its shape tells.
  bool can_be_coded() const { return !is_quantised() && kept == kPanel && in <= kMostCodedInputs; }
  // Writes the lines of coded panels [first, last) to `panels`.
  void decode(int64_t first, int64_t last);
  DenseCall dense_call(const float* x, RowTiles rows, float* y, int64_t y_stride, float* scratch = nullptr) const;
  // Values of `panels`, words of `masks` and bytes of `quantised.data` that the matrix needs.
  size_t panel_values() const {
    if (is_quantised()) return 0;
    return static_cast<size_t>(panel_count() * in * line() + (kept == kPanel ? 0 : kPanel));
  }
  size_t coded_bytes() const { return can_be_coded() ? CodedMatrix::bytes_for(out, in) : 0; }
  // Bytes of a panel that a pass over all inputs reads.
  int64_t panel_bytes() const { return is_coded() ? coded.panel_bytes() : in * line() * 2; }
  size_t quantised_bytes() const { return is_quantised() ? quantised.bytes() : 0; }
  size_t all_mask_words() const {
    return is_quantised() ? 0 : static_cast<size_t>(panel_count() * mask_words(in, tiers));
  }
  bool has_masks() const { return !scores.empty(); }
  // Whether what effort below 1 needs is loaded.
  bool chooses(Choice choice) const {
    if (is_quantised()) return !quantised.scores.empty();
    return choice == Choice::tiers ? has_masks() : !input_scores.empty();
  }
};

// Fills `panels` for inputs [first, last) and checks what it reads. Returns "" or what is wrong with the matrix.
std::string pack_values(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t first,
                        int64_t last);

// Whether the first weights of a matrix are bfloat16 values.
bool may_be_coded(const PackedMatrix& matrix, const BucketSource& source);

// Inputs [first, last) of panels [begin, end): a block that is encoded at once. `first` is a multiple of kTableInputs,
// and there are as many inputs, or those up to the matrix's last.
struct CodedBlock {
  int64_t first, last, begin, end;
};
// Fills that part of `coded` and checks what it reads. Returns "" or what is wrong with the matrix; `fits` turns false where
// a weight is not a bfloat16 value.
std::string encode_values(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, CodedBlock block,
                          bool& fits);

// Fills `masks` (zeros before) and `scores` for inputs [first, last); both must be allocated.
void pack_masks(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t first, int64_t last);

}  // namespace specdec
