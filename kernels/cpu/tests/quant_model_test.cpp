// Whole models of quantised matrices: any number of threads, rows and pieces gives the same bits.
#include <cmath>

#include "check.h"
#include "draft_nested.h"
#include "quant_models.h"

namespace specdec::test {
THREADED_TEST(quantised_models_give_the_same_bits_in_any_company) {
  const std::vector<int> pieces = cases<int>({5, 16, 140}, {5, 20});  // the last: all tokens at once
  std::vector<int32_t> tokens;
  for (int i = 0; i < pieces.back(); ++i) tokens.push_back(i * 31 % 300);
  for (const auto& isa : supported_isas())
    for (const bool experts : {false, true})
      for (const size_t first_type : cases<size_t>({0, 7}, {experts ? size_t{7} : size_t{0}})) {
        const ModelShape shape = quantised_shape(experts);
        const auto one = quantised_model(shape, isa, 1, first_type), two = quantised_model(shape, isa, 3, first_type);
        NestedView alone(*one), nested(*two);
        CHECK(nested.complete(), "complete");
        for (DraftView* view : {static_cast<DraftView*>(nullptr), static_cast<DraftView*>(&nested)})
          for (const double effort : {1.0, 0.4}) {
            const auto wanted = logits_of(*one, tokens, 1, effort, view == nullptr ? nullptr : &alone);
            bool finite = true;
            for (const float value : wanted) finite &= std::isfinite(value);
            CHECK(finite, isa + ": logits are finite");
            for (const int piece : pieces) {
              const auto found = logits_of(*two, tokens, piece, effort, view);
              CHECK(same_bits(found.data(), wanted.data(), static_cast<int64_t>(wanted.size())),
                    isa + " pieces of " + std::to_string(piece) + " effort " + std::to_string(effort) + (view != nullptr ? " nested" : ""));
            }
          }
      }
}

}  // namespace specdec::test
