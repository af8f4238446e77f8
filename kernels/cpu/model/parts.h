// What a pass needs of a layer beside weights: numbers of its matrices, vectors, functions; resolved when a model is made.
#pragma once

#include <cstdint>
#include <vector>

namespace specdec {

struct MlpParts {
  int first_matrix;  // gate, up, down
  int64_t width, all_width;  // on this device, on all
  const float *gate_bias, *up_bias, *down_bias;  // null where the architecture has none, as below
};

struct LayerParts {
  int q_matrix;  // then k and v, then gate where there is one
  int o_matrix;
  const float *attn_norm, *mlp_norm, *attn_post_norm, *mlp_post_norm, *q_norm, *k_norm;
  const float *bias[3], *o_bias, *sinks, *router_bias;
  int rotation;  // among the model's, or -1
  float scale;   // of scores
  void (*activate)(float* gate, const float* up, int64_t n);
  std::vector<MlpParts> mlps;  // one, or the experts and then the shared one
};

}  // namespace specdec
