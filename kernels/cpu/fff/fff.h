// Fast feedforward layers with hard choices: each row takes one leaf of every tree. Source: arXiv 2308.14711, 2311.10770.
#pragma once

#include <cstdint>
#include <vector>

#include "fff_kernels.h"
#include "pool.h"

namespace specdec {

enum class TreeActivation : int { relu = 0, gelu = 1, silu = 2, none = 3 };

struct TreeShape {
  int64_t inputs = 0, outputs = 0, trees = 0, width = 0;  // width: neurons of a leaf
  int depth = 0;
  bool half = false;  // weights are float16
  TreeActivation activation = TreeActivation::relu;
  int64_t leaves() const { return int64_t{1} << depth; }
  int64_t nodes() const { return leaves() - 1; }
};

// Arrays as specdec/fff/weights.py describes them; borrowed while a Trees is built. Biases are float32.
struct TreeSource {
  const void *node_weight, *hidden_weight, *output_weight;
  const void* node_output;  // or null: nodes only choose
  const float *node_bias, *hidden_bias;
  const float* output_bias;  // or null
};

class Trees {
 public:
  Trees(const FffKernels& kernels, const TreeShape& shape, const TreeSource& source);

  const TreeShape& shape() const { return shape_; }

  // y [rows][outputs] of x [rows][inputs]; leaves [rows][trees] unless null. A row's result depends on that row alone.
  void forward(Pool& pool, const float* x, int64_t rows, float* y, int32_t* leaves) const;

 private:
  struct Scratch;

  void block(const float* x, int64_t rows, float* y, int32_t* leaves, Scratch& scratch) const;
  void descend(int64_t tree, int64_t rows, Scratch& scratch) const;
  void combine(int64_t row, float* y, Scratch& scratch) const;
  float activate(float value) const;
  int64_t used() const { return shape_.width + (has_path_ ? shape_.depth : 0); }
  const void* row_of(const std::vector<uint8_t>& rows, int64_t number, int64_t length) const {
    return rows.data() + number * length * (shape_.half ? 2 : 4);
  }

  const FffKernels& kernels_;
  const TreeShape shape_;
  const int64_t in_, out_;  // padded
  const bool has_path_, biased_;
  std::vector<uint8_t> node_weight_, hidden_weight_, output_weight_, node_output_;  // rows of in_ or out_ values
  std::vector<float> node_bias_, hidden_bias_, output_bias_;
};

}  // namespace specdec
