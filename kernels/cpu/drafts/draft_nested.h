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

  uint64_t multiply(Pool& pool, int count, const int* matrices, const float* x, const float* efforts,
                    float* const* y) override;
  uint64_t bytes() const override { return 0; }
  bool complete() const override;

 private:
  struct Part {  // of one multiplication
    NestedCall call;
    int matrix;      // which of the `count`
    int64_t first;   // output
  };
  uint64_t choose(Pool& pool, int count, const int* matrices, const float* x, const float* efforts);
  void plan(int threads, int count, const int* matrices, const float* x);

  const Model& model_;
  Buffer<float> scratch_, sums_;
  Buffer<uint32_t> masks_;
  std::vector<Part> parts_;
};

}  // namespace specdec
