// The nested view of quantised matrices against its definition, in float64.
#include <cmath>

#include "check.h"
#include "draft_nested.h"
#include "draft_rows.h"
#include "quant_blocks.h"

namespace specdec::test {
namespace {

// What a row's activations become: those that the effort chooses, in 8 bits.
std::vector<double> chosen_values(const KernelTable& table, const QuantFormat& format, const std::vector<float>& x,
                                  const std::vector<float>& scores, float effort) {
  std::vector<uint32_t> masks(x.size() / kGroup);
  std::vector<float> scratch(x.size());
  table.draft.choose({x.data(), scores.data(), static_cast<int64_t>(x.size()), effort, scratch.data(), masks.data()});
  std::vector<double> values(x.size());
  for (size_t g = 0; g < masks.size(); ++g)
    for (int p = 0; p < format.parts(); ++p) {
      const uint32_t mask = format.parts() == 1 ? masks[g] : masks[g] & (p == 0 ? 0xFFFFU : 0xFFFF0000U);
      ChosenGroup group;
      table.draft.quantise(x.data() + g * kGroup, mask, &group);
      for (int k = 0; k < group.count; ++k)
        values[g * kGroup + group.index[k]] = group.value[k] * static_cast<double>(group.step);
    }
  return values;
}

// Whether y is the products of these activations, but for float32's roundings of what is added, codes and offsets apart.
bool products_match(const Blocks::Upper& upper, const std::vector<double>& values, const std::vector<float>& y) {
  bool close = true;
  size_t at = 0;
  for (const float found : y) {
    double sum = 0, magnitude = 0;
    for (const double value : values) {
      const double w = upper.weights[at], scale = upper.scales[at];
      sum += w * value;
      magnitude += (std::fabs(w) + std::fabs(scale) * 255 + 0.1) * std::fabs(value);
      ++at;
    }
    close &= std::fabs(found - sum) <= 1e-6 * magnitude + 1e-12;
  }
  return close && at == upper.weights.size();
}

}  // namespace

THREADED_TEST(nested_matches_its_definition) {
  for (const auto& type : kTypes)
    for (const Size size : sizes_for(type)) {
      const Blocks blocks(type, size.out, size.in, 3);
      const Blocks::Upper upper = blocks.upper();
      const auto x = random_floats(static_cast<size_t>(size.in), 9);
      for (const auto* table : tables()) {
        OneMatrix one(type, blocks, table->name, 2), other(type, blocks, table->name, 3),
            hidden(type, blocks, table->name, 3, true);
        // The other matrices of these models are not loaded: this one is multiplied alone.
        NestedView view(*one.model), same(*other.model), seen(*hidden.model);
        for (const float effort : {1.0F, 0.5F, 0.1F}) {
          const auto y = one.multiply(x, effort, &view);
          const std::string where = type + " " + table->name + " " + std::to_string(size.out) + "x" +
                                    std::to_string(size.in) + " effort " + std::to_string(effort);
          CHECK(products_match(upper, chosen_values(*table, blocks.type.format(), x, one.scores, effort), y), where);
          CHECK(same_bits(other.multiply(x, effort, &same).data(), y.data(), size.out), where + " threads");
          CHECK(same_bits(hidden.multiply(x, effort, &seen).data(), y.data(), size.out), where + " without the rest");
        }
      }
    }
}

THREADED_TEST(nested_rows_do_not_depend_on_each_other) {
  for (const auto& type : cases<std::string>(kTypes, {"q4_k", "q6_k", "q8_0"}))
    for (const auto* table : tables()) {
      const Size size = sizes_for(type).back();
      OneMatrix one(type, Blocks(type, size.out, size.in, 3), table->name, 3);
      NestedView view(*one.model);
      check_rows_alone(view, one.model->pool(), {{size.out, size.in}}, type + " " + table->name, one.head());
    }
}

}  // namespace specdec::test
