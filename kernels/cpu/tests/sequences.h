// What tests of batches and trees share: a model in some view, and a sequence's passes by themselves.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bucketed_models.h"
#include "draft_bucket8.h"
#include "draft_int4.h"
#include "draft_nested.h"
#include "quant_models.h"

namespace specdec::test {

// A model and, unless it is the exact one, a draft view of it.
struct Subject {
  std::string name;
  std::unique_ptr<Model> model;
  std::unique_ptr<DraftView> view;

  size_t vocab() const { return static_cast<size_t>(model->shape().vocab); }
  std::vector<double> efforts(double effort) const {
    return std::vector<double>(static_cast<size_t>(model->shape().matrix_count()), effort);
  }
  // Logits of all rows of a chain that is appended to a cache.
  std::vector<float> append(KvCache& cache, const std::vector<int32_t>& tokens, double effort, int layers = 0) {
    const auto own = efforts(effort);
    std::vector<float> logits(tokens.size() * vocab());
    SequenceRows rows{&cache, tokens.data(), static_cast<int>(tokens.size()), own.data()};
    rows.layers = layers;
    forward_one(*model, rows, view.get(), logits.data());
    return logits;
  }
};

// The lists of matrices that draft views keep side by side.
inline JoinedMatrices joined_of(const Model& model) {
  const ModelShape& shape = model.shape();
  std::vector<MatrixShape> shapes;
  std::vector<std::vector<int>> lists;
  for (int m = 0; m < shape.matrix_count(); ++m) shapes.push_back({model.matrix(m).out, model.matrix(m).in});
  for (int number = 0, m = 0; number < shape.layer_count(); ++number) {
    const LayerShape& layer = shape.layer(number);
    lists.push_back({m, m + 1, m + 2});
    m += 3;
    for (int j = 3; j < layer.attention_matrices(); ++j) lists.push_back({m++});
    for (int e = 0; e < layer.mlps(); ++e, m += 3) {
      lists.push_back({m, m + 1});
      lists.push_back({m + 2});
    }
  }
  lists.push_back({shape.matrix_count() - 1});
  return {std::move(shapes), std::move(lists)};
}

template <class View>
std::unique_ptr<DraftView> built(Model& model) {
  auto view = std::make_unique<View>(model.kernels(), joined_of(model));
  for (size_t j = 0; j < view->joined().count(); ++j) {
    std::vector<const PackedMatrix*> exact;
    for (const int m : view->joined().list(j)) exact.push_back(&model.matrix(m));
    view->build(model.pool(), j, exact);
  }
  return view;
}

// "dense", "experts", "quantised", "quantised experts", or one of the views int4, bucket8 and nested.
inline Subject subject(const std::string& name, const std::string& isa, int threads) {
  Subject s{name + " " + isa, nullptr, nullptr};
  if (name.find("quantised") == 0 || name == "nested")
    s.model = quantised_model(quantised_shape(name == "quantised experts"), isa, threads, 0);
  else
    s.model = random_model(small_shape(name == "experts", {16, {4, 4, 4, 4}}), isa, threads);
  if (name == "int4") s.view = built<Int4View>(*s.model);
  if (name == "bucket8") s.view = built<Bucket8View>(*s.model);
  if (name == "nested") s.view = std::make_unique<NestedView>(*s.model);
  return s;
}

inline const std::vector<std::string> kSubjects = {"dense",   "experts", "quantised", "quantised experts",
                                                   "nested", "int4",    "bucket8"};

inline std::vector<int32_t> some_tokens(size_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<int32_t>(engine() % 75);
  return tokens;
}

}  // namespace specdec::test
