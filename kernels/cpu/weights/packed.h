// The exact view in memory: a matrix's weights, all or those of its first tiers, in panels of 32 outputs, and tier masks
// when effort needs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
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
  bool loaded() const { return !panels.empty() || !quantised.data.empty(); }
  int64_t line() const { return line_values(kept); }
  // Leaves out the tiers from `count` on, before anything is loaded. Where buckets do not divide panels, lines hold zeros
  // in their place.
  void keep_tiers(int count, const Layout& layout);
  // Lays the lines that an input has in up to `tile` panels side by side, so that an input which is not taken leaves a gap
  // worth skipping. Tiles first..last of the matrix, before `wide` says so.
  void widen(int tile, int64_t first, int64_t last);
  // The line of an input in 32 places: where it lies, or in `buffer`.
  const uint16_t* whole_line(int64_t panel, int64_t input, uint16_t* buffer) const;
  DenseCall dense_call(const float* x, RowTiles rows, float* y, int64_t y_stride, float* scratch = nullptr) const;
  // Values of `panels`, words of `masks` and bytes of `quantised.data` that the matrix needs.
  size_t panel_values() const {
    if (is_quantised()) return 0;
    return static_cast<size_t>(panel_count() * in * line() + (kept == kPanel ? 0 : kPanel));
  }
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

// Fills `masks` (zeros before) and `scores` for inputs [first, last); both must be allocated.
void pack_masks(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t first, int64_t last);

}  // namespace specdec
