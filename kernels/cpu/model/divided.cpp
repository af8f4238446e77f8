// What a pass adds where the outputs of every matrix are divided among devices: each computes its own, in the order of sums
// that one device has, and rows are put together before they are multiplied again. No sum crosses a device.
#include <cstring>

#include "multiply.h"

namespace specdec {

// The parts of all devices of rows that have as many values as `matrix` has outputs, or of embeddings; zeros up to the
// stride, which the next product reads.
void Pass::gather(int matrix, int rows, const float* own, int64_t own_stride, float* all, int64_t stride,
                  const int32_t* tokens) {
  const int64_t width = model_.whole_width(matrix);
  const int64_t own_width = matrix < 0 ? width : model_.matrix(matrix).out;
  if (shape_.staged && matrix >= 0 && matrix != model_.head_matrix())
    for (int row = 0; row < rows; ++row) std::copy_n(own + row * own_stride, width, all + row * stride);
  else
    model_.gather_({matrix, rows, own, own_width, own_stride, all, width, stride, tokens});
  for (int row = 0; row < rows && width < stride; ++row) std::fill_n(all + row * stride + width, stride - width, 0.0F);
}

// Embeddings of tokens that other devices hold.
void Pass::gather_embeddings() {
  const int64_t stride = padded(shape_.hidden);
  scratch_.tokens.clear();
  for (const Sequence& s : sequences_)
    scratch_.tokens.insert(scratch_.tokens.end(), s.given->tokens, s.given->tokens + s.rows);
  float* own = scratch_.normed.data();
  std::memcpy(own, scratch_.x.data(), static_cast<size_t>(rows_ * stride) * sizeof(float));
  gather(kEmbeddings, rows_, own, stride, scratch_.x.data(), stride, scratch_.tokens.data());
}

// Rows behind the last layer that this device has; all have run through all of them.
void Pass::leave() {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  float* x = scratch_.x.data();
  model_.gather_({kLeaving, all_rows_, x, hidden, stride, x, hidden, stride, nullptr});
}

// Norms over all heads of a layer's queries and keys.
void Pass::norm_whole(int layer) {
  const LayerShape& shape = shape_of(layer);
  const LayerParts& parts = parts_of(layer);
  const int64_t size = shape.head_dim;
  auto norm = [&](int which, const float* weight, int64_t own_width, int64_t width, int64_t first) {
    const int64_t own_stride = padded(own_width), stride = padded(width);
    float *own = scratch_.qkv[which].data(), *all = scratch_.all_inner.data();
    gather(parts.q_matrix + which, rows_, own, own_stride, all, stride);
    each(rows_, rows_ * width * 2, [&](int row, int) {
      float* x = all + row * stride;
      kernels_.element.rms_norm(x, weight, shape_.norm_eps, width, x);
      std::copy_n(x + first, own_width, own + row * own_stride);
    });
  };
  norm(0, parts.q_norm, shape.q_width(), shape.all_q_width(), shape.first_head * size);
  norm(1, parts.k_norm, shape.kv_width(), shape.all_kv_width(), shape.first_kv_head * size);
}

// What attention returns for every row, of all heads.
Pass::Input Pass::attended(int layer) {
  const LayerShape& shape = shape_of(layer);
  const int64_t own_stride = padded(shape.q_width()), stride = padded(shape.all_q_width());
  if (!shape_.divided) return rows_of(scratch_.attended.data(), own_stride);
  gather(parts_of(layer).q_matrix, rows_, scratch_.attended.data(), own_stride, scratch_.all_attended.data(), stride);
  return rows_of(scratch_.all_attended.data(), stride);
}

// Logits of all tokens for the rows that are shown, which lie one below the other.
void Pass::divided_head(int rows) {
  const int64_t wide = padded(shape_.tokens()), stride = padded(shape_.hidden);
  scratch_.logits.reserve(static_cast<size_t>(rows * std::max<int64_t>(wide, 1)));
  float* own = scratch_.logits.data();
  if (shape_.scores)
    multiply({scratch_.normed.data(), stride, rows, scratch_.head_efforts.data()}, {{model_.head_matrix(), own, wide}}, false,
             [&](int, int row, int64_t from, int64_t to) { finish_logits(own + row * wide + from, to - from); });
  gather(model_.head_matrix(), rows, own, wide, scratch_.shown[0].logits, shape_.vocab);
}

}  // namespace specdec
