// Random models of quantised matrices.
#pragma once

#include <cmath>
#include <memory>

#include "models.h"
#include "quant_blocks.h"

namespace specdec::test {

// A model of one size whose matrices are of random quantised types.
inline ModelShape quantised_shape(bool experts) {
  ModelShape s = two_layers(300, 256, kFewCases ? 256 : 768, experts);
  set_heads(s, 4, 64);
  for (LayerShape& layer : s.layers) layer.qkv_bias = !experts;
  return s;
}

inline std::unique_ptr<Model> quantised_model(const ModelShape& shape, const std::string& isa, int threads, size_t first_type) {
  auto model = std::make_unique<Model>(shape, isa, threads);
  auto type_of = [&](int j) { return kTypes[(first_type + static_cast<size_t>(j)) % kTypes.size()]; };
  auto plain = [](int j) { return j % 5 == 3; };  // a matrix in 16 bits here and there
  for (int j = 0; j < shape.matrix_count(); ++j)
    if (!plain(j)) model->set_quantised(j, type_of(j));
  for (int j = 0; j < shape.matrix_count(); ++j) {
    const PackedMatrix& matrix = model->matrix(j);
    const auto seed = static_cast<uint32_t>(j * 7);
    if (plain(j)) {
      const int64_t buckets = (matrix.out + 15) / 16;
      std::vector<std::vector<uint16_t>> values;
      for (uint32_t k = 0; k < 4; ++k) values.push_back(random_bits(static_cast<size_t>(matrix.in * buckets * 4), shape.dtype, seed + k));
      std::vector<std::vector<uint8_t>> masks(3, std::vector<uint8_t>(static_cast<size_t>(matrix.in * buckets * 2)));
      for (size_t k = 0; k < 3; ++k)
        for (size_t n = 0; n < masks[k].size(); n += 2) masks[k][n + k / 2] = k % 2 == 0 ? 0x0F : 0xF0;
      const auto scores = random_floats(static_cast<size_t>(matrix.in * 4), seed, 1.0F);
      std::vector<float> falling(scores.size());
      for (size_t i = 0; i < scores.size(); ++i) falling[i] = std::fabs(scores[i / 4 * 4]) / static_cast<float>(i % 4 + 1);
      const BucketSource source{{values[0].data(), values[1].data(), values[2].data(), values[3].data()},
                                {masks[0].data(), masks[1].data(), masks[2].data()},
                                falling.data()};
      CHECK(model->load_values(j, source, 0, matrix.in).empty(), "packing");
      model->load_masks(j, source);
      continue;
    }
    const Blocks blocks(type_of(j), matrix.out, matrix.in, seed);
    // In two slices, as a loader with little memory does.
    const int64_t cut = matrix.out > kQuantBlock ? kQuantBlock : matrix.out;
    CHECK(model->load_quantised(j, blocks.source(), 0, cut).empty(), "packing " + type_of(j));
    if (cut < matrix.out)
      CHECK(model->load_quantised(j, blocks.source(cut), cut, matrix.out).empty(), "packing " + type_of(j));
    std::vector<float> scores = random_floats(static_cast<size_t>(matrix.in), seed);
    for (float& score : scores) score = std::fabs(score);
    model->load_scores(j, scores.data());
  }
  load_vectors_and_routers(*model);
  if (!shape.tie_embeddings) {
    const Blocks blocks("q5_k", shape.vocab, shape.hidden, 5);
    model->load_embedding_blocks("q5_k", blocks.source(), 0, shape.vocab);
  }
  return model;
}

}  // namespace specdec::test
