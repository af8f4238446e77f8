// The nested view: the four highest bits of a quantised model's own codes (specdec/weights/nested.py), whole inputs chosen.
#pragma once

#include <cstdint>
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
    int64_t first;  // output
  };
  uint64_t multiply_whole(Pool& pool, const PackedMatrix& matrix, int m, const DraftRows& in);
  uint64_t choose(Pool& pool, int count, const int* matrices, const DraftRows& in);
  void plan(int threads, int count, const int* matrices, const DraftRows& in);

  const Model& model_;
  Buffer<float> scratch_, sums_;
  Buffer<uint32_t> masks_;  // [row][matrix][group]
  std::vector<Part> parts_;
  std::vector<NestedCall> calls_;  // [part][row]
};

}  // namespace specdec
