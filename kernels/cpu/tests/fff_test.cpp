// Fast feedforward layers: products and sums against float64, rows alone and together, whole layers.
#include <cmath>

#include "check.h"
#include "fff.h"

namespace specdec::test {

namespace {

std::vector<uint16_t> halves(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = float_to_half(values[i]);
  return bits;
}

struct Layer {
  TreeShape shape;
  std::vector<float> node, node_bias, hidden, hidden_bias, output, output_bias, node_output;
  TreeSource source() const {
    return {node.data(), hidden.data(), output.data(), node_output.data(), node_bias.data(), hidden_bias.data(),
            output_bias.data()};
  }
};

Layer random_layer(int64_t inputs, int64_t outputs, int depth, int64_t width, int64_t trees) {
  Layer layer;
  layer.shape.inputs = inputs, layer.shape.outputs = outputs, layer.shape.trees = trees;
  layer.shape.width = width, layer.shape.depth = depth;
  uint32_t seed = 7;
  const auto some = [&seed](int64_t count) { return random_floats(static_cast<size_t>(count), ++seed); };
  const int64_t nodes = trees * layer.shape.nodes(), leaves = trees * layer.shape.leaves();
  layer.node = some(nodes * inputs), layer.node_bias = some(nodes);
  layer.hidden = some(leaves * width * inputs), layer.hidden_bias = some(leaves * width);
  layer.output = some(leaves * width * outputs), layer.output_bias = some(leaves * outputs);
  layer.node_output = some(nodes * outputs);
  return layer;
}

double product(const float* x, const float* w, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * w[i];
  return sum;
}

// The output of a row that reaches these leaves.
std::vector<double> wanted_of(const Layer& layer, const float* x, const int32_t* leaves) {
  const TreeShape& s = layer.shape;
  std::vector<double> y(static_cast<size_t>(s.outputs));
  const auto add = [&](double scale, const float* row) {
    for (size_t o = 0; o < y.size(); ++o) y[o] += scale * row[o];
  };
  for (int64_t t = 0; t < s.trees; ++t) {
    const int64_t leaf = leaves[t], one = (t * s.leaves() + leaf) * s.width;
    for (int level = 0; level < s.depth; ++level) {
      const int64_t node = t * s.nodes() + ((leaf + s.leaves()) >> (s.depth - level)) - 1;
      const double score = product(x, layer.node.data() + node * s.inputs, s.inputs) + layer.node_bias[static_cast<size_t>(node)];
      add(std::fmax(score, 0.0), layer.node_output.data() + node * s.outputs);
    }
    for (int64_t k = one; k < one + s.width; ++k) {
      const double value = product(x, layer.hidden.data() + k * s.inputs, s.inputs) + layer.hidden_bias[static_cast<size_t>(k)];
      add(std::fmax(value, 0.0), layer.output.data() + k * s.outputs);
    }
    add(1, layer.output_bias.data() + (t * s.leaves() + leaf) * s.outputs);
  }
  return y;
}

}  // namespace

TEST(tree_products_and_sums_match_float64) {
  for (const auto* table : tables())
    for (const int64_t n : cases<int64_t>({16, 32, 48, 64, 80, 128, 576, 1040}, {16, 48, 80}))
      for (const bool half : {false, true}) {
        constexpr int64_t kRows = 9, kCount = 7;
        const auto x = random_floats(static_cast<size_t>(kRows * n), 1);
        auto weights = random_floats(static_cast<size_t>(kCount * n), 2);
        const auto bits = halves(weights);
        if (half)
          for (size_t i = 0; i < bits.size(); ++i) weights[i] = half_to_float(bits[i]);
        const void* held = half ? static_cast<const void*>(bits.data()) : weights.data();
        std::vector<const float*> rows;
        for (int64_t r = 0; r < kRows; ++r) rows.push_back(x.data() + r * n);
        std::vector<float> out(kRows * kCount), alone(kCount);
        table->fff.dots({rows.data(), kRows, held, half, kCount, n, out.data(), kCount});
        for (size_t r = 0; r < kRows; ++r) {
          table->fff.dots({rows.data() + r, 1, held, half, kCount, n, alone.data(), kCount});
          CHECK(std::memcmp(alone.data(), out.data() + r * kCount, kCount * sizeof(float)) == 0,
                std::string(table->name) + ": a row depends on the others");
          for (size_t j = 0; j < kCount; ++j) {
            const double wanted = product(rows[r], weights.data() + static_cast<int64_t>(j) * n, n);
            CHECK(std::fabs(out[r * kCount + j] - wanted) <= static_cast<double>(n) * 0x1p-22,
                  std::string(table->name) + " product of " + std::to_string(n));
          }
        }
        std::vector<const void*> terms;
        for (int64_t j = 0; j < kCount; ++j)
          terms.push_back(half ? static_cast<const void*>(bits.data() + j * n) : weights.data() + j * n);
        std::vector<float> y(static_cast<size_t>(n), NAN);
        table->fff.sum({terms.data(), x.data(), kCount, n, half, y.data()});
        for (size_t o = 0; o < y.size(); ++o) {
          double wanted = 0;
          for (size_t k = 0; k < kCount; ++k) wanted += static_cast<double>(x[k]) * weights[k * y.size() + o];
          CHECK(std::fabs(y[o] - wanted) <= 1e-5, std::string(table->name) + " sum of " + std::to_string(n));
        }
      }
}

THREADED_TEST(whole_trees_match_float64_and_rows_do_not_depend_on_each_other) {
  struct Case {
    int64_t inputs, outputs;
    int depth;
    int64_t width, trees;
  };
  for (const auto* table : tables())
    for (const Case& one : cases<Case>({{1, 1, 0, 1, 1}, {7, 33, 3, 5, 2}, {100, 17, 5, 1, 3}, {64, 64, 2, 12, 1}},
                                       {{7, 33, 2, 5, 2}})) {
      const Layer layer = random_layer(one.inputs, one.outputs, one.depth, one.width, one.trees);
      const Trees trees(table->fff, layer.shape, layer.source());
      const int64_t rows = kFewCases ? 40 : 700;
      const auto x = random_floats(static_cast<size_t>(rows * one.inputs), 3);
      std::vector<float> y(static_cast<size_t>(rows * one.outputs)), other(y.size());
      std::vector<int32_t> leaves(static_cast<size_t>(rows * one.trees));
      const auto pool = Pool::shared(3);
      trees.forward(*pool, x.data(), rows, y.data(), leaves.data());
      for (int64_t r = 0; r < rows; ++r) {
        trees.forward(*pool, x.data() + r * one.inputs, 1, other.data(), nullptr);
        CHECK(std::memcmp(other.data(), y.data() + r * one.outputs, static_cast<size_t>(one.outputs) * sizeof(float)) == 0,
              std::string(table->name) + ": a row depends on the others");
        const auto wanted = wanted_of(layer, x.data() + r * one.inputs, leaves.data() + r * one.trees);
        for (size_t o = 0; o < wanted.size(); ++o)
          CHECK(std::fabs(y[static_cast<size_t>(r * one.outputs) + o] - wanted[o]) <= 1e-4 * (1 + std::fabs(wanted[o])),
                std::string(table->name) + " layer");
      }
    }
}

}  // namespace specdec::test
