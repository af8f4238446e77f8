#include "fff.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace specdec {
namespace {

constexpr int64_t kBlockRows = 256;           // rows that go down a tree together
constexpr int64_t kAloneProducts = 200'000;  // fewer are not worth waking another thread
constexpr int64_t kLineBytes = 64;

int64_t padded(int64_t n) { return (n + kTreeLane - 1) / kTreeLane * kTreeLane; }

// Rows of `length` items, each padded with zeros to `wide`.
std::vector<uint8_t> wide_rows(const void* from, int64_t rows, int64_t length, int64_t wide, int64_t item) {
  std::vector<uint8_t> made(static_cast<size_t>(rows * wide * item));
  const auto* bytes = static_cast<const uint8_t*>(from);
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(made.data() + r * wide * item, bytes + r * length * item, static_cast<size_t>(length * item));
  return made;
}

void prefetch_row(const void* row, int64_t bytes) {
  const auto* from = static_cast<const char*>(row);
  for (int64_t b = 0; b < bytes; b += kLineBytes) __builtin_prefetch(from + b, 0, 2);
}

}  // namespace

// Memory of one thread. Rows that reach the same node lie side by side in `order`.
struct Trees::Scratch {
  struct Group {
    int64_t node, first, last;
  };
  std::vector<float> wide, scores, active, sums, scales;
  std::vector<const float*> rows, gathered;
  std::vector<const void*> terms;
  std::vector<int32_t> order, other, leaf;
  std::vector<Group> groups, next;
};

Trees::Trees(const FffKernels& kernels, const TreeShape& shape, const TreeSource& source)
    : kernels_(kernels),
      shape_(shape),
      in_(padded(shape.inputs)),
      out_(padded(shape.outputs)),
      has_path_(source.node_output != nullptr),
      biased_(source.output_bias != nullptr) {
  const int64_t item = shape.half ? 2 : 4, nodes = shape.trees * shape.nodes(), leaves = shape.trees * shape.leaves();
  node_weight_ = wide_rows(source.node_weight, nodes, shape.inputs, in_, item);
  hidden_weight_ = wide_rows(source.hidden_weight, leaves * shape.width, shape.inputs, in_, item);
  output_weight_ = wide_rows(source.output_weight, leaves * shape.width, shape.outputs, out_, item);
  if (has_path_) node_output_ = wide_rows(source.node_output, nodes, shape.outputs, out_, item);
  node_bias_.assign(source.node_bias, source.node_bias + nodes);
  hidden_bias_.assign(source.hidden_bias, source.hidden_bias + leaves * shape.width);
  if (biased_) output_bias_.assign(source.output_bias, source.output_bias + leaves * shape.outputs);
}

void Trees::forward(Pool& pool, const float* x, int64_t rows, float* y, int32_t* leaves) const {
  const int64_t products = shape_.trees * (shape_.depth + shape_.width) * (shape_.inputs + shape_.outputs);
  const bool alone = pool.threads() == 1 || rows == 1 || rows * products < kAloneProducts;
  const int64_t most = alone ? kBlockRows : std::min(kBlockRows, (rows + pool.threads() - 1) / pool.threads());
  const int64_t parts = (rows + most - 1) / most;
  const auto run = [&](int64_t part, Scratch& own) {
    const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
    block(x + first * shape_.inputs, last - first, y + first * shape_.outputs,
          leaves == nullptr ? nullptr : leaves + first * shape_.trees, own);
  };
  if (alone) {
    static thread_local Scratch own;  // one row takes a few microseconds: allocating would be a part of them
    for (int64_t part = 0; part < parts; ++part) run(part, own);
    return;
  }
  std::vector<Scratch> scratch(static_cast<size_t>(pool.threads()));
  for (int64_t start = 0; start < parts; start += Pool::kMaxParts)
    pool.run(static_cast<int>(std::min<int64_t>(parts - start, Pool::kMaxParts)),
             [&](int part, int thread) { run(start + part, scratch[static_cast<size_t>(thread)]); });
}

void Trees::block(const float* x, int64_t rows, float* y, int32_t* leaves, Scratch& scratch) const {
  const auto count = static_cast<size_t>(rows);
  scratch.rows.resize(count);
  scratch.gathered.resize(count);
  scratch.order.resize(count);
  scratch.other.resize(count);
  scratch.leaf.resize(count * static_cast<size_t>(shape_.trees));
  scratch.scores.resize(count * static_cast<size_t>(std::max<int64_t>(shape_.width, 1)));
  scratch.active.resize(count * static_cast<size_t>(shape_.trees * used()));
  if (in_ != shape_.inputs) {
    scratch.wide.assign(count * static_cast<size_t>(in_), 0.0F);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(x + r * shape_.inputs, shape_.inputs, scratch.wide.begin() + r * in_);
  }
  for (int64_t r = 0; r < rows; ++r)
    scratch.rows[static_cast<size_t>(r)] = in_ != shape_.inputs ? scratch.wide.data() + r * in_ : x + r * shape_.inputs;
  for (int64_t tree = 0; tree < shape_.trees; ++tree) descend(tree, rows, scratch);
  for (int64_t j = 0; j < rows; ++j) {  // in the order of the last tree's leaves, so that neighbours share weights
    const int64_t r = scratch.order[static_cast<size_t>(j)];
    combine(r, y + r * shape_.outputs, scratch);
  }
  if (leaves != nullptr) std::copy(scratch.leaf.begin(), scratch.leaf.end(), leaves);
}

// The leaf that each row reaches, and the activations of the neurons that it uses.
void Trees::descend(int64_t tree, int64_t rows, Scratch& scratch) const {
  const int64_t nodes = shape_.nodes(), width = shape_.width, all = shape_.trees * used();
  const int64_t bytes = in_ * (shape_.half ? 2 : 4);
  for (int64_t r = 0; r < rows; ++r) scratch.order[static_cast<size_t>(r)] = static_cast<int32_t>(r);
  scratch.groups.assign(1, {0, 0, rows});
  const auto gather = [&](const Scratch::Group& group) {
    for (int64_t j = group.first; j < group.last; ++j)
      scratch.gathered[static_cast<size_t>(j)] = scratch.rows[static_cast<size_t>(scratch.order[static_cast<size_t>(j)])];
    return scratch.gathered.data() + group.first;
  };
  float* scores = scratch.scores.data();
  for (int level = 0; level < shape_.depth; ++level) {
    scratch.next.clear();
    for (const Scratch::Group& group : scratch.groups) {
      const int64_t node = tree * nodes + group.node, left = 2 * group.node + 1;
      if (rows == 1) {  // what comes next is one of two rows: memory is slower than arithmetic
        if (left < nodes) {
          prefetch_row(row_of(node_weight_, tree * nodes + left, in_), 2 * bytes);
        } else {
          prefetch_row(row_of(hidden_weight_, (tree * shape_.leaves() + left - nodes) * width, in_), 2 * bytes);
        }
        if (has_path_) prefetch_row(row_of(node_output_, node, out_), out_ * bytes / in_);
      }
      kernels_.dots({gather(group), group.last - group.first, row_of(node_weight_, node, in_), shape_.half, 1, in_, scores, 1});
      int64_t kept = group.first, moved = 0;
      for (int64_t j = group.first; j < group.last; ++j) {
        const int32_t row = scratch.order[static_cast<size_t>(j)];
        const float score = scores[j - group.first] + node_bias_[static_cast<size_t>(node)];
        if (has_path_) scratch.active[static_cast<size_t>(row * all + tree * used() + level)] = activate(score);
        if (score >= 0) {
          scratch.other[static_cast<size_t>(moved++)] = row;
        } else {
          scratch.order[static_cast<size_t>(kept++)] = row;
        }
      }
      std::copy_n(scratch.other.begin(), moved, scratch.order.begin() + kept);
      if (kept > group.first) scratch.next.push_back({left, group.first, kept});
      if (moved > 0) scratch.next.push_back({left + 1, kept, group.last});
    }
    scratch.groups.swap(scratch.next);
  }
  for (const Scratch::Group& group : scratch.groups) {
    const int64_t leaf = group.node - nodes, neuron = (tree * shape_.leaves() + leaf) * width;
    if (rows == 1) prefetch_row(row_of(output_weight_, neuron, out_), out_ * bytes / in_);
    kernels_.dots({gather(group), group.last - group.first, row_of(hidden_weight_, neuron, in_), shape_.half, width, in_,
                   scores, width});
    for (int64_t j = group.first; j < group.last; ++j) {
      const int64_t row = scratch.order[static_cast<size_t>(j)];
      float* to = scratch.active.data() + row * all + (tree + 1) * used() - width;
      for (int64_t k = 0; k < width; ++k)
        to[k] = activate(scores[(j - group.first) * width + k] + hidden_bias_[static_cast<size_t>(neuron + k)]);
      scratch.leaf[static_cast<size_t>(row * shape_.trees + tree)] = static_cast<int32_t>(leaf);
    }
  }
}

// By rising tree; in a tree nodes from the root down, then the leaf's neurons; biases last.
void Trees::combine(int64_t row, float* y, Scratch& scratch) const {
  scratch.terms.clear();
  for (int64_t tree = 0; tree < shape_.trees; ++tree) {
    const int64_t leaf = scratch.leaf[static_cast<size_t>(row * shape_.trees + tree)];
    for (int level = 0; has_path_ && level < shape_.depth; ++level) {
      const int64_t node = ((leaf + shape_.leaves()) >> (shape_.depth - level)) - 1;
      scratch.terms.push_back(row_of(node_output_, tree * shape_.nodes() + node, out_));
    }
    for (int64_t k = 0; k < shape_.width; ++k)
      scratch.terms.push_back(row_of(output_weight_, (tree * shape_.leaves() + leaf) * shape_.width + k, out_));
  }
  scratch.sums.resize(static_cast<size_t>(out_));
  kernels_.sum({scratch.terms.data(), scratch.active.data() + row * shape_.trees * used(),
                static_cast<int64_t>(scratch.terms.size()), out_, shape_.half, scratch.sums.data()});
  std::copy_n(scratch.sums.begin(), shape_.outputs, y);
  for (int64_t tree = 0; biased_ && tree < shape_.trees; ++tree) {
    const int64_t leaf = scratch.leaf[static_cast<size_t>(row * shape_.trees + tree)];
    const float* bias = output_bias_.data() + (tree * shape_.leaves() + leaf) * shape_.outputs;
    for (int64_t o = 0; o < shape_.outputs; ++o) y[o] += bias[o];
  }
}

float Trees::activate(float value) const {
  switch (shape_.activation) {
    case TreeActivation::relu: return value > 0 ? value : 0.0F;
    case TreeActivation::gelu: return 0.5F * value * (1.0F + std::erf(value * 0.70710678118654752F));
    case TreeActivation::silu: return value / (1.0F + std::exp(-value));
    default: return value;
  }
}

}  // namespace specdec
