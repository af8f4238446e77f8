// What tests of whole models share: a shape of two layers, the parts that are no matrices, and logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "model.h"

namespace specdec::test {

// Two layers, the second with a window of attention; a mixture of three experts, two a token, if `experts`.
inline ModelShape two_layers(int64_t vocab, int64_t hidden, int64_t width, bool experts) {
  ModelShape s;
  s.vocab = vocab;
  s.hidden = hidden;
  s.norm_eps = 1e-5F;
  s.tie_embeddings = !experts;
  LayerShape layer;
  layer.kv_heads = 2;
  layer.width = width;
  layer.experts = experts ? 3 : 0;
  layer.experts_used = experts ? 2 : 0;
  s.layers = {layer, layer};
  s.layers[1].window = 9;
  return s;
}

inline void set_heads(LayerShape& layer, int heads, int head_dim) {
  layer.heads = heads;
  layer.head_dim = head_dim;
  layer.rope.frequencies.clear();
  for (int j = 0; j < head_dim / 2; ++j) layer.rope.frequencies.push_back(std::pow(10000.0, -2.0 * j / head_dim));
}

inline void set_heads(ModelShape& s, int heads, int head_dim) {
  for (LayerShape& layer : s.layers) set_heads(layer, heads, head_dim);
}

// Three layers that have every feature between them, and no two of one shape; inner widths are multiples of 2 * `unit`.
inline ModelShape every_feature(int64_t vocab, int64_t hidden, int64_t unit) {
  ModelShape s = two_layers(vocab, hidden, 2 * unit, false);
  s.embed_scale = 3;
  s.logit_scale = 0.5F;
  s.logit_cap = 4;
  LayerShape &first = s.layers[0], &second = s.layers[1];
  set_heads(first, 8, static_cast<int>(unit / 4));
  first.rope.frequencies.resize(static_cast<size_t>(unit / 16));
  first.rope.interleaved = true;
  first.rope.factor = 1.2;
  first.qk_norm = QkNorm::full;
  first.softcap = 1.5F;
  first.scale = 0.7F;
  first.gate = first.sinks = first.o_bias = first.mlp_bias = first.post_norms = true;
  first.activation = Activation::gelu_tanh;
  first.residual_scale = 0.3F;
  second.kv_heads = 1;
  set_heads(second, 4, static_cast<int>(unit));
  second.rope.frequencies.clear();
  second.growth = 0.2;
  second.growth_span = 3;
  second.sinks = second.qkv_bias = second.mlp_bias = second.router_bias = second.softmax_over_all = true;
  second.activation = Activation::clamped_swiglu;
  second.experts = 3;
  second.experts_used = 2;
  second.shared_width = 4 * unit;
  LayerShape third = first;
  third.gate = third.sinks = third.rope.interleaved = false;
  third.pre_norms = false;
  third.kv_heads = 4;
  set_heads(third, 4, static_cast<int>(unit));
  third.window = 140;
  s.layers.push_back(third);
  return s;
}

// Random norms, biases and routers.
inline void load_vectors_and_routers(Model& model) {
  const ModelShape& shape = model.shape();
  uint32_t seed = 99;
  for (const auto& name : model.vector_names())
    model.load_vector(name, random_floats(model.vector_size(name), ++seed).data());
  for (int layer = 0; layer < shape.layer_count(); ++layer)
    if (const int experts = shape.layer(layer).experts; experts > 0)
      model.load_router(layer, random_bits(static_cast<size_t>(experts * shape.hidden), shape.dtype, 4).data());
}

// A pass over one sequence's rows.
inline void forward_one(Model& model, SequenceRows rows, DraftView* view, float* logits) {
  std::vector<SequenceRows> batch = {rows};
  model.forward(batch, view, logits);
}

// Logits of `tokens`, given in pieces of `piece` rows, in a draft view or, without one, the exact view.
inline std::vector<float> logits_of(Model& model, const std::vector<int32_t>& tokens, int piece, double effort,
                                    DraftView* view = nullptr) {
  auto cache = model.new_cache(static_cast<int64_t>(tokens.size()));
  const std::vector<double> efforts(static_cast<size_t>(model.shape().matrix_count()), effort);
  std::vector<float> logits(tokens.size() * static_cast<size_t>(model.shape().vocab));
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(piece)) {
    const auto rows = static_cast<int>(std::min(tokens.size() - first, static_cast<size_t>(piece)));
    forward_one(model, {cache.get(), tokens.data() + first, rows, efforts.data()}, view,
                logits.data() + first * static_cast<size_t>(model.shape().vocab));
  }
  return logits;
}

}  // namespace specdec::test
