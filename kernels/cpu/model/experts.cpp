// The MLP of a mixture of experts.
#include <cmath>
#include <cstring>
#include <numeric>

#include "multiply.h"

namespace specdec {

// The weight of each expert in a row's sum, 0 for those that the row has not chosen; of equal logits the lower number is
// chosen.
void Pass::route_row(const LayerShape& layer, const float* logits, float* weights) const {
  const auto chosen = static_cast<size_t>(layer.experts_used);
  std::vector<int> order(static_cast<size_t>(layer.experts));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + layer.experts_used, order.end(),
                    [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  const double top = logits[order[0]];
  double sum = 0;
  const int summed = layer.softmax_over_all ? layer.experts : layer.experts_used;
  for (int k = 0; k < summed; ++k) {
    const int e = layer.softmax_over_all ? k : order[static_cast<size_t>(k)];
    sum += std::exp(logits[e] - top);
  }
  std::fill_n(weights, layer.experts, 0.0F);
  for (size_t k = 0; k < chosen; ++k) weights[order[k]] = static_cast<float>(std::exp(logits[order[k]] - top) / sum);
}

// For each row the weights of its experts.
void Pass::route(int layer, Input in, std::vector<float>* weights) {
  const LayerShape& shape = shape_of(layer);
  const float* bias = parts_of(layer).router_bias;
  const int experts = shape.experts;
  const PackedMatrix& router = model_.routers_[static_cast<size_t>(layer)];
  weights->resize(static_cast<size_t>(rows_ * experts));
  each(rows_, int64_t{rows_} * experts * shape_.hidden, [&](int row, int thread) {
    float* logits = scratch_.router_logits.data() + row * padded(experts);
    const DenseCall call =
        router.dense_call(in.x + row * in.stride, RowTiles(1, 1), logits, experts, thread_scratch(thread));
    kernels_.dense.multiply(call, 0, router.panel_count());
    for (int e = 0; bias != nullptr && e < experts; ++e) logits[e] += bias[e];
    route_row(shape, logits, weights->data() + row * experts);
  });
  shared_bytes_ += static_cast<uint64_t>(experts * shape_.hidden) * sizeof(uint16_t);
}

// Sums up in `mixed`: experts in rising order, each over the rows that chose it, then the shared one; so a row's sum has
// one order, whatever shares its pass.
void Pass::expert_mlp(int layer, Input in) {
  const LayerShape& shape = shape_of(layer);
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  std::vector<float> weights;
  route(layer, in, &weights);
  std::fill_n(scratch_.mixed.data(), rows_ * stride, 0.0F);
  std::vector<int> members;
  std::vector<const double*> efforts;
  for (int e = 0; e < shape.mlps(); ++e) {
    const bool shared = e == shape.experts;
    auto weight_of = [&](int row) { return shared ? 1.0F : weights[static_cast<size_t>(row * shape.experts + e)]; };
    members.clear();
    efforts.clear();
    for (int row = 0; row < rows_; ++row) {
      if (weight_of(row) <= 0) continue;
      members.push_back(row);
      efforts.push_back(scratch_.efforts[static_cast<size_t>(row)]);
    }
    if (members.empty()) continue;
    const auto count = static_cast<int>(members.size());
    for (int j = 0; j < count; ++j)
      std::memcpy(scratch_.expert_in.data() + j * stride, in.x + members[static_cast<size_t>(j)] * in.stride,
                  static_cast<size_t>(stride) * 4);
    gated_mlp(layer, e, {scratch_.expert_in.data(), stride, count, efforts.data()}, scratch_.expert_out.data(), stride);
    each(count, count * hidden, [&](int j, int) {
      const int row = members[static_cast<size_t>(j)];
      const float weight = weight_of(row);
      const float* from = scratch_.expert_out.data() + j * stride;
      float* to = scratch_.mixed.data() + row * stride;
      for (int64_t i = 0; i < hidden; ++i) to[i] += weight * from[i];
    });
  }
}

}  // namespace specdec
