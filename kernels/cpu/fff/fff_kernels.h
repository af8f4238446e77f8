// The functions that fast feedforward layers need from each instruction set.
//
// Rows of inputs and of weights are padded with zeros to a multiple of kTreeLane values. The order of additions follows
// from that length alone, so a row's result does not depend on the rows and weights that it is computed with.
#pragma once

#include <cstdint>

namespace specdec {

constexpr int kTreeLane = 16;
constexpr int kTreeSums = 4;  // groups of kTreeLane partial sums of a product

// out[r * out_stride + j] = x[r] * weights[j]: value i goes into partial sum i mod 64; they are added in a fixed order.
struct TreeDotsCall {
  const float* const* x;  // [rows]
  int64_t rows;
  const void* weights;    // [count][n], float32, or float16 where `half`
  bool half;
  int64_t count, n;
  float* out;
  int64_t out_stride;
};

// y[o] = sum over k, ascending, of scales[k] * rows[k][o]: fused multiply-adds, from 0.
struct TreeSumCall {
  const void* const* rows;  // [count]; each n values
  const float* scales;      // [count]
  int64_t count, n;
  bool half;
  float* y;
};

struct FffKernels {
  void (*dots)(const TreeDotsCall&);
  void (*sum)(const TreeSumCall&);
};

}  // namespace specdec
