// One forward pass: the transformer step over a model's weights and rows of some sequences. Not part of the interface.
//
// Rows lie sequence after sequence, those that run through most layers first: what a layer works on is a beginning of
// them. All rows go through a matrix together; attention looks at one sequence's cache at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "model.h"

namespace specdec {

SPECDEC_INLINE int64_t padded(int64_t n) { return (n + 63) / 64 * 64; }

// Smallest whole number of weights whose share of `total` is at least `effort` (kernels/reference/selection.py).
int64_t weights_to_take(double effort, int64_t total);

class Pass {
 public:
  // Rows that one tile of a quantised matrix is multiplied by at a time, at most: their sums stay in the second-level cache.
  static constexpr int kRowsAtOnce = 96;

  // The sequences have been checked, and their caches have room.
  Pass(Model& model, std::vector<SequenceRows>& batch, DraftView* draft, Choice choice);
  // Writes the logits of all sequences one below the other, and what each has read into its `bytes`.
  void run(float* logits);
  // One matrix times the rows, x (rows, in) to y (rows, out).
  void run_matrix(int matrix, const float* x, float* y);

 private:
  // One matrix of a group that shares its input rows, and where its result goes.
  struct Output {
    int matrix;
    float* y;
    int64_t stride;
  };
  // One to three of them, without an allocation.
  struct Outputs {
    Output items[3];
    size_t count = 0;

    Outputs(std::initializer_list<Output> list) {
      for (const Output& one : list) items[count++] = one;
    }
    size_t size() const { return count; }
    const Output& operator[](size_t j) const { return items[j]; }
    const Output* begin() const { return items; }
    const Output* end() const { return items + count; }
  };
  struct Input {
    const float* x;
    int64_t stride;
    int rows;
    const double* const* efforts;  // of each row: one per matrix, from number `first` on
    int first = 0;

    double effort(int row, int matrix) const { return efforts[row][matrix - first]; }
  };
  // What multiply_exact prepares for one output.
  struct Plan {
    const PackedMatrix* matrix;
    MaskedCall call;
    bool chosen;    // some row has an effort below 1
    int64_t group;  // tiles of the matrix per part
    int parts;      // of each thread's share
    // Where the matrix is quantised: the rows in whole numbers, and the inputs to read (null: all of them).
    const int32_t* whole = nullptr;
    const QuantChoice* choices = nullptr;

    int64_t tiles() const { return (matrix->panel_count() + matrix->wide - 1) / matrix->wide; }
  };
  // How a multiplication by quantised matrices alone is cut. A unit is finished together: some rows of a tile, or of two
  // tiles of a pair. Its parts are cuts of the tile's spans of inputs, whose sums are added up in order at the end.
  struct Pieces {
    int members = 1;   // tiles of a unit
    int cuts = 1;      // parts of a tile
    int batches = 1;   // of rows, of each tile
    std::vector<int> first_unit;        // of each matrix, and the end
    std::vector<int64_t> first_span;    // where each matrix's sums lie in scratch_.spans, in floats
    int units() const { return first_unit.back(); }
    int parts() const { return units() * members * cuts; }
  };
  // Some tiles of rows that are multiplied together.
  struct RowSet {
    const int32_t* x[kRowsAtOnce];
    int sizes[kRowsAtOnce];
    int tiles = 0, first = 0, rows = 0;
  };
  struct Piece {
    int unit, matrix, tile, batch, cut;
  };
  using Sequence = Model::Scratch::Sequence;
  using ShownRow = Model::Scratch::ShownRow;
  using ScoredRow = Model::Scratch::ScoredRow;

  // forward.cpp
  void place_rows();
  void allocate();
  void embed();
  void rotary();
  void keep_states(int layer);
  void narrow_to(int layers);
  void share_bytes();
  int64_t largest_head() const;
  // logits.cpp
  void head(float* logits);
  void whole_head(int rows);
  void draft_heads(int first);
  void score(const HeadRows& rows, int first, int from, int count, int64_t column);
  void finish_logits(float* logits, int64_t n) const;
  // choices.cpp
  void choose_rows();
  void choose_row(const ScoredRow& row, const LogitSummary* summaries);
  int32_t token_of(const ScoredRow& row, int64_t place) const;
  // divided.cpp
  void gather(int matrix, int rows, const float* own, int64_t own_stride, float* all, int64_t stride,
              const int32_t* tokens = nullptr);
  void gather_embeddings();
  void leave();
  void norm_whole(int layer);
  void divided_head(int rows);
  Input attended(int layer);
  // blocks.cpp
  void attention_block(int layer);
  void project(int layer, Input in);
  bool heads_finish_early(int layer) const;
  void count_heads(int layer);
  void finish_heads(int layer, int which, int row, int64_t from, int64_t to);
  void finish_head(int layer, int which, int row, int head);
  void append_row(int layer, int row);
  void append_key(int layer, int row, int head, const float* key);
  void append_value(int layer, int row, int head, const float* value);
  struct CachePlace;
  CachePlace cache_place(int layer, int row, int head) const;
  void turn(const LayerParts& parts, int row, float* x, int64_t heads, int64_t size) const;
  void mlp_block(int layer);
  void gated_mlp(int layer, int mlp, Input in, float* y, int64_t y_stride, float* residual = nullptr);
  Input norm_into(const float* weight);
  void add_part(int layer, float* y, const float* post_norm);
  void add_mlp(int layer, float* y);
  // experts.cpp
  void expert_mlp(int layer, Input in);
  void route(int layer, Input in, std::vector<float>* weights, std::vector<double>* growths);
  int route_row(const LayerShape& layer, const float* logits, double effort, float* weights) const;
  double mixture_effort(int layer, const double* efforts) const;

  // multiply.h: y_j = W_j x for every row; then after(j, row, first, last) for ranges of finished outputs. With `paired`,
  // the outputs have equal shapes, the same range of all is done before one call after(0, row, first, last).
  template <class After>
  void multiply(Input in, const Outputs& outputs, bool paired, const After& after);
  template <class After>
  void multiply_pieces(Input in, const std::vector<Plan>& plans, const Pieces& pieces, bool paired, const After& after);
  template <class After>
  void multiply_draft(Input in, const Outputs& outputs, bool paired, const After& after);
  // plan.cpp
  std::vector<Plan> plan(Input in, const Outputs& outputs);
  void choose_tiers(Input in, std::vector<Plan>& plans);
  void choose_inputs(Input in, std::vector<Plan>& plans);
  void take_inputs(Input in, const Plan& plan, int j, int row, int thread);
  void list_inputs(Input in, Plan& plan, int j);
  void pack_inputs(Input in, Plan& plan, int j, int tile);
  const float* to_tiles(Input in, int64_t width, RowTiles tiles);
  const float* thread_tiles(Input in, int64_t width, RowTiles tiles, int thread);
  bool all_full(Input in, int matrix) const;
  // forward_quant.cpp
  void plan_quantised(Input in, const Outputs& outputs, std::vector<Plan>& plans);
  void choose_quantised(Input in, const Outputs& outputs);
  bool worth_choosing(Input in, const QuantMatrix& matrix, int64_t slot) const;
  void to_whole(Input in, const std::vector<Plan>& plans, const std::vector<int>& slots);
  uint64_t quantised_bytes(const Plan& plan) const;
  QuantCall quant_call(const Plan& plan, int tile) const;
  void quantised_tile(const std::vector<Plan>& plans, size_t k, bool joint, Input in, int tile, float* scratch);
  // quant_pieces.cpp
  bool cut_quantised(Input in, const std::vector<Plan>& plans, bool paired, Pieces* pieces);
  Piece piece_of(const std::vector<Plan>& plans, const Pieces& pieces, int part) const;
  void quantised_piece(Input in, const std::vector<Plan>& plans, const Pieces& pieces, int part, float* scratch);
  bool finish_piece(Input in, const std::vector<Plan>& plans, const Pieces& pieces, int part, float* scratch);
  RowSet rows_of_batch(Input in, const Plan& plan, const Pieces& pieces, int batch) const;
  QuantCall piece_call(Input in, const std::vector<Plan>& plans, const Pieces& pieces, int part) const;

  // attention.cpp
  struct AttentionTile;
  void attend(int layer);
  void cut_attention(int layer, Sequence& s, int threads) const;
  RowTiles query_tiles(int layer, const Sequence& s) const;
  void count_chunks(int layer);
  void end_chunk(int layer, size_t j, int part, int thread);
  void finish_attended(int layer);
  void attend_chunk(int layer, const Sequence& s, int part, int thread);
  void attend_tree(int layer, const Sequence& s, int kv_head, int64_t chunk, float* peaks, float* totals, float* sums, int thread);
  void gather_path(int layer, const Sequence& s, int kv_head, int64_t chunk, int token, int32_t* held, uint8_t* keys);
  void attend_tiles(int layer, const Sequence& s, int part, int thread);
  void join_chunks(int layer, const Sequence& s, int row, int thread);
  void start_row(int layer, int head, float* peak, float* total) const;
  AttentionTile attention_tile(int layer, const Sequence& s, int kv_head, int index) const;
  void attend_tile(int layer, const Sequence& s, const AttentionTile& tile, int64_t chunk, uint8_t* keys,
                   const uint8_t* next, const float* q, float* scratch, float* peak, float* total, float* sums);
  void gather_queries(int layer, const Sequence& s);
  void gather_q(int layer, const Sequence& s, const AttentionTile& tile, float* q) const;
  void finish_row(int layer, const Sequence& s, const float* sums, float total, int token, int head);
  struct Seen;
  Seen seen(int layer, const Sequence& s, int64_t position) const;
  void place_chunks(int layer, Sequence& s, int64_t first, int64_t last) const;
  int64_t tree_floats() const;
  const LayerShape& shape_of(int layer) const { return shape_.layer(layer); }
  const LayerParts& parts_of(int layer) const { return model_.parts_[static_cast<size_t>(layer)]; }

  static constexpr int64_t kWorthSharing = 50000;
  // Runs body(part, thread) for each part; on this thread alone when `work`, in multiply-adds, is too little to share.
  template <class Body>
  void each(int parts, int64_t work, const Body& body) {
    if (work < kWorthSharing)
      for (int part = 0; part < parts; ++part) body(part, 0);
    else
      model_.pool_->run(parts, body);
  }
  float* thread_scratch(int thread) { return scratch_.thread.data() + thread * thread_floats_; }
  Input rows_of(const float* x, int64_t stride) const { return {x, stride, rows_, scratch_.efforts.data()}; }

  Model& model_;
  const ModelShape& shape_;
  const KernelTable& kernels_;
  Model::Scratch& scratch_;
  std::vector<SequenceRows>& batch_;
  std::vector<Sequence>& sequences_;  // in the order of their rows
  DraftView* draft_;
  Choice choice_;
  bool full_ = true;  // no row has an effort below 1
  bool own_tiles_ = false;  // every thread puts the rows of a region into tiles for itself
  int all_rows_ = 0;
  int rows_ = 0;      // that run through the present layer
  size_t active_ = 0;  // sequences that do
  int64_t thread_floats_ = 0, own_tiles_floats_ = 0;
  int64_t own_column_ = 0, head_width_ = 0;  // of scratch_.head_sums: where a sequence's own rows begin, and all
  uint64_t shared_bytes_ = 0;  // read by these rows together, not yet shared out
};

}  // namespace specdec
