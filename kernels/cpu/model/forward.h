// One forward pass: the transformer step over a model's weights, a cache and some rows. Not part of the interface.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "model.h"

namespace specdec {

SPECDEC_INLINE int64_t padded(int64_t n) { return (n + 63) / 64 * 64; }

// Smallest whole number of weights whose share of `total` is at least `effort` (kernels/reference/selection.py).
int64_t weights_to_take(double effort, int64_t total);

class Pass {
 public:
  Pass(Model& model, int rows, KvCache& cache, DraftView* draft, const double* efforts);
  uint64_t run(const int32_t* tokens, bool last_only, float* logits, int layers, float* states);
  // One matrix times the rows, x (rows, in) to y (rows, out).
  uint64_t run_matrix(int matrix, const float* x, float* y);

 private:
  // One matrix of a group that shares its input rows, and where its result goes.
  struct Output {
    int matrix;
    float* y;
    int64_t stride;
  };
  struct Input {
    const float* x;
    int64_t stride;
    int rows;
  };
  // What multiply_exact prepares for one output.
  struct Plan {
    const PackedMatrix* matrix;
    MaskedCall call;
    bool masked;
    int64_t group;  // panels per part
    int parts;      // of each thread's share
    const int32_t* whole = nullptr;  // the rows in whole numbers, where the matrix is quantised
  };

  void allocate();
  void embed(const int32_t* tokens);
  void rotary();
  void attention_block(int layer);
  void append_row(int layer, int row);
  void mlp_block(int layer);
  void gated_mlp(int first_matrix, Input in, float* y, int64_t y_stride);
  void expert_mlp(int layer);
  void head(bool last_only, float* logits);

  // y_j = W_j x for every row; then after(j, row, first, last) for ranges of finished outputs. With `paired`, the
  // outputs have equal shapes, the same range of all is done before one call after(0, row, first, last).
  template <class After>
  void multiply(Input in, const std::vector<Output>& outputs, bool paired, const After& after);
  template <class After>
  void multiply_draft(Input in, const std::vector<Output>& outputs, bool paired, const After& after);
  std::vector<Plan> plan(Input in, const std::vector<Output>& outputs);
  void choose(Input in, std::vector<Plan>& plans);
  const float* to_tiles(Input in, int64_t width, RowTiles tiles);
  // forward_quant.cpp
  const int32_t* to_whole(Input in, const QuantMatrix& matrix, double effort, int64_t slot);
  void quantised_tile(const Plan& plan, Input in, int tile, float* scratch);

  // attention.cpp
  struct AttentionTile;
  void attend(int layer);
  AttentionTile attention_tile(int kv_head, int index) const;
  void attend_tile(int layer, const AttentionTile& tile, int64_t chunk, const float* q, float* scratch, float* peak,
                   float* total, float* sums);
  void gather_q(const AttentionTile& tile, float* q) const;
  void attend_by_chunk(int layer, int64_t first_chunk, int64_t chunks);
  void attend_by_tile(int layer);
  void finish_row(const float* sums, float total, int token, int head);
  int64_t first_seen(int layer, int64_t position) const;

  // Runs body(part, thread) for each part; on this thread alone when `work`, in multiply-adds, is too little to share.
  template <class Body>
  void each(int parts, int64_t work, const Body& body) {
    constexpr int64_t kWorthSharing = 50000;
    if (work < kWorthSharing)
      for (int part = 0; part < parts; ++part) body(part, 0);
    else
      model_.pool_->run(parts, body);
  }
  float* thread_scratch(int thread) { return scratch_.thread.data() + thread * thread_floats_; }

  Model& model_;
  const ModelShape& shape_;
  const KernelTable& kernels_;
  Model::Scratch& scratch_;
  const int rows_;
  KvCache& cache_;
  DraftView* draft_;
  const double* efforts_;
  const int64_t start_;  // position of the first row
  int64_t thread_floats_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace specdec
