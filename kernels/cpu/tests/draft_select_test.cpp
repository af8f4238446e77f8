// Which inputs a draft takes, and their activations in 8 bits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace specdec::test {
namespace {

struct Row {
  std::vector<float> x, scores;  // padded to whole groups
};

// Ordinary rows, rows full of ties, zeros, and scores that are denormal or very uneven.
Row make_row(int64_t in, int kind) {
  const auto padded = static_cast<size_t>((in + kGroup - 1) / kGroup * kGroup);
  Row row{std::vector<float>(padded), std::vector<float>(padded)};
  const auto x = random_floats(static_cast<size_t>(in), static_cast<uint32_t>(in * 7 + kind));
  const auto scores = random_floats(static_cast<size_t>(in), static_cast<uint32_t>(in + kind));
  for (size_t i = 0; i < static_cast<size_t>(in); ++i) {
    row.x[i] = kind == 1 ? (x[i] > 0 ? 1.0F : -2.0F) : kind == 2 ? 0.0F : kind == 3 ? x[i] * 1e-38F : kind == 4 ? x[i] * x[i] * x[i] * 1e6F : x[i];
    row.scores[i] = kind == 1 ? 0.5F : std::fabs(scores[i]);
  }
  return row;
}

}  // namespace

TEST(draft_choice_is_the_top_of_the_order_and_near_the_effort) {
  for (const auto* table : tables())
    for (const int64_t in : {1, 7, 32, 33, 200, 1023, 9000})
      for (int kind = 0; kind < 5; ++kind) {
        const Row row = make_row(in, kind);
        for (const float effort : {0.001F, 0.15F, 0.5F, 0.77F, 0.999F, 1.0F}) {
          const auto count = static_cast<size_t>((in + kGroup - 1) / kGroup);
          std::vector<uint32_t> masks(count);
          std::vector<float> scratch(row.x.size());
          const int64_t taken =
              table->draft.choose({row.x.data(), row.scores.data(), in, effort, scratch.data(), masks.data()});
          const std::string where = std::string(table->name) + " in " + std::to_string(in) + " kind " + std::to_string(kind) +
                                    " effort " + std::to_string(effort);
          std::vector<bool> chosen(static_cast<size_t>(in));
          int64_t total = 0;
          for (size_t g = 0; g < count; ++g)
            for (size_t j = 0; j < kGroup; ++j) {
              if ((masks[g] >> j & 1U) == 0) continue;
              ++total;
              if (g * kGroup + j < chosen.size()) chosen[g * kGroup + j] = true;
              else CHECK(false, where + ": inputs exist");
            }
          CHECK(total == taken, where + ": counts add up");
          // Half an input is rounding; the rest is what the search may leave open.
          const double wanted = std::max(1.0, static_cast<double>(effort) * static_cast<double>(in));
          CHECK(std::fabs(static_cast<double>(taken) - wanted) <= 0.5 + 0.002 * static_cast<double>(in), where + ": share");
          float least = std::numeric_limits<float>::infinity(), most = 0;
          for (size_t i = 0; i < chosen.size(); ++i) {
            const float score = std::fabs(row.x[i]) * row.scores[i];
            if (chosen[i]) least = std::min(least, score);
            else most = std::max(most, score);
          }
          CHECK(least >= most, where + ": what is taken scores no less than what is not");
        }
      }
}

TEST(draft_activations_are_rounded_to_8_bits) {
  for (const auto* table : tables())
    for (const int64_t in : {1, 33, 1023})
      for (int kind = 0; kind < 5; ++kind) {
        const Row row = make_row(in, kind);
        const auto count = static_cast<size_t>((in + kGroup - 1) / kGroup);
        std::vector<uint32_t> masks(count);
        std::vector<float> scratch(row.x.size());
        table->draft.choose({row.x.data(), row.scores.data(), in, 0.6F, scratch.data(), masks.data()});
        for (size_t g = 0; g < count; ++g) {
          ChosenGroup group;
          table->draft.quantise(row.x.data() + g * kGroup, masks[g], &group);
          const std::string where = std::string(table->name) + " in " + std::to_string(in) + " kind " + std::to_string(kind);
          int32_t sum = 0;
          bool close = group.count == __builtin_popcount(masks[g]), filled = group.quads == (group.count + 3) / 4;
          for (int k = 0; k < 4 * group.quads; ++k) {
            sum += group.value[k];
            if (k < group.count) {
              close &= (masks[g] >> group.index[k] & 1U) != 0 && (k == 0 || group.index[k] > group.index[k - 1]);
              const double x = row.x[g * kGroup + group.index[k]];
              // Half a step, and a float's rounding of the quotient (up to 127). Activations below 1e-30 count as zero.
              const double bound = std::max(0.5001 * group.step, 1e-30);
              close &= std::fabs(group.value[k] * static_cast<double>(group.step) - x) <= bound;
            } else {
              filled &= group.value[k] == 0 && group.index[k] == group.index[group.count - 1];
            }
          }
          CHECK(close, where + ": values are within half a step");
          CHECK(filled, where + ": the last quad is filled up");
          CHECK(sum == group.sum, where + ": sum of values");
        }
      }
}

}  // namespace specdec::test
