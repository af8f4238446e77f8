// The MLP of a mixture of experts.
#include <cmath>
#include <cstring>
#include <numeric>

#include "multiply.h"

namespace specdec {

// The effort that decides how many experts a row keeps: the largest of the layer's experts' matrices.
double Pass::mixture_effort(int layer, const double* efforts) const {
  const LayerShape& shape = shape_of(layer);
  if (full_ || !shape.fewer_experts) return 1;
  const double* first = efforts + parts_of(layer).mlps[0].first_matrix;
  return *std::max_element(first, first + 3 * shape.experts);
}

// The weight of each expert in a row's sum, 0 for those that it has not chosen or does not keep; returns how many it keeps.
// Of equal logits the lower number comes first. It keeps the fewest of the chosen ones, largest weights first, whose squared
// weights sum to the effort's share of all chosen ones' (kernels/reference/experts.py).
int Pass::route_row(const LayerShape& layer, const float* logits, double effort, float* weights) const {
  const auto chosen = static_cast<size_t>(layer.experts_used);
  std::vector<int> order(static_cast<size_t>(layer.experts));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + layer.experts_used, order.end(),
                    [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  const double top = logits[order[0]];
  const auto power = [&](int expert) { return std::exp(logits[expert] - top); };
  double of_chosen = 0, sum = 0, squares = 0, kept_squares = 0;
  for (size_t k = 0; k < chosen; ++k) {
    of_chosen += power(order[k]);
    squares += power(order[k]) * power(order[k]);
  }
  for (int e = 0; layer.softmax_over_all && e < layer.experts; ++e) sum += power(e);
  if (!layer.softmax_over_all) sum = of_chosen;
  std::fill_n(weights, layer.experts, 0.0F);
  size_t kept = 0;
  const double left = 1 - effort, wanted = (1 - left * left * left * left * left) * squares;
  do {
    kept_squares += power(order[kept]) * power(order[kept]);
    weights[order[kept]] = static_cast<float>(power(order[kept]) / sum);
    ++kept;
  } while (kept < chosen && (effort >= 1 || kept_squares < wanted));
  return static_cast<int>(kept);
}

// For each row the weights of its experts, and by how much their efforts grow because there are fewer of them.
void Pass::route(int layer, Input in, std::vector<float>* weights, std::vector<double>* growths) {
  const LayerShape& shape = shape_of(layer);
  const float* bias = parts_of(layer).router_bias;
  const int experts = shape.experts;
  const PackedMatrix& router = model_.routers_[static_cast<size_t>(layer)];
  weights->resize(static_cast<size_t>(rows_ * experts));
  growths->resize(static_cast<size_t>(rows_));
  each(rows_, int64_t{rows_} * experts * shape_.hidden, [&](int row, int thread) {
    float* logits = scratch_.router_logits.data() + row * padded(experts);
    const DenseCall call =
        router.dense_call(in.x + row * in.stride, RowTiles(1, 1), logits, experts, thread_scratch(thread));
    kernels_.dense.multiply(call, 0, router.panel_count());
    for (int e = 0; bias != nullptr && e < experts; ++e) logits[e] += bias[e];
    const double effort = mixture_effort(layer, in.efforts[row]);
    const int kept = route_row(shape, logits, effort, weights->data() + row * experts);
    (*growths)[static_cast<size_t>(row)] = static_cast<double>(shape.experts_used) / kept;
  });
  shared_bytes_ += static_cast<uint64_t>(experts * shape_.hidden) * sizeof(uint16_t);
}

// Sums up in `mixed`: experts in rising order, each over the rows that chose it, then the shared one; so a row's sum has
// one order, whatever shares its pass.
void Pass::expert_mlp(int layer, Input in) {
  const LayerShape& shape = shape_of(layer);
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  std::vector<float> weights;
  std::vector<double> growths, scaled(static_cast<size_t>(3 * rows_));
  route(layer, in, &weights, &growths);
  std::fill_n(scratch_.mixed.data(), rows_ * stride, 0.0F);
  std::vector<int> members;
  std::vector<const double*> efforts;
  for (int e = 0; e < shape.mlps(); ++e) {
    const bool shared = e == shape.experts;
    auto weight_of = [&](int row) { return shared ? 1.0F : weights[static_cast<size_t>(row * shape.experts + e)]; };
    const int first = parts_of(layer).mlps[static_cast<size_t>(e)].first_matrix;
    members.clear();
    efforts.clear();
    for (int row = 0; row < rows_; ++row) {
      if (weight_of(row) <= 0) continue;
      double* own = scaled.data() + 3 * members.size();
      for (int m = 0; m < 3; ++m)
        own[m] = std::min(1.0, in.effort(row, first + m) * (shared ? 1 : growths[static_cast<size_t>(row)]));
      members.push_back(row);
      efforts.push_back(own);
    }
    if (members.empty()) continue;
    const auto count = static_cast<int>(members.size());
    for (int j = 0; j < count; ++j)
      std::memcpy(scratch_.expert_in.data() + j * stride, in.x + members[static_cast<size_t>(j)] * in.stride,
                  static_cast<size_t>(stride) * 4);
    gated_mlp(layer, e, {scratch_.expert_in.data(), stride, count, efforts.data(), first}, scratch_.expert_out.data(), stride);
    each(count, count * hidden, [&](int j, int) {
      const int row = members[static_cast<size_t>(j)];
      const float weight = weight_of(row);
      const float* from = scratch_.expert_out.data() + j * stride;
      float* to = scratch_.mixed.data() + row * stride;
      for (int64_t i = 0; i < shape_.hidden_outputs(); ++i) to[i] += weight * from[i];
    });
  }
}

}  // namespace specdec
