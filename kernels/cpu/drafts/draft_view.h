// A draft view of a whole model: its own packed matrices and how to multiply rows by them.
//
// Concrete views live in draft_*.cpp (compiled once, for any machine) over the functions of DraftKernels (compiled for
// each instruction set). They are made from the store's arrays or from Model::matrix(i), the packed exact weights, and
// bound in bindings_draft.cpp as subclasses of DraftView; Model::forward takes one, or none for the exact view.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernel_table.h"
#include "pool.h"

namespace specdec {

// Activation rows for the `count` matrices (1 to 3) that share them: q|k|v, o, gate|up, down, or the head.
struct DraftRows {
  int rows;            // 1 to kDraftRows
  const float* x;      // row r at x + r * stride, 64-byte aligned, readable (as zeros) up to `in` rounded up to 64
  int64_t stride;
  const float* efforts;  // [row][count], in (0, 1]
  // Row r of matrix m at y[m] + r * y_stride[m], 64-byte aligned, room for its outputs rounded up to 64 floats; biases
  // are added later.
  float* const* y;
  const int64_t* y_stride;

  const float* row(int r) const { return x + r * stride; }
  float* result(int m, int r) const { return y[m] + r * y_stride[m]; }
  // Lists the rows whose efforts for all `count` matrices are equal, or the others; returns whether there are any.
  bool take(int count, bool equal, std::vector<int>* list) const {
    list->clear();
    for (int r = 0; r < rows; ++r) {
      const float* own = efforts + r * count;
      if (std::all_of(own, own + count, [own](float effort) { return effort == *own; }) == equal) list->push_back(r);
    }
    return !list->empty();
  }
};

// What follows a multiplication, for ranges of finished outputs: called once for each output of each row, by any thread of
// the pool. `paired`: the matrices have equal shapes, and call(0, row, first, last) is made when the range is finished in
// all of them.
struct DraftAfter {
  void* self;
  void (*function)(void* self, int m, int row, int64_t first, int64_t last);
  bool paired;

  void operator()(int m, int row, int64_t first, int64_t last) const { function(self, m, row, first, last); }
};

// A draft view owns whatever scratch it needs; a model calls it from one thread at a time, outside any parallel region.
class DraftView {
 public:
  virtual ~DraftView() = default;

  // y_m = W_m x for every row, each by its own choice of inputs.
  //
  // matrices: numbers of the `count` matrices, in the order of ModelConfig.matrices().
  // after: unless null, called for every result.
  // Returns the bytes of weights read, which the rows share. Deterministic; a row's result depends neither on the number
  // of threads nor on the other rows.
  virtual uint64_t multiply(Pool& pool, int count, const int* matrices, const DraftRows& in,
                            const DraftAfter* after = nullptr) = 0;

  virtual uint64_t bytes() const = 0;  // memory held

  // True once every matrix of the model has been loaded.
  virtual bool complete() const = 0;

 protected:
  // What follows a multiplication, once all results are there; outs: outputs of each matrix.
  static void finish(Pool& pool, int count, const int64_t* outs, const DraftRows& in, const DraftAfter* after) {
    if (after == nullptr) return;
    pool.run(in.rows, [&](int row, int) {
      for (int m = 0; m < (after->paired ? 1 : count); ++m) (*after)(m, row, int64_t{0}, outs[m]);
    });
  }
};

}  // namespace specdec
