// The MLP of a mixture of experts.
#include <cmath>
#include <cstring>

#include "multiply.h"

namespace specdec {

// For each row and expert the weight of its result, 0 for experts that the row has not chosen.
void Pass::route(int layer, std::vector<float>* weights) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const int experts = shape_.experts, chosen = shape_.experts_per_token;
  const PackedMatrix& router = model_.routers_[static_cast<size_t>(layer)];
  weights->assign(static_cast<size_t>(rows_ * experts), 0.0F);
  std::vector<float> logits(static_cast<size_t>(experts));
  std::vector<int> order(static_cast<size_t>(experts));
  for (int row = 0; row < rows_; ++row) {
    const DenseCall call = router.dense_call(scratch_.normed.data() + row * stride, RowTiles(1, 1), logits.data(),
                                             experts, thread_scratch(0));
    kernels_.dense.multiply(call, 0, router.panel_count());
    for (int e = 0; e < experts; ++e) order[static_cast<size_t>(e)] = e;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    double sum = 0;
    const double top = logits[static_cast<size_t>(order[0])];
    for (int k = 0; k < chosen; ++k) sum += std::exp(logits[static_cast<size_t>(order[static_cast<size_t>(k)])] - top);
    for (int k = 0; k < chosen; ++k) {
      const int e = order[static_cast<size_t>(k)];
      (*weights)[static_cast<size_t>(row * experts + e)] =
          static_cast<float>(std::exp(logits[static_cast<size_t>(e)] - top) / sum);
    }
  }
  shared_bytes_ += static_cast<uint64_t>(experts * hidden) * sizeof(uint16_t);
}

// Experts in rising order, each over the rows that chose it; so a row's sum has one order, whatever shares its pass.
void Pass::expert_mlp(int layer) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const int experts = shape_.experts;
  std::vector<float> weights;
  route(layer, &weights);
  std::vector<int> members;
  std::vector<const double*> efforts;
  for (int e = 0; e < experts; ++e) {
    members.clear();
    efforts.clear();
    for (int row = 0; row < rows_; ++row) {
      if (weights[static_cast<size_t>(row * experts + e)] <= 0) continue;
      members.push_back(row);
      efforts.push_back(scratch_.efforts[static_cast<size_t>(row)]);
    }
    if (members.empty()) continue;
    const auto count = static_cast<int>(members.size());
    for (int j = 0; j < count; ++j)
      std::memcpy(scratch_.expert_in.data() + j * stride,
                  scratch_.normed.data() + members[static_cast<size_t>(j)] * stride, static_cast<size_t>(stride) * 4);
    gated_mlp(model_.layer_matrix(layer, 4 + 3 * e), {scratch_.expert_in.data(), stride, count, efforts.data()},
              scratch_.expert_out.data(), stride);
    each(count, count * hidden, [&](int j, int) {
      const int row = members[static_cast<size_t>(j)];
      const float weight = weights[static_cast<size_t>(row * experts + e)];
      for (int64_t i = 0; i < hidden; ++i)
        scratch_.x[static_cast<size_t>(row * stride + i)] +=
            weight * scratch_.expert_out[static_cast<size_t>(j * stride + i)];
    });
  }
}

}  // namespace specdec
