// Effort selection against the definition, sorted out in full.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "check.h"

namespace specdec::test {
namespace {

std::vector<uint8_t> by_sorting(const std::vector<float>& x, const std::vector<float>& scores,
                                const std::vector<int>& sizes, int64_t target) {
  const auto in = static_cast<int64_t>(x.size());
  std::vector<std::tuple<float, int, int64_t>> order;  // score falling, tier, input
  for (int k = 0; k < static_cast<int>(sizes.size()); ++k)
    for (int64_t i = 0; i < in; ++i)
      order.emplace_back(-(std::fabs(x[static_cast<size_t>(i)]) * scores[static_cast<size_t>(k * in + i)]), k, i);
  std::sort(order.begin(), order.end());
  std::vector<uint8_t> chosen(x.size());
  for (const auto& [score, k, i] : order) {
    if (target <= 0) break;
    ++chosen[static_cast<size_t>(i)];
    target -= sizes[static_cast<size_t>(k)];
  }
  return chosen;
}

}  // namespace

TEST(selection_is_the_definition) {
  const std::vector<std::vector<int>> layouts = {
      {16}, {4, 4, 4, 4}, {2, 2, 4, 8}, {8, 8, 16, 32}, std::vector<int>(16, 1)};
  for (const auto* table : tables())
    for (const int64_t in : {1, 7, 33, 200, 1023})
      for (const auto& sizes : layouts)
        for (int kind = 0; kind < 4; ++kind) {
          auto x = random_floats(static_cast<size_t>(in), static_cast<uint32_t>(in + kind));
          const auto tiers = static_cast<int64_t>(sizes.size());
          int64_t bucket = 0;
          for (const int size : sizes) bucket += size;
          std::vector<float> scores(static_cast<size_t>(tiers * in));
          const auto base = random_floats(static_cast<size_t>(in), 3);
          for (int64_t k = 0; k < tiers; ++k)
            for (int64_t i = 0; i < in; ++i)
              scores[static_cast<size_t>(k * in + i)] =
                  std::fabs(base[static_cast<size_t>(i)]) / static_cast<float>(kind == 1 ? 1 : k + 1);
          if (kind == 1) std::fill(scores.begin(), scores.end(), 0.5F);  // ties everywhere
          if (kind == 1)
            for (auto& value : x) value = value > 0 ? 1.0F : -2.0F;
          if (kind == 2) std::fill(x.begin(), x.end(), 0.0F);
          if (kind == 3)
            for (auto& value : x) value *= 1e-38F;  // denormal scores
          for (const double effort : {0.001, 0.15, 0.5, 0.77, 0.999, 1.0}) {
            const auto target =
                std::max<int64_t>(1, static_cast<int64_t>(std::ceil(effort * static_cast<double>(in * bucket))));
            std::vector<uint8_t> chosen(x.size());
            std::vector<uint32_t> keys(static_cast<size_t>(tiers * in));
            table->select({in, static_cast<int>(tiers), sizes.data(), x.data(), scores.data(), target, chosen.data(),
                           keys.data()});
            CHECK(chosen == by_sorting(x, scores, sizes, target),
                  std::string(table->name) + " in " + std::to_string(in) + " tiers " + std::to_string(tiers) +
                      " kind " + std::to_string(kind) + " effort " + std::to_string(effort));
          }
        }
}

}  // namespace specdec::test
