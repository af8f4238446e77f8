// The blocks of a layer: attention but for its sums (attention.cpp), and an MLP that is not a mixture (experts.cpp).
#include <cmath>

#include "multiply.h"

namespace specdec {

// The residual stream, normed unless `weight` is null.
Pass::Input Pass::norm_into(const float* weight) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  if (weight == nullptr) return rows_of(scratch_.x.data(), stride);
  each(rows_, rows_ * hidden * 2, [&](int row, int) {
    kernels_.element.rms_norm(scratch_.x.data() + row * stride, weight, shape_.norm_eps, hidden,
                              scratch_.normed.data() + row * stride);
  });
  return rows_of(scratch_.normed.data(), stride);
}

// Adds what attention or an MLP has returned for each row to the residual stream.
void Pass::add_part(int layer, float* y, const float* post_norm) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const float scale = shape_of(layer).residual_scale;
  each(rows_, rows_ * hidden * (post_norm == nullptr ? 1 : 3), [&](int row, int) {
    float *x = scratch_.x.data() + row * stride, *part = y + row * stride;
    if (post_norm != nullptr) kernels_.element.rms_norm(part, post_norm, shape_.norm_eps, hidden, part);
    for (int64_t i = 0; i < hidden; ++i) x[i] += scale * part[i];
  });
}

void Pass::attention_block(int layer) {
  const LayerShape& shape = shape_of(layer);
  const LayerParts& parts = parts_of(layer);
  const int64_t stride = padded(shape_.hidden), q = shape.q_width();
  project(layer, norm_into(parts.attn_norm));
  if (shape_.divided && shape.qk_norm == QkNorm::full) norm_whole(layer);
  each(rows_, rows_ * (q + shape.kv_width()) * 4, [&](int row, int) { append_row(layer, row); });
  attend(layer);
  const bool added = parts.attn_post_norm == nullptr && !shape_.divided;
  float *x = scratch_.x.data(), *y = shape_.divided ? scratch_.own.data() : scratch_.normed.data();
  const float *bias = parts.o_bias, scale = shape.residual_scale;
  const std::vector<Output> outputs = {{parts.o_matrix, y, stride}};
  multiply(attended(layer), outputs, false,
           [&](int, int row, int64_t from, int64_t to) {
             float* part = y + row * stride;
             for (int64_t o = from; bias != nullptr && o < to; ++o) part[o] += bias[o];
             for (int64_t o = from; added && o < to; ++o) x[row * stride + o] += scale * part[o];
           });
  if (shape_.divided) gather(parts.o_matrix, rows_, y, stride, scratch_.normed.data(), stride);
  if (!added) add_part(layer, scratch_.normed.data(), parts.attn_post_norm);
}

// Queries, keys, values and, where there is one, the gate of every row.
void Pass::project(int layer, Input in) {
  const LayerShape& shape = shape_of(layer);
  const LayerParts& parts = parts_of(layer);
  const int64_t q = padded(shape.q_width()), kv = padded(shape.kv_width());
  const std::vector<Output> outputs = {{parts.q_matrix, scratch_.qkv[0].data(), q},
                                       {parts.q_matrix + 1, scratch_.qkv[1].data(), kv},
                                       {parts.q_matrix + 2, scratch_.qkv[2].data(), kv}};
  multiply(in, outputs, false, [&](int j, int row, int64_t from, int64_t to) {
    if (const float* bias = parts.bias[j]) {
      float* y = outputs[static_cast<size_t>(j)].y + row * outputs[static_cast<size_t>(j)].stride;
      for (int64_t o = from; o < to; ++o) y[o] += bias[o];
    }
  });
  if (shape.gate)
    multiply(in, {{parts.q_matrix + 3, scratch_.attn_gate.data(), q}}, false, [](int, int, int64_t, int64_t) {});
}

// Turns the heads of a row's queries or keys.
void Pass::turn(const LayerParts& parts, int row, float* x, int64_t heads, int64_t size) const {
  if (parts.rotation < 0) return;
  const auto kind = static_cast<size_t>(parts.rotation);
  const RopeShape& rope = model_.rotations_[kind];
  const auto pairs = static_cast<int64_t>(rope.frequencies.size());
  const auto rotate = rope.interleaved ? kernels_.element.rope_interleaved : kernels_.element.rope;
  rotate(x, heads, size, pairs, scratch_.cosines[kind].data() + row * pairs, scratch_.sines[kind].data() + row * pairs);
}

// Norms and turns a row's queries and keys, and writes its keys and values to the cache.
void Pass::append_row(int layer, int row) {
  const LayerShape& shape = shape_of(layer);
  const LayerParts& parts = parts_of(layer);
  const Sequence& s = sequences_[static_cast<size_t>(scratch_.sequence_of[static_cast<size_t>(row)])];
  const KvCache& cache = *s.given->cache;
  const int64_t size = shape.head_dim, value_stride = cache.shape().layer(layer).value_stride;
  const int64_t slot = s.start + row - s.first, chunk = slot / kChunk, place = slot % kChunk;
  const int64_t kv_stride = padded(shape.kv_width());
  float* q = scratch_.qkv[0].data() + row * padded(shape.q_width());
  float* k = scratch_.qkv[1].data() + row * kv_stride;
  const float* v = scratch_.qkv[2].data() + row * kv_stride;
  if (shape.qk_norm == QkNorm::head || (shape.qk_norm == QkNorm::full && !shape_.divided)) {
    const bool full = shape.qk_norm == QkNorm::full;
    auto norm = [&](float* x, const float* weight, int64_t width) {
      const int64_t part = full ? width : size;
      for (int64_t first = 0; first < width; first += part)
        kernels_.element.rms_norm(x + first, weight, shape_.norm_eps, part, x + first);
    };
    norm(q, parts.q_norm, shape.q_width());
    norm(k, parts.k_norm, shape.kv_width());
  }
  turn(parts, row, q, shape.heads, size);
  turn(parts, row, k, shape.kv_heads, size);
  if (shape.growth != 0) {
    const int64_t spans = scratch_.positions[static_cast<size_t>(row)] / shape.growth_span;
    const auto factor = static_cast<float>(1 + shape.growth * std::log(1 + static_cast<double>(spans)));
    for (int64_t i = 0; i < shape.q_width(); ++i) q[i] *= factor;
  }
  const CacheShape::Layer& place_in = cache.shape().layer(layer);
  for (int h = 0; h < shape.kv_heads; ++h) {
    uint8_t* keys = cache.keys(layer, h, chunk);
    uint8_t* values = cache.shape().values_of(place_in, keys);
    if (cache.shape().single()) {
      for (int64_t d = 0; d < size; ++d)
        reinterpret_cast<float*>(keys)[CacheShape::key_at(place_in, place, d)] = k[h * size + d];
      std::copy_n(v + h * size, size, reinterpret_cast<float*>(values) + place * value_stride);
      continue;
    }
    for (int64_t first = 0; first < size; first += kPanel) {
      uint16_t bits[kPanel];
      const int64_t n = std::min<int64_t>(kPanel, size - first);
      kernels_.element.to_half(k + h * size + first, bits, n);
      for (int64_t d = 0; d < n; ++d)
        reinterpret_cast<uint16_t*>(keys)[CacheShape::key_at(place_in, place, first + d)] = bits[d];
    }
    kernels_.element.to_half(v + h * size, reinterpret_cast<uint16_t*>(values) + place * value_stride, size);
  }
}

void Pass::mlp_block(int layer) {
  const LayerParts& parts = parts_of(layer);
  const Input in = norm_into(parts.mlp_norm);
  if (shape_of(layer).experts > 0) {
    expert_mlp(layer, in);
    add_mlp(layer, scratch_.mixed.data());
    return;
  }
  // The result may overwrite the norm: every product of gate and up is finished by then.
  float* y = shape_.divided ? scratch_.own.data() : scratch_.normed.data();
  float* x = parts.mlp_post_norm == nullptr && !shape_.divided ? scratch_.x.data() : nullptr;
  gated_mlp(layer, 0, in, y, padded(shape_.hidden), x);
  if (x == nullptr) add_mlp(layer, y);
}

// Gathers an MLP's outputs from all devices where they are divided, and adds them to the residual stream.
void Pass::add_mlp(int layer, float* y) {
  const LayerParts& parts = parts_of(layer);
  if (shape_.divided) {
    const int64_t stride = padded(shape_.hidden);
    gather(parts.mlps[0].first_matrix + 2, rows_, y, stride, scratch_.normed.data(), stride);
    y = scratch_.normed.data();
  }
  add_part(layer, y, parts.mlp_post_norm);
}

// y = down(activation(gate(x)) * up(x)) of one of a layer's MLPs, this device's outputs of it; added to the residual stream
// unless that is null.
void Pass::gated_mlp(int layer, int mlp, Input in, float* y, int64_t y_stride, float* residual) {
  const LayerParts& of_layer = parts_of(layer);
  const MlpParts& parts = of_layer.mlps[static_cast<size_t>(mlp)];
  const int64_t width = parts.width, stride = padded(width);
  float *gate = scratch_.gate.data(), *up = scratch_.up.data();
  const float scale = shape_of(layer).residual_scale;
  multiply(in, {{parts.first_matrix, gate, stride}, {parts.first_matrix + 1, up, stride}}, true,
           [&](int, int row, int64_t from, int64_t to) {
             float *gates = gate + row * stride, *ups = up + row * stride;
             for (int64_t o = from; parts.gate_bias != nullptr && o < to; ++o) gates[o] += parts.gate_bias[o];
             for (int64_t o = from; parts.up_bias != nullptr && o < to; ++o) ups[o] += parts.up_bias[o];
             of_layer.activate(gates + from, ups + from, to - from);
             // Something else may have been there, or a draft view have written past the end; the next product reads
             // zeros there.
             if (to == width) std::fill(gates + to, gates + stride, 0.0F);
           });
  Input inner{gate, stride, in.rows, in.efforts, in.first};
  if (shape_.divided) {
    inner.x = scratch_.all_inner.data();
    inner.stride = padded(parts.all_width);
    gather(parts.first_matrix, in.rows, gate, stride, scratch_.all_inner.data(), inner.stride);
  }
  multiply(inner, {{parts.first_matrix + 2, y, y_stride}}, false,
           [&](int, int row, int64_t from, int64_t to) {
             float* part = y + row * y_stride;
             for (int64_t o = from; parts.down_bias != nullptr && o < to; ++o) part[o] += parts.down_bias[o];
             for (int64_t o = from; residual != nullptr && o < to; ++o) residual[row * y_stride + o] += scale * part[o];
           });
}

}  // namespace specdec
