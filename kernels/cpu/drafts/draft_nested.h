// The nested view: the four highest bits of a quantised model's own codes (specdec/weights/nested.py), whole inputs chosen.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "draft_view.h"
#include "model.h"

namespace specdec {

// Borrows the model's matrices: it must live as long. Matrices that are not quantised are multiplied whole.
class NestedView : public DraftView {
 public:
  explicit NestedView(const Model& model) : model_(model) {}

  uint64_t multiply(Pool& pool, int count, const int* matrices, const DraftRows& in,
                    const DraftAfter* after = nullptr) override;
  uint64_t bytes() const override { return 0; }
  bool complete() const override;

 private:
  struct Part {  // of one multiplication
    int matrix;     // which of the `count`
    int tile, chunk;
    int unit;       // outputs finished together: a tile, or equal tiles of a pair
    int64_t first;  // output
  };
  // One multiplication of matrices that are all quantised, or of the quantised ones among them.
  struct Job {
    int count;
    const int* matrices;
    const DraftRows& in;
    const DraftAfter* after;
    int64_t chunks, groups, padded, widest;  // outputs of the widest matrix, and of the widest tile
    bool paired;                     // units are pairs of tiles
  };
  uint64_t multiply_whole(Pool& pool, const PackedMatrix& matrix, int m, const DraftRows& in);
  uint64_t choose(Pool& pool, int count, const int* matrices, const DraftRows& in);
  Job job(int count, const int* matrices, const DraftRows& in, const DraftAfter* after) const;
  void split_masks(const Job& job);
  void plan(int threads, const Job& job);
  void add_part(const Job& job, int m, int tile, int unit);
  void run_part(const Job& job, int p, int thread);
  void finish_unit(const Job& job, const Part& part);
  float* chunk_sums(const Job& job, int row, int m, int64_t chunk) {
    return sums_.data() + ((row * job.count + m) * job.chunks + chunk) * job.padded;
  }

  const Model& model_;
  Buffer<float> scratch_, sums_;
  Buffer<uint32_t> masks_;        // [row][matrix][group]
  Buffer<uint32_t> chunk_masks_;  // [row][matrix][chunk][group], zeros in other chunks
  std::vector<Part> parts_;
  std::vector<NestedCall> calls_;  // [part][row]
  std::unique_ptr<std::atomic<int>[]> left_;  // parts of each unit that are not done
  size_t left_room_ = 0;
  int units_ = 0;
};

}  // namespace specdec
