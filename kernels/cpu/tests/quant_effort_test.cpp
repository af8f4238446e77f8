// Quantised matrices at an effort below 1: what is left out is not read, and counts as zeros, bit for bit.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "quant_blocks.h"

namespace specdec::test {
namespace {

// Inputs in the order in which effort takes them (kernels/reference/selection.py): falling score, then rising input.
std::vector<size_t> order_of(const float* x, const std::vector<float>& scores) {
  std::vector<size_t> order(scores.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  auto score = [&](size_t i) { return std::fabs(x[i]) * scores[i]; };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  return order;
}

size_t taken_at(double effort, size_t inputs) {
  return std::max<size_t>(1, static_cast<size_t>(std::ceil(effort * static_cast<double>(inputs) - 1e-9)));
}

// The rows with zeros for the inputs that an effort leaves out.
std::vector<float> left_of(const std::vector<float>& x, const std::vector<float>& scores, double effort) {
  std::vector<float> left(x.size());
  for (size_t row = 0; row < x.size(); row += scores.size()) {
    const std::vector<size_t> order = order_of(x.data() + row, scores);
    for (size_t k = 0; k < taken_at(effort, order.size()); ++k) left[row + order[k]] = x[row + order[k]];
  }
  return left;
}

// Rows that resemble each other, as those of a draft do: they take mostly the same inputs.
std::vector<float> alike_rows(int rows, int64_t in, uint32_t seed) {
  const std::vector<float> first = random_floats(static_cast<size_t>(in), seed);
  std::vector<float> x = random_floats(static_cast<size_t>(rows * in), seed + 1, 0.2F);
  for (size_t i = 0; i < x.size(); ++i) x[i] += first[i % first.size()];
  return x;
}

}  // namespace

THREADED_TEST(inputs_that_are_left_out_count_as_zeros_in_any_company) {
  for (const auto& type : kTypes)
    for (const Size size : sizes_for(type)) {
      const Blocks blocks(type, size.out, size.in, 3);
      for (const auto* table : tables()) {
        OneMatrix one(type, blocks, table->name, 3);
        for (const int rows : cases<int>({1, 5, 13}, {1, 5}))
          for (const double effort : cases<double>({0.5, 0.05}, {0.5})) {
            const auto x = alike_rows(rows, size.in, 8);
            const auto some = one.multiply(x, effort), wanted = one.multiply(left_of(x, one.scores, effort), 1.0);
            CHECK(same_bits(some.data(), wanted.data(), rows * size.out),
                  type + " " + table->name + " " + std::to_string(size.out) + "x" + std::to_string(size.in) + " rows " +
                      std::to_string(rows) + " effort " + std::to_string(effort));
          }
      }
    }
}

TEST(inputs_that_are_left_out_are_not_read) {
  for (const auto& type : kTypes) {
    const Blocks blocks(type, 1100, 768, 3);
    OneMatrix one(type, blocks, "", 2);
    const auto x = alike_rows(5, 768, 8);
    std::vector<float> y(static_cast<size_t>(5 * 1100));
    auto read = [&](int rows, double effort) {
      return static_cast<double>(one.model->multiply(one.head(), x.data(), rows, nullptr, effort, y.data()));
    };
    const double all = read(1, 1.0);
    CHECK(all == static_cast<double>(one.matrix().bytes()), type + " at effort 1");
    CHECK(read(1, 0.5) < 0.65 * all && read(1, 0.25) < 0.45 * all, type + " of one row");
    CHECK(read(5, 0.2) > read(1, 0.2) && read(5, 0.2) < 0.6 * all, type + " of five rows");
    CHECK(read(1, 0.95) == all, type + " where nearly all are taken");
  }
}

TEST(a_target_takes_exactly_so_many_inputs) {
  const std::vector<float> scores(512, 0.5F);
  std::vector<float> x = random_floats(512, 4), scratch(512), equal(512, -1.0F), few(512, 0.0F);
  for (size_t i = 0; i < 512; ++i) x[i] = std::round(x[i] * 4) / 4;  // many equal scores, some of them zeros
  few[100] = few[300] = 2;
  for (const auto* table : tables())
    for (const auto& row : {x, equal, few})
      for (const int64_t target : {1, 2, 3, 100, 256, 511, 512}) {
        std::vector<uint32_t> masks(16);
        table->draft.choose({row.data(), scores.data(), 512, static_cast<float>(target) / 512 * 0.999F, scratch.data(),
                             masks.data(), target});
        std::vector<uint32_t> wanted(16);
        const std::vector<size_t> order = order_of(row.data(), scores);
        for (size_t k = 0; k < static_cast<size_t>(target); ++k) wanted[order[k] / 32] |= 1U << order[k] % 32;
        CHECK(masks == wanted, std::string(table->name) + " target " + std::to_string(target));
      }
}

}  // namespace specdec::test
