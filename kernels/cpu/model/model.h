// A model in memory: its weights packed for the kernels, and the forward pass over them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "buffer.h"
#include "cache.h"
#include "draft_head.h"
#include "draft_view.h"
#include "packed.h"
#include "parts.h"
#include "pool.h"
#include "rows.h"
#include "shape.h"

namespace specdec {

// Efforts from which on everything is read, because gaps would be few and short.
constexpr double kWideBelow = 0.9;
// Rows whose parts lie on several devices, to be put together on each of them: this device's part of what has as many
// outputs as `matrix`, or, if that is kEmbeddings, the embeddings of the tokens that it holds. kLeaving: the rows behind the
// last layer, where the next device has further ones.
constexpr int kEmbeddings = -1, kLeaving = -2;
struct GatherCall {
  int matrix;
  int rows;
  const float* own;
  int64_t own_width, own_stride;
  float* all;
  int64_t width, stride;
  const int32_t* tokens;  // of the rows, for embeddings
};

class Model {
 public:
  // Throws std::invalid_argument for a shape that makes no sense or an unknown instruction set.
  Model(const ModelShape& shape, const std::string& isa, int threads);

  const ModelShape& shape() const { return shape_; }
  const KernelTable& kernels() const { return kernels_; }
  Pool& pool() { return *pool_; }
  // From the next pass on; results stay, and so does how weights were cut for the threads that the model was made with.
  void set_threads(int threads);

  // Matrices are numbered as ModelConfig.matrices() lists them.
  const PackedMatrix& matrix(int index) const { return matrices_.at(static_cast<size_t>(index)); }
  const std::vector<std::string>& vector_names() const { return vector_names_; }
  size_t vector_size(const std::string& name) const { return vectors_.at(name).size(); }

  // Packs inputs [first, last) of a matrix, in ascending order; while it is coded, `first` is a multiple of kTableInputs,
  // and `last` too unless it is the last. Returns "" or what is wrong with the matrix ("holds ... NaN").
  std::string load_values(int index, const BucketSource& source, int64_t first, int64_t last);
  // The tier masks and scores of a matrix, needed for efforts below 1; all inputs at once.
  void load_masks(int index, const BucketSource& source);
  // Declares that only the first tiers of a matrix are loaded, 1 or more; before any matrix is.
  void set_tiers(int index, int loaded);
  // Declares that a matrix keeps its source's quantised blocks, or of their codes the four highest bits alone (`upper`);
  // before any matrix is loaded.
  void set_quantised(int index, const std::string& type, bool upper = false);
  // Packs outputs [first, last) of such a matrix, from row 0 of the source on; first is a multiple of kQuantBlock, last
  // too unless it is the matrix's last output. Returns "" or what is wrong with it.
  std::string load_quantised(int index, const QuantSource& source, int64_t first, int64_t last);
  // Mean |w| of every input, by which effort below 1 chooses whole inputs.
  void load_scores(int index, const float* scores);
  void load_vector(const std::string& name, const float* values);
  void load_embedding(const uint16_t* bits);
  // Rows [first, last) of an embedding in quantised blocks, which stay as they are.
  void load_embedding_blocks(const std::string& type, const QuantSource& source, int64_t first, int64_t last);
  void load_router(int layer, const uint16_t* bits);
  uint64_t bytes() const;
  uint64_t coded_bytes() const;  // of matrices in 12 bits a weight, part of bytes()
  uint64_t mask_bytes() const;

  // Outputs of a matrix on all devices together; values of an embedding for -1.
  int64_t whole_width(int index) const { return index < 0 ? shape_.hidden : whole_widths_.at(static_cast<size_t>(index)); }
  // How a divided model puts rows together; called between parallel regions, with equal calls on every device.
  void set_gather(std::function<void(const GatherCall&)> gather) { gather_ = std::move(gather); }

  // Weights of the logits layer for one token, of this device's, `hidden` many; and of an embedding in 16 bits.
  void logits_row(int64_t token, float* weights) const;
  void embedding_row(int64_t token, float* weights) const;

  std::unique_ptr<KvCache> new_cache(int64_t capacity) const;

  // Appends the rows of every sequence to its cache and writes the logits they ask for, (rows, vocab), one sequence below
  // the other; fills in `bytes`, whose sum is what the pass has read of weights and caches. `draft` is null for the exact
  // view. Rows of a tree take the places behind the cache's length in their order, and positions by their depth. Throws
  // std::invalid_argument for a bad token, effort, tree or cache, or weights that are not loaded, and std::bad_alloc; every
  // cache is as it was then.
  void forward(std::vector<SequenceRows>& batch, DraftView* draft, float* logits, Choice choice = Choice::tiers);

  // How a pass over one row goes on with the tokens that it chooses.
  struct GoingOn {
    int most;                  // further rows at most
    std::vector<int32_t> ends;  // not after these tokens
    float least_margin;        // nor after a choice with a smaller margin, or one that is not finite
  };
  // A pass over one row, then over rows of the tokens chosen; the cache grows by all of them. Returns their choices; `row` gets
  // the bytes of all. Otherwise as above.
  std::vector<RowChoice> go_on(SequenceRows& row, DraftView* draft, Choice choice, const GoingOn& going);

  // One matrix alone, x (rows, in) to y (rows, out), for benchmarks and tests: what forward does, without the biases.
  // The caller has checked that what `draft` and `effort` need is loaded.
  uint64_t multiply(int index, const float* x, int rows, DraftView* draft, double effort, float* y,
                    Choice choice = Choice::tiers);
  // The same with an effort for each row.
  uint64_t multiply(int index, const float* x, const std::vector<double>& efforts, DraftView* draft, float* y,
                    Choice choice = Choice::tiers);

 private:
  friend class Pass;  // one forward call: forward.h
  // Activations are (rows, stride) float arrays whose stride is the width rounded up to 64.
  struct Scratch {
    Buffer<float> x, normed, qkv[3], attended, attn_gate, gate, up, expert_in, expert_out, mixed;
    Buffer<float> own, all_attended, all_inner;  // of a divided model
    std::vector<int32_t> tokens;
    std::vector<Buffer<float>> cosines, sines;  // of each rotation
    Buffer<float> own_tiles;  // of each thread
    struct TilesMade {
      alignas(64) uint64_t number = 0;  // of the multiplication that a thread's tiles are for
    };
    std::vector<TilesMade> tiles_made;
    uint64_t multiplication = 0;  // number of the present one
    Buffer<float> tiles, partial, queries, thread, logits, router_logits;
    struct Sequence {  // of the pass under way
      SequenceRows* given;
      int first, rows, layers;
      int64_t start;        // position behind what the cache holds
      int64_t last;         // position of the deepest row
      bool tree, by_chunk;  // how attention spreads over threads
      // Attention of the present layer: chunks, and offsets of its parts, partial results, queries and joined rows.
      bool sinks;  // chunk 0 is read before the others
      int64_t first_chunk, chunks, partial, queries;
      int64_t chunk(int64_t index) const { return !sinks ? first_chunk + index : index == 0 ? 0 : first_chunk + index - 1; }
      int first_part, first_joined;
      int parts, pieces, tile_rows;  // all parts; of each chunk; query rows of a tile at most
    };
    std::vector<Sequence> sequences;
    std::vector<int32_t> sequence_of;         // of each row
    std::vector<int64_t> positions;           // of each row
    std::vector<const double*> efforts, head_efforts;  // of each row; of each row that has logits
    std::vector<float> draft_efforts;
    Buffer<uint8_t> chosen_row, any;
    Buffer<int32_t> offsets, active;
    Buffer<uint32_t> keys;
    Buffer<int32_t> whole;  // activations in whole numbers
    // Of quantised matrices: inputs that each row takes, by matrix, row and group; and what rows take together, by matrix
    // and group.
    Buffer<float> input_scores;
    Buffer<uint32_t> input_masks;
    Buffer<QuantChoice> choices;
    Buffer<float> spans;                       // sums of spans that several parts have made
    std::unique_ptr<std::atomic<int>[]> left;  // parts of each unit that are not done
    size_t left_room = 0;
    std::unique_ptr<std::atomic<int>[]> head_outputs;  // of each row's heads that are not done
    size_t head_room = 0;
    std::unique_ptr<std::atomic<int>[]> chunks_left;  // parts of each sequence and key-value head that are not done
    size_t chunk_room = 0;
    struct ShownRow {  // one whose logits are asked for
      int row;
      const double* efforts;
      DraftHead* head;
      float* logits;  // null: of a draft head, where only the choice is asked for
      RowChoice* choice;
      int likely;
      int32_t* likeliest;
    };
    std::vector<ShownRow> shown;
    HeadInput head_input;
    Buffer<float> head_sums;
    Buffer<float> choice_logits;  // of rows that score all tokens and show only their choice
    struct ScoredRow {  // one whose choice or likeliest tokens are asked for, and its logits
      const ShownRow* shown;
      const float* values;
      int64_t count;
    };
    std::vector<ScoredRow> scored;
    std::vector<LogitSummary> summaries;  // of each row's stretches
    std::unique_ptr<std::atomic<int>[]> stretches_left;  // parts of each row that are not done
    size_t stretch_room = 0;
  };

  void check_pass(const std::vector<SequenceRows>& batch, const DraftView* draft, Choice choice) const;
  void check_rows(const SequenceRows& rows) const;
  void check_efforts(const double* efforts, const DraftView* draft, Choice choice) const;
  void widen(const std::vector<SequenceRows>& batch);
  void widen(PackedMatrix& matrix);
  bool load_coded(int index, const BucketSource& source, int64_t first, int64_t last, std::string& problem);
  void make_plain(PackedMatrix& matrix);
  bool code_embedding(const uint16_t* bits);
  bool has_embedding() const;
  void add_layer(int layer, int* matrix);
  void add_vectors(const std::string& base, const LayerShape& layer);
  void add_vector(const std::string& name, int64_t size);
  LayerParts parts_of(const std::string& base, const LayerShape& layer, int first_matrix);
  int head_matrix() const { return static_cast<int>(matrices_.size()) - 1; }
  int64_t quantised_scratch_floats(int rows) const;
  template <class T>
  Buffer<T> part_of(Buffer<T>& all, int index, size_t (PackedMatrix::*size)() const);
  const float* find_vector(const std::string& name) const;

  ModelShape shape_;
  const KernelTable& kernels_;
  std::shared_ptr<Pool> pool_;
  Buffer<uint16_t> panels_;  // of all matrices
  Buffer<uint8_t> coded_;
  Buffer<uint8_t> quantised_;
  Buffer<uint32_t> masks_;
  std::vector<PackedMatrix> matrices_;
  std::vector<int64_t> whole_widths_;  // of each matrix
  std::vector<PackedMatrix> routers_;  // of each layer; without outputs where there are no experts
  Buffer<uint16_t> embedding_;  // (vocab, hidden) bits, unless tied
  CodedMatrix coded_embedding_;  // or so
  struct QuantEmbedding {       // or so
    QuantType type{"q8_0"};
    Buffer<uint8_t> codes;
    Buffer<uint16_t> scales, biases;
    QuantSource source() const { return {codes.data(), scales.data(), biases.data()}; }
  } quant_embedding_;
  std::vector<std::string> vector_names_;
  std::map<std::string, Buffer<float>> vectors_;
  std::vector<LayerParts> parts_;      // of each layer
  std::vector<RopeShape> rotations_;   // the different ones
  std::shared_ptr<const CacheShape> cache_shape_;
  const float* final_norm_ = nullptr;
  std::function<void(const GatherCall&)> gather_;
  const int process_;  // threads do not survive a fork
  std::mutex mutex_;   // one pass at a time
  Scratch scratch_;
};

}  // namespace specdec
