// The blocks of a layer: attention but for its sums (attention.cpp), and an MLP that is not a mixture (experts.cpp).
#include <algorithm>
#include <cmath>

#include "lines.h"
#include "multiply.h"

namespace specdec {

// The residual stream, normed unless `weight` is null.
Pass::Input Pass::norm_into(const float* weight) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  if (weight == nullptr) return rows_of(scratch_.x.data(), stride);
  if (rows_ <= 8) ask_for(scratch_.x.data(), static_cast<size_t>(rows_ * stride) * sizeof(float));
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
  if (!heads_finish_early(layer))
    each(rows_, rows_ * (q + shape.kv_width()) * 4, [&](int row, int) { append_row(layer, row); });
  attend(layer);
  const bool added = parts.attn_post_norm == nullptr && !shape_.divided;
  float *x = scratch_.x.data(), *y = shape_.divided ? scratch_.own.data() : scratch_.normed.data();
  const float *bias = parts.o_bias, scale = shape.residual_scale;
  const Outputs outputs = {{parts.o_matrix, y, stride}};
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
  const Outputs outputs = {{parts.q_matrix, scratch_.qkv[0].data(), q},
                                       {parts.q_matrix + 1, scratch_.qkv[1].data(), kv},
                                       {parts.q_matrix + 2, scratch_.qkv[2].data(), kv}};
  const bool early = heads_finish_early(layer);
  if (early) count_heads(layer);
  multiply(in, outputs, false, [&](int j, int row, int64_t from, int64_t to) {
    if (const float* bias = parts.bias[j]) {
      float* y = outputs[static_cast<size_t>(j)].y + row * outputs[static_cast<size_t>(j)].stride;
      for (int64_t o = from; o < to; ++o) y[o] += bias[o];
    }
    if (early) finish_heads(layer, j, row, from, to);
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

// Whether heads of queries, keys and values are finished one by one, by the threads that multiply. Norms over all heads
// have to wait. With many rows each row is finished as a whole.
bool Pass::heads_finish_early(int layer) const {
  constexpr int kMostRows = 16;
  return rows_ <= kMostRows && shape_of(layer).qk_norm != QkNorm::full;
}

// Sets how many outputs of each row's heads of queries, keys and values are still to come.
void Pass::count_heads(int layer) {
  const LayerShape& shape = shape_of(layer);
  const auto count = static_cast<size_t>(rows_) * static_cast<size_t>(shape.heads + 2 * shape.kv_heads);
  if (scratch_.head_room < count) {
    scratch_.head_outputs = std::make_unique<std::atomic<int>[]>(count);
    scratch_.head_room = count;
  }
  for (size_t j = 0; j < count; ++j) scratch_.head_outputs[j].store(shape.head_dim, std::memory_order_relaxed);
}

// Outputs [from, to) of a row's queries (0), keys (1) or values (2) are there: finishes the heads that this completes.
void Pass::finish_heads(int layer, int which, int row, int64_t from, int64_t to) {
  const LayerShape& shape = shape_of(layer);
  const int64_t size = shape.head_dim;
  const int before = which == 0 ? 0 : shape.heads + (which - 1) * shape.kv_heads;
  std::atomic<int>* left = scratch_.head_outputs.get() + row * (shape.heads + 2 * shape.kv_heads) + before;
  for (int64_t head = from / size; head * size < to; ++head) {
    const auto found = static_cast<int>(std::min(to, (head + 1) * size) - std::max(from, head * size));
    if (found < size && left[head].fetch_sub(found, std::memory_order_acq_rel) != found) continue;
    finish_head(layer, which, row, static_cast<int>(head));
  }
}

// Norms and turns a head of a row's queries or keys; writes keys and values to the cache.
void Pass::finish_head(int layer, int which, int row, int head) {
  const LayerShape& shape = shape_of(layer);
  const LayerParts& parts = parts_of(layer);
  const int64_t size = shape.head_dim, stride = padded(which == 0 ? shape.q_width() : shape.kv_width());
  float* x = scratch_.qkv[which].data() + row * stride + head * size;
  if (which < 2) {
    const float* weight = which == 0 ? parts.q_norm : parts.k_norm;
    if (shape.qk_norm == QkNorm::head) kernels_.element.rms_norm(x, weight, shape_.norm_eps, size, x);
    turn(parts, row, x, 1, size);
  }
  if (which == 0 && shape.growth != 0) {
    const int64_t spans = scratch_.positions[static_cast<size_t>(row)] / shape.growth_span;
    const auto factor = static_cast<float>(1 + shape.growth * std::log(1 + static_cast<double>(spans)));
    for (int64_t i = 0; i < size; ++i) x[i] *= factor;
  }
  if (which == 1) append_key(layer, row, head, x);
  if (which == 2) append_value(layer, row, head, x);
}

// The same of all heads of a row.
void Pass::append_row(int layer, int row) {
  const LayerShape& shape = shape_of(layer);
  const LayerParts& parts = parts_of(layer);
  if (shape.qk_norm == QkNorm::full && !shape_.divided) {
    auto norm = [&](int which, const float* weight, int64_t width) {
      float* x = scratch_.qkv[which].data() + row * padded(width);
      kernels_.element.rms_norm(x, weight, shape_.norm_eps, width, x);
    };
    norm(0, parts.q_norm, shape.q_width());
    norm(1, parts.k_norm, shape.kv_width());
  }
  for (int which = 0; which < 3; ++which)
    for (int head = 0; head < (which == 0 ? shape.heads : shape.kv_heads); ++head) finish_head(layer, which, row, head);
}

// Place of a row's keys of a head in the cache, or of its values.
struct Pass::CachePlace {
  const CacheShape& shape;
  const CacheShape::Layer& layer;
  uint8_t* keys;
  int64_t place;  // within the chunk
};

Pass::CachePlace Pass::cache_place(int layer, int row, int head) const {
  const Sequence& s = sequences_[static_cast<size_t>(scratch_.sequence_of[static_cast<size_t>(row)])];
  const KvCache& cache = *s.given->cache;
  const int64_t slot = s.start + row - s.first;
  return {cache.shape(), cache.shape().layer(layer), cache.keys(layer, head, slot / kChunk), slot % kChunk};
}

void Pass::append_key(int layer, int row, int head, const float* key) {
  const CachePlace at = cache_place(layer, row, head);
  const int64_t size = shape_of(layer).head_dim;
  if (at.shape.single()) {
    for (int64_t d = 0; d < size; ++d) reinterpret_cast<float*>(at.keys)[CacheShape::key_at(at.layer, at.place, d)] = key[d];
    return;
  }
  for (int64_t first = 0; first < size; first += kPanel) {
    uint16_t bits[kPanel];
    const int64_t n = std::min<int64_t>(kPanel, size - first);
    kernels_.element.to_half(key + first, bits, n);
    for (int64_t d = 0; d < n; ++d)
      reinterpret_cast<uint16_t*>(at.keys)[CacheShape::key_at(at.layer, at.place, first + d)] = bits[d];
  }
}

void Pass::append_value(int layer, int row, int head, const float* value) {
  const CachePlace at = cache_place(layer, row, head);
  const int64_t size = shape_of(layer).head_dim, first = at.place * at.layer.value_stride;
  uint8_t* values = at.shape.values_of(at.layer, at.keys);
  if (at.shape.single())
    std::copy_n(value, size, reinterpret_cast<float*>(values) + first);
  else
    kernels_.element.to_half(value, reinterpret_cast<uint16_t*>(values) + first, size);
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
