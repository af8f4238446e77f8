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

// A model that is "dense" or a mixture ("experts"), or has every feature ("features"), in 16 bits or "quantised"; and
// the view that the name ends with: int4, bucket8 or nested.
inline Subject subject(const std::string& name, const std::string& isa, int threads) {
  Subject s{name + " " + isa, nullptr, nullptr};
  auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (has("quantised") || has("nested")) {
    const ModelShape shape = has("features") ? every_feature(300, 256, 128) : quantised_shape(has("experts"));
    s.model = quantised_model(shape, isa, threads, 0);
  } else {
    const Layout layout = {16, {4, 4, 4, 4}};
    ModelShape shape = small_shape(has("experts"), layout);
    if (has("features")) shape = every_feature(75, 40, 24);
    shape.layout = layout;
    s.model = random_model(shape, isa, threads);
  }
  if (has("int4")) s.view = built<Int4View>(*s.model);
  if (has("bucket8")) s.view = built<Bucket8View>(*s.model);
  if (has("nested")) s.view = std::make_unique<NestedView>(*s.model);
  return s;
}

inline const std::vector<std::string> kSubjects = {
    "dense",   "experts",       "quantised",     "quantised experts", "nested",         "int4",
    "bucket8", "features",      "features int4", "features bucket8",  "quantised features", "nested features"};

inline std::vector<int32_t> some_tokens(size_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<int32_t>(engine() % 75);
  return tokens;
}

}  // namespace specdec::test
