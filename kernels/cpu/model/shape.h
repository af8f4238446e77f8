// What a model is, as specdec.model.architecture.ModelConfig says it: sizes and features, layer by layer.
#pragma once

#include <cstdint>
#include <vector>

#include "packed.h"

namespace specdec {

enum class QkNorm : int { none = 0, head = 1, full = 2 };
enum class Activation : int { silu = 0, gelu_tanh = 1, clamped_swiglu = 2 };

// Rotary positions: the first 2 * frequencies.size() dimensions of every head are turned.
struct RopeShape {
  std::vector<double> frequencies;  // radians per position of each pair of dimensions; none: nothing is turned
  double factor = 1;                // multiplies sines and cosines
  bool interleaved = false;         // pairs are (2j, 2j + 1), not (j, j + frequencies.size())

  bool operator==(const RopeShape& other) const {
    return frequencies == other.frequencies && factor == other.factor && interleaved == other.interleaved;
  }
};

struct LayerShape {
  int heads = 0, kv_heads = 0, head_dim = 0;
  RopeShape rope;
  int64_t window = 0;  // in tokens, 0 for none
  float scale = 0;     // of scores; 0: 1 / sqrt(head_dim)
  float softcap = 0;   // of scores, 0 for none
  double growth = 0;   // queries at position p are multiplied by 1 + growth * ln(1 + floor(p / growth_span))
  int64_t growth_span = 0;
  QkNorm qk_norm = QkNorm::none;
  bool qkv_bias = false, o_bias = false, sinks = false, gate = false;

  int64_t width = 0;  // of the MLP, or of each expert
  Activation activation = Activation::silu;
  bool mlp_bias = false;
  int experts = 0, experts_used = 0;
  bool router_bias = false;
  bool softmax_over_all = false;  // weights are shares of a softmax over all experts, not of one over the chosen
  bool fewer_experts = true;      // at an effort below 1 a row leaves out some of those that it has chosen
  int64_t shared_width = 0;       // of an MLP that every row uses beside its experts

  bool pre_norms = true, post_norms = false;
  float residual_scale = 1;

  // Where several devices divide the layer: sizes of all of it, of which heads, kv_heads, width and shared_width above are
  // this device's share, and the first of its heads.
  int all_heads = 0, all_kv_heads = 0, first_head = 0, first_kv_head = 0;
  int64_t all_width = 0, all_shared_width = 0;

  int64_t q_width() const { return int64_t{heads} * head_dim; }
  int64_t kv_width() const { return int64_t{kv_heads} * head_dim; }
  int64_t all_q_width() const { return all_heads == 0 ? q_width() : int64_t{all_heads} * head_dim; }
  int64_t all_kv_width() const { return all_heads == 0 ? kv_width() : int64_t{all_kv_heads} * head_dim; }
  int group() const { return all_heads == 0 ? heads / kv_heads : all_heads / all_kv_heads; }
  int attention_matrices() const { return gate ? 5 : 4; }
  int mlps() const { return experts == 0 ? 1 : experts + (shared_width > 0 || all_shared_width > 0 ? 1 : 0); }
  int64_t mlp_width(int mlp) const { return experts > 0 && mlp == experts ? shared_width : width; }
  int64_t all_mlp_width(int mlp) const {
    if (all_width == 0) return mlp_width(mlp);
    return experts > 0 && mlp == experts ? all_shared_width : all_width;
  }
  int matrices() const { return attention_matrices() + 3 * mlps(); }
};

struct ModelShape {
  int64_t vocab = 0, hidden = 0;
  std::vector<LayerShape> layers;
  float norm_eps = 0;
  float embed_scale = 1, logit_scale = 1;
  float logit_cap = 0;  // 0 for none
  bool tie_embeddings = false;
  Dtype dtype = Dtype::float16;
  Layout layout;

  // The outputs of every matrix are divided among several devices: this one's number of outputs that are as many as the
  // residual stream is wide, and its tokens of the embedding and the logits layer.
  bool divided = false;
  int64_t own_hidden = 0, own_vocab = 0, first_token = 0;
  // Or this device has some layers of the model, whole: rows come from the device before it, unless it embeds them, and go
  // to the one after it; the last one makes the logits. `divided` is set, too.
  bool staged = false, embeds = true, scores = true;
  bool single_cache = false;  // keys and values are float32, as where a layer is a mixture, on whichever device

  int64_t hidden_outputs() const { return divided ? own_hidden : hidden; }
  int64_t tokens() const { return divided ? own_vocab : vocab; }
  int64_t embedded_tokens() const { return !staged ? tokens() : embeds ? vocab : 0; }
  int layer_count() const { return static_cast<int>(layers.size()); }
  const LayerShape& layer(int number) const { return layers[static_cast<size_t>(number)]; }
  int matrix_count() const {
    int sum = 1;
    for (const LayerShape& layer : layers) sum += layer.matrices();
    return sum;
  }
};

}  // namespace specdec
