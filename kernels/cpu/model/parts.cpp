// How a model's layers get their matrices and vectors, by the names and in the order of ModelConfig.
#include "parts.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "model.h"

namespace specdec {
namespace {

std::string mlp_name(const std::string& base, const LayerShape& layer, int mlp) {
  if (layer.experts == 0) return base + "mlp";
  return mlp == layer.experts ? base + "mlp.shared" : base + "mlp.experts." + std::to_string(mlp);
}

}  // namespace

void Model::add_vector(const std::string& name, int64_t size) {
  vector_names_.push_back(name);
  vectors_.emplace(name, Buffer<float>(static_cast<size_t>(size)));
}

void Model::add_vectors(const std::string& base, const LayerShape& layer) {
  const int64_t hidden = shape_.hidden, q = layer.q_width(), kv = layer.kv_width(), size = layer.head_dim;
  const int64_t hidden_outputs = shape_.hidden_outputs();
  auto add = [&](bool wanted, const std::string& name, int64_t length) {
    if (wanted) add_vector(base + name, length);
  };
  add(layer.pre_norms, "attn_norm", hidden);
  add(layer.pre_norms, "mlp_norm", hidden);
  add(layer.post_norms, "attn_post_norm", hidden);
  add(layer.post_norms, "mlp_post_norm", hidden);
  add(layer.qk_norm != QkNorm::none, "attn.q_norm", layer.qk_norm == QkNorm::full ? layer.all_q_width() : size);
  add(layer.qk_norm != QkNorm::none, "attn.k_norm", layer.qk_norm == QkNorm::full ? layer.all_kv_width() : size);
  add(layer.qkv_bias, "attn.q.bias", q);
  add(layer.qkv_bias, "attn.k.bias", kv);
  add(layer.qkv_bias, "attn.v.bias", kv);
  add(layer.o_bias, "attn.o.bias", hidden_outputs);
  add(layer.sinks, "attn.sinks", layer.heads);
  add(layer.experts > 0 && layer.router_bias, "mlp.router.bias", layer.experts);
  for (int mlp = 0; layer.mlp_bias && mlp < layer.mlps(); ++mlp) {
    const std::string name = mlp_name("", layer, mlp);
    add(true, name + ".gate.bias", layer.mlp_width(mlp));
    add(true, name + ".up.bias", layer.mlp_width(mlp));
    add(true, name + ".down.bias", hidden_outputs);
  }
}

LayerParts Model::parts_of(const std::string& base, const LayerShape& layer, int first_matrix) {
  auto find = [&](const char* name) { return find_vector(base + name); };
  LayerParts parts{};
  parts.q_matrix = first_matrix;
  parts.o_matrix = first_matrix + layer.attention_matrices() - 1;
  parts.attn_norm = find("attn_norm");
  parts.mlp_norm = find("mlp_norm");
  parts.attn_post_norm = find("attn_post_norm");
  parts.mlp_post_norm = find("mlp_post_norm");
  parts.q_norm = find("attn.q_norm");
  parts.k_norm = find("attn.k_norm");
  parts.bias[0] = find("attn.q.bias");
  parts.bias[1] = find("attn.k.bias");
  parts.bias[2] = find("attn.v.bias");
  parts.o_bias = find("attn.o.bias");
  parts.sinks = find("attn.sinks");
  parts.router_bias = find("mlp.router.bias");
  parts.scale = layer.scale > 0 ? layer.scale : 1.0F / std::sqrt(static_cast<float>(layer.head_dim));
  parts.activate = layer.activation == Activation::silu        ? kernels_.element.silu_mul
                   : layer.activation == Activation::gelu_tanh ? kernels_.element.gelu_mul
                                                               : kernels_.element.clamped_mul;
  parts.rotation = -1;
  if (!layer.rope.frequencies.empty()) {
    const auto known = std::find(rotations_.begin(), rotations_.end(), layer.rope);
    parts.rotation = static_cast<int>(known - rotations_.begin());
    if (known == rotations_.end()) rotations_.push_back(layer.rope);
  }
  for (int mlp = 0; mlp < layer.mlps(); ++mlp) {
    const std::string name = mlp_name(base, layer, mlp);
    parts.mlps.push_back({parts.o_matrix + 1 + 3 * mlp, layer.mlp_width(mlp), layer.all_mlp_width(mlp), find_vector(name + ".gate.bias"),
                          find_vector(name + ".up.bias"), find_vector(name + ".down.bias")});
  }
  return parts;
}

// Adds a layer whose first matrix is *matrix, which becomes the next layer's.
void Model::add_layer(int number, int* matrix) {
  const LayerShape& layer = shape_.layer(number);
  const int first = *matrix;
  auto add = [&](int64_t out, int64_t in, int64_t whole_width) {
    matrices_[static_cast<size_t>((*matrix)++)].set_shape(out, in, shape_.dtype, shape_.layout);
    whole_widths_.push_back(whole_width);
  };
  const int64_t hidden = shape_.hidden, q = layer.q_width(), kv = layer.kv_width();
  add(q, hidden, layer.all_q_width());
  add(kv, hidden, layer.all_kv_width());
  add(kv, hidden, layer.all_kv_width());
  if (layer.gate) add(q, hidden, layer.all_q_width());
  add(shape_.hidden_outputs(), layer.all_q_width(), hidden);
  for (int mlp = 0; mlp < layer.mlps(); ++mlp) {
    add(layer.mlp_width(mlp), hidden, layer.all_mlp_width(mlp));
    add(layer.mlp_width(mlp), hidden, layer.all_mlp_width(mlp));
    add(shape_.hidden_outputs(), layer.all_mlp_width(mlp), hidden);
  }
  routers_.emplace_back();
  if (layer.experts > 0) routers_.back().set_shape(layer.experts, hidden, shape_.dtype, shape_.layout);
  const std::string base = "layers." + std::to_string(number) + ".";
  add_vectors(base, layer);
  parts_.push_back(parts_of(base, layer, first));
}

}  // namespace specdec
