// Effort below 1 by whole inputs, and matrices that are laid out for it: the bits of the dense product over rows with
// zeros for what was left out.
#include <memory>

#include "bucketed_models.h"
#include "forward.h"

namespace specdec::test {
namespace {

ModelShape shape_of(Dtype dtype, int64_t vocab) {
  ModelShape shape = two_layers(vocab, 40, 200, false);
  set_heads(shape, 6, 10);
  shape.dtype = dtype;
  return shape;
}

std::vector<float> scores_of(const PackedMatrix& matrix, int index) {
  std::vector<float> scores = random_floats(static_cast<size_t>(matrix.in), 7 + static_cast<uint32_t>(index));
  for (float& score : scores) score = std::fabs(score) + 0.01F;
  return scores;
}

std::unique_ptr<Model> model_with_scores(const ModelShape& shape, const std::string& isa, int threads,
                                         LastTiers last = LastTiers::kept) {
  auto model = random_model(shape, isa, threads, last);
  for (int j = 0; j < shape.matrix_count(); ++j) model->load_scores(j, scores_of(model->matrix(j), j).data());
  return model;
}

// Rows with zeros for the inputs that `effort` leaves out, by the kernel that select_test.cpp checks.
std::vector<float> with_zeros(const Model& model, int index, std::vector<float> x, const std::vector<double>& efforts) {
  const PackedMatrix& matrix = model.matrix(index);
  const std::vector<float> scores = scores_of(matrix, index);
  const int size = 1;
  for (size_t row = 0; row < efforts.size(); ++row) {
    if (efforts[row] >= 1) continue;
    std::vector<uint8_t> chosen(static_cast<size_t>(matrix.in));
    std::vector<uint32_t> keys(static_cast<size_t>(matrix.in));
    float* values = x.data() + row * static_cast<size_t>(matrix.in);
    model.kernels().select({matrix.in, 1, &size, values, scores.data(), weights_to_take(efforts[row], matrix.in),
                            chosen.data(), keys.data()});
    for (size_t i = 0; i < chosen.size(); ++i) values[i] = chosen[i] != 0 ? values[i] : 0.0F;
  }
  return x;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

std::vector<double> efforts_of(int rows, double effort, bool mixed) {
  std::vector<double> efforts(static_cast<size_t>(rows), effort);
  for (size_t row = 1; mixed && row < efforts.size(); row += 2) efforts[row] = row % 4 == 1 ? 1.0 : 0.3;
  return efforts;
}

}  // namespace

TEST(chosen_inputs_are_the_dense_product_with_zeros) {
  for (const auto* table : tables())
    for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16})
      for (const int threads : cases<int>({1, 2, 3}, {2})) {
        const ModelShape shape = shape_of(dtype, 2500);
        auto wide = model_with_scores(shape, table->name, threads), plain = random_model(shape, table->name, threads);
        const int last = shape.matrix_count() - 1;
        for (const int index : {0, 4, 6, last})
          for (const double effort : {0.95, 0.6, 0.25, 0.01})
            for (const int rows : cases<int>({1, 2, 3, 5, 6, 9, 13, 24, 25, 40}, {1, 5, 25}))
              for (const bool mixed : {false, true}) {
                const PackedMatrix& matrix = wide->matrix(index);
                const auto x = random_floats(static_cast<size_t>(rows * matrix.in), 5);
                const auto efforts = efforts_of(rows, effort, mixed);
                std::vector<float> y(static_cast<size_t>(rows * matrix.out)), expected = y, full = y, dense = y;
                const uint64_t read = wide->multiply(index, x.data(), efforts, nullptr, y.data(), Choice::inputs);
                const auto zeroed = with_zeros(*plain, index, x, efforts);
                plain->multiply(index, zeroed.data(), rows, nullptr, 1, expected.data());
                const std::string what = std::string(table->name) + " matrix " + std::to_string(index) + " effort " +
                                         std::to_string(effort) + " rows " + std::to_string(rows);
                CHECK(same(y, expected), what);
                wide->multiply(index, x.data(), rows, nullptr, 1, full.data(), Choice::inputs);
                plain->multiply(index, x.data(), rows, nullptr, 1, dense.data());
                CHECK(same(full, dense), what + ": everything");
                const auto all = static_cast<uint64_t>(matrix.panel_count() * matrix.in * kPanel * 2);
                CHECK(rows > 1 || effort > 0.9 || matrix.wide == 1 || read < all * 0.7, what + ": bytes read");
              }
        CHECK(wide->matrix(last).wide > 1 && plain->matrix(last).wide == 1, "layouts");
      }
}

TEST(tiers_and_drafts_of_a_wide_matrix_are_those_of_a_dense_one) {
  for (const auto* table : tables()) {
    const ModelShape shape = shape_of(Dtype::float16, 700);
    auto wide = model_with_scores(shape, table->name, 2), plain = random_model(shape, table->name, 2);
    for (int index = 0; index < shape.matrix_count(); ++index) {
      const PackedMatrix& matrix = wide->matrix(index);
      const auto x = random_floats(static_cast<size_t>(5 * matrix.in), 5);
      std::vector<float> y(static_cast<size_t>(5 * matrix.out)), expected = y;
      wide->multiply(index, x.data(), 5, nullptr, 0.5, y.data(), Choice::inputs);
      wide->multiply(index, x.data(), 5, nullptr, 0.4, y.data(), Choice::tiers);
      plain->multiply(index, x.data(), 5, nullptr, 0.4, expected.data(), Choice::tiers);
      CHECK(same(y, expected), std::string(table->name) + ": tiers of matrix " + std::to_string(index));
      uint16_t one[kPanel], other[kPanel];
      for (int64_t panel = 0; panel < matrix.panel_count(); ++panel)
        CHECK(std::memcmp(matrix.whole_line(panel, 3, one), plain->matrix(index).whole_line(panel, 3, other), sizeof one) == 0,
              "lines");
    }
  }
}

// Rows of any pass equal the same rows alone, in chains cut anywhere, with some tiers left out too.
TEST(passes_by_inputs_do_not_depend_on_how_they_are_cut) {
  for (const auto* table : tables())
    for (const LastTiers last : {LastTiers::kept, LastTiers::left_out}) {
      const ModelShape shape = shape_of(Dtype::float16, 150);
      auto model = model_with_scores(shape, table->name, 2, last);
      const std::vector<int32_t> tokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9};
      const std::vector<double> efforts(static_cast<size_t>(shape.matrix_count()), 0.5);
      std::vector<std::vector<float>> found;
      for (const int piece : {1, 2, 5, 13}) {
        auto cache = model->new_cache(16);
        std::vector<float> logits(tokens.size() * static_cast<size_t>(shape.vocab));
        for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(piece)) {
          const auto rows = static_cast<int>(std::min(tokens.size() - first, static_cast<size_t>(piece)));
          std::vector<SequenceRows> batch = {{cache.get(), tokens.data() + first, rows, efforts.data()}};
          model->forward(batch, nullptr, logits.data() + first * static_cast<size_t>(shape.vocab), Choice::inputs);
        }
        found.push_back(logits);
      }
      for (size_t j = 1; j < found.size(); ++j) CHECK(same(found[j], found[0]), std::string(table->name) + ": pieces");
    }
}

}  // namespace specdec::test
