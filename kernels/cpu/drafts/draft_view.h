// A draft view of a whole model: its own packed matrices and how to multiply one row by them.
//
// Concrete views live in draft_*.cpp (compiled once, for any machine) over the functions of DraftKernels (compiled for
// each instruction set). They are made from the store's arrays or from Model::matrix(i), the packed exact weights, and
// bound in bindings_draft.cpp as subclasses of DraftView; Model::forward takes one, or none for the exact view.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "pool.h"

namespace specdec {

// A draft view owns whatever scratch it needs; a model calls it from one thread at a time, outside any parallel region.
class DraftView {
 public:
  virtual ~DraftView() = default;

  // y_j = W_j x for the `count` matrices (1 to 3) that share one activation row: q|k|v, o, gate|up, down, or the head.
  //
  // matrices: numbers of the matrices, in the order of ModelConfig.matrices().
  // x: `in` floats, 64-byte aligned, readable (as zeros) up to `in` rounded up to 64.
  // efforts: one for each of the `count` matrices, in (0, 1].
  // y: one buffer per matrix, 64-byte aligned, room for its outputs rounded up to 64 floats; biases are added later.
  // Returns the bytes of weights read. Deterministic; independent of the number of threads.
  virtual uint64_t multiply(Pool& pool, int count, const int* matrices, const float* x, const float* efforts,
                            float* const* y) = 0;

  virtual uint64_t bytes() const = 0;  // memory held

  // True once every matrix of the model has been loaded.
  virtual bool complete() const = 0;
};

}  // namespace specdec
