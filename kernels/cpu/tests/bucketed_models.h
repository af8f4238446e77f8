// Random models of 16-bit matrices in buckets and tiers.
#pragma once

#include <algorithm>
#include <memory>

#include "models.h"

namespace specdec::test {

// A matrix in buckets and tiers, as the store holds it; tiers are shared out at random, which the packing does not
// mind.
struct Bucketed {
  std::vector<std::vector<uint16_t>> values;
  std::vector<std::vector<uint8_t>> masks;
  std::vector<float> scores;

  Bucketed(int64_t out, int64_t in, const Layout& layout, Dtype dtype, uint32_t seed) {
    const int64_t buckets = (out + layout.bucket_size - 1) / layout.bucket_size;
    const auto tiers = static_cast<size_t>(layout.tiers());
    std::mt19937 engine(seed);
    values.resize(tiers);
    masks.resize(tiers - 1);
    for (size_t k = 0; k < tiers; ++k)
      values[k] =
          random_bits(static_cast<size_t>(in * buckets * layout.tier_sizes[k]), dtype, seed + static_cast<uint32_t>(k));
    for (int64_t n = 0; n < in * buckets; ++n) {
      std::vector<int> order(static_cast<size_t>(layout.bucket_size));
      for (size_t j = 0; j < order.size(); ++j) order[j] = static_cast<int>(j);
      std::shuffle(order.begin(), order.end(), engine);
      size_t at = 0;
      for (size_t k = 0; k + 1 < tiers; ++k) {
        uint64_t mask = 0;
        for (int j = 0; j < layout.tier_sizes[k]; ++j) mask |= uint64_t{1} << order[at++];
        for (int byte = 0; byte < layout.bucket_size / 8; ++byte)
          masks[k].push_back(static_cast<uint8_t>(mask >> (8 * byte)));
      }
    }
    for (int64_t i = 0; i < in; ++i)
      for (size_t k = 0; k < tiers; ++k) scores.push_back(1.0F / static_cast<float>(1 + k + engine() % 3));
  }

  // Of the first tiers alone, unless `loaded` is 0.
  BucketSource source(int loaded = 0) const {
    BucketSource s;
    for (const auto& v : values) s.values.push_back(v.data());
    for (const auto& m : masks) s.masks.push_back(m.data());
    s.scores = scores.data();
    if (loaded != 0) s.values.resize(static_cast<size_t>(loaded));
    if (loaded != 0) s.masks.resize(std::min(static_cast<size_t>(loaded), s.masks.size()));
    return s;
  }
};

inline ModelShape small_shape(bool experts, Layout layout) {
  ModelShape s = two_layers(75, 40, 72, experts);
  set_heads(s, 6, 10);
  for (LayerShape& layer : s.layers) {
    layer.qkv_bias = true;
    layer.qk_norm = QkNorm::head;
  }
  s.dtype = experts ? Dtype::bfloat16 : Dtype::float16;
  s.layout = std::move(layout);
  return s;
}

// What becomes of the last tiers of matrices, of which the number goes around.
enum class LastTiers { kept, zeros, left_out };

inline std::unique_ptr<Model> random_model(const ModelShape& shape, const std::string& isa, int threads,
                                    LastTiers last = LastTiers::kept) {
  auto model = std::make_unique<Model>(shape, isa, threads);
  auto loaded = [&](int j) { return last == LastTiers::kept ? shape.layout.tiers() : 1 + j % shape.layout.tiers(); };
  for (int j = 0; j < shape.matrix_count() && last == LastTiers::left_out; ++j) model->set_tiers(j, loaded(j));
  for (int j = 0; j < shape.matrix_count(); ++j) {
    const auto& matrix = model->matrix(j);
    Bucketed bucketed(matrix.out, matrix.in, shape.layout, shape.dtype, static_cast<uint32_t>(j));
    for (auto k = static_cast<size_t>(loaded(j)); k < bucketed.values.size(); ++k)
      std::fill(bucketed.values[k].begin(), bucketed.values[k].end(), uint16_t{0});
    const BucketSource source = bucketed.source(last == LastTiers::left_out ? loaded(j) : 0);
    CHECK(model->load_values(j, source, 0, matrix.in).empty(), "packing");
    model->load_masks(j, bucketed.source());
  }
  load_vectors_and_routers(*model);
  if (!shape.tie_embeddings)
    model->load_embedding(random_bits(static_cast<size_t>(shape.vocab * shape.hidden), shape.dtype, 3).data());
  return model;
}

}  // namespace specdec::test
