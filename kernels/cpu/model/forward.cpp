#include "forward.h"

#include <cmath>
#include <cstring>

#include "multiply.h"

namespace specdec {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

bool is_chain(const SequenceRows& rows) {
  for (int row = 0; rows.parents != nullptr && row < rows.rows; ++row)
    if (rows.parents[row] != row - 1) return false;
  return true;
}

}  // namespace

Pass::Pass(Model& model, std::vector<SequenceRows>& batch, DraftView* draft)
    : model_(model),
      shape_(model.shape_),
      kernels_(model.kernels_),
      scratch_(model.scratch_),
      batch_(batch),
      sequences_(model.scratch_.sequences),
      draft_(draft) {
  place_rows();
  allocate();
}

void Pass::place_rows() {
  sequences_.clear();
  for (SequenceRows& given : batch_) {
    const int64_t start = given.cache == nullptr ? 0 : given.cache->length();
    Sequence s{};
    s.given = &given;
    s.rows = given.rows;
    s.layers = given.layers == 0 ? shape_.layers : given.layers;
    s.start = start;
    s.tree = !is_chain(given);
    given.bytes = 0;
    sequences_.push_back(s);
  }
  if (sequences_.size() > 1)
    std::stable_sort(sequences_.begin(), sequences_.end(),
                     [](const Sequence& a, const Sequence& b) { return a.layers > b.layers; });
  scratch_.sequence_of.clear();
  scratch_.positions.clear();
  scratch_.efforts.clear();
  const double* known = nullptr;
  for (size_t j = 0; j < sequences_.size(); ++j) {
    Sequence& s = sequences_[j];
    s.first = all_rows_;
    s.last = s.start;
    for (int row = 0; row < s.rows; ++row) {
      int64_t position = s.start + row;
      if (s.tree) {
        const int parent = s.given->parents[row];
        position = parent < 0 ? s.start : scratch_.positions[static_cast<size_t>(s.first + parent)] + 1;
      }
      s.last = std::max(s.last, position);
      scratch_.positions.push_back(position);
      scratch_.sequence_of.push_back(static_cast<int32_t>(j));
      scratch_.efforts.push_back(s.given->efforts);
    }
    all_rows_ += s.rows;
    if (s.given->efforts != known && full_)
      full_ = std::all_of(s.given->efforts, s.given->efforts + shape_.matrix_count(), [](double e) { return e >= 1; });
    known = s.given->efforts;
  }
  rows_ = all_rows_;
  active_ = sequences_.size();
}

void Pass::allocate() {
  const auto rows = static_cast<size_t>(rows_);
  const int64_t q = padded(int64_t{shape_.heads} * shape_.head_dim), hidden = padded(shape_.hidden);
  const int64_t inner = padded(shape_.intermediate), kv = padded(int64_t{shape_.kv_heads} * shape_.head_dim);
  const int64_t widest = std::max({q, hidden, inner}), tiers = shape_.layout.tiers();
  auto& s = scratch_;
  for (auto* buffer : {&s.x, &s.normed}) buffer->reserve(rows * static_cast<size_t>(hidden));
  for (auto* buffer : {&s.qkv[0], &s.attended}) buffer->reserve(rows * static_cast<size_t>(q));
  for (auto* buffer : {&s.qkv[1], &s.qkv[2]}) buffer->reserve(rows * static_cast<size_t>(kv));
  for (auto* buffer : {&s.gate, &s.up}) buffer->reserve(rows * static_cast<size_t>(inner));
  if (shape_.experts > 0) {
    for (auto* buffer : {&s.expert_in, &s.expert_out}) buffer->reserve(rows * static_cast<size_t>(hidden));
  }
  for (auto* buffer : {&s.cosine, &s.sine}) buffer->reserve(rows * static_cast<size_t>(shape_.head_dim / 2));
  s.tiles.reserve(rows * static_cast<size_t>(widest));
  const auto threads = static_cast<size_t>(model_.pool_->threads());
  const int64_t attention = attention_scratch_floats() + kMaxTile * (padded(shape_.head_dim) * 3 + 4) + tree_floats();
  thread_floats_ = round_up(std::max({scratch_floats(rows_), attention, model_.quantised_scratch_floats(rows_)}), 16);
  s.thread.reserve(threads * static_cast<size_t>(thread_floats_));
  s.whole.reserve(static_cast<size_t>(3 * quant_words(widest / kQuantGroup + 1, rows_)));
  if (draft_ != nullptr || full_) return;
  s.offsets.reserve(3 * rows * static_cast<size_t>(widest));
  s.active.reserve(3 * static_cast<size_t>(widest));
  s.chosen_row.reserve(threads * static_cast<size_t>(widest));
  s.keys.reserve(threads * static_cast<size_t>(widest * tiers));
}

void Pass::run(float* logits) {
  embed();
  rotary();
  for (int layer = 0; layer < sequences_[0].layers; ++layer) {
    narrow_to(layer + 1);
    attention_block(layer);
    mlp_block(layer);
    keep_states(layer);
  }
  share_bytes();
  head(logits);
}

// Leaves the rows of sequences that run through fewer layers than `layers`, which come last.
void Pass::narrow_to(int layers) {
  if (sequences_[active_ - 1].layers >= layers) return;
  share_bytes();
  while (sequences_[active_ - 1].layers < layers) rows_ = sequences_[--active_].first;
}

// Shares what the present rows have read among their sequences, by their numbers.
void Pass::share_bytes() {
  const auto rows = static_cast<uint64_t>(rows_);
  for (size_t j = 0; j < active_; ++j) {
    const Sequence& s = sequences_[j];
    const auto first = static_cast<uint64_t>(s.first), last = first + static_cast<uint64_t>(s.rows);
    s.given->bytes += shared_bytes_ * last / rows - shared_bytes_ * first / rows;
  }
  shared_bytes_ = 0;
}

void Pass::keep_states(int layer) {
  const int64_t hidden = shape_.hidden;
  for (size_t j = 0; j < active_; ++j) {
    const Sequence& s = sequences_[j];
    for (int64_t row = 0; s.given->states != nullptr && row < s.rows; ++row)
      std::copy_n(scratch_.x.data() + (s.first + row) * padded(hidden), hidden,
                  s.given->states + (layer * s.rows + row) * hidden);
  }
}

void Pass::run_matrix(int index, const float* x, float* y) {
  const PackedMatrix& matrix = model_.matrix(index);
  const int64_t in_stride = padded(matrix.in), out_stride = padded(matrix.out);
  Buffer<float> rows(static_cast<size_t>(rows_ * in_stride)), results(static_cast<size_t>(rows_ * out_stride));
  for (int row = 0; row < rows_; ++row)
    std::copy(x + row * matrix.in, x + (row + 1) * matrix.in, rows.data() + row * in_stride);
  multiply(rows_of(rows.data(), in_stride), {{index, results.data(), out_stride}}, false,
           [&](int, int row, int64_t from, int64_t to) {
             const float* result = results.data() + row * out_stride;
             std::copy(result + from, result + to, y + row * matrix.out + from);
           });
  share_bytes();
}

void Pass::embed() {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const PackedMatrix& head = model_.matrices_.back();
  const Model::QuantEmbedding& blocks = model_.quant_embedding_;
  each(rows_, rows_ * hidden * 4, [&](int row, int thread) {
    const Sequence& s = sequences_[static_cast<size_t>(scratch_.sequence_of[static_cast<size_t>(row)])];
    const int64_t token = s.given->tokens[row - s.first];
    const uint16_t* bits = model_.embedding_.data() + token * hidden;
    float* x = scratch_.x.data() + row * stride;
    if (shape_.tie_embeddings && head.is_quantised()) {
      head.quantised.row(token, x);
    } else if (!blocks.codes.empty()) {
      dequantise_row(blocks.type, blocks.source(), hidden, token, x);
    } else if (shape_.tie_embeddings) {
      auto* gathered = reinterpret_cast<uint16_t*>(thread_scratch(thread));
      for (int64_t first = 0; first < hidden; first += kBlock) {
        const int64_t n = std::min<int64_t>(kBlock, hidden - first);
        uint16_t line[kPanel];
        for (int64_t i = 0; i < n; ++i)
          gathered[i] = head.whole_line(token / kPanel, first + i, line)[token % kPanel];
        kernels_.element.widen(gathered, shape_.dtype, n, x + first);
      }
    } else {
      kernels_.element.widen(bits, shape_.dtype, hidden, x);
    }
  });
  shared_bytes_ += static_cast<uint64_t>(rows_ * hidden) * sizeof(uint16_t);
}

// Cosines and sines of every row's position, from float64 angles: they depend on the position alone.
void Pass::rotary() {
  const int64_t half = shape_.head_dim / 2;
  const double factor = shape_.rotary_factor;
  each(rows_, rows_ * half * 100, [&](int row, int) {
    const auto position = static_cast<double>(scratch_.positions[static_cast<size_t>(row)]);
    for (int64_t j = 0; j < half; ++j) {
      const double angle = position * shape_.frequencies[static_cast<size_t>(j)];
      scratch_.cosine[static_cast<size_t>(row * half + j)] = static_cast<float>(std::cos(angle) * factor);
      scratch_.sine[static_cast<size_t>(row * half + j)] = static_cast<float>(std::sin(angle) * factor);
    }
  });
}

void Pass::attention_block(int layer) {
  const auto& vectors = model_.layer_vectors_[static_cast<size_t>(layer)];
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const int64_t q = int64_t{shape_.heads} * shape_.head_dim, kv = int64_t{shape_.kv_heads} * shape_.head_dim;
  each(rows_, rows_ * hidden * 2, [&](int row, int) {
    kernels_.element.rms_norm(scratch_.x.data() + row * stride, vectors.attn_norm, shape_.norm_eps, hidden,
                              scratch_.normed.data() + row * stride);
  });
  const int first = model_.layer_matrix(layer, 0);
  const std::vector<Output> outputs = {{first, scratch_.qkv[0].data(), padded(q)},
                                       {first + 1, scratch_.qkv[1].data(), padded(kv)},
                                       {first + 2, scratch_.qkv[2].data(), padded(kv)}};
  multiply(rows_of(scratch_.normed.data(), stride), outputs, false, [&](int j, int row, int64_t from, int64_t to) {
    if (const float* bias = vectors.bias[j]) {
      float* y = outputs[static_cast<size_t>(j)].y + row * outputs[static_cast<size_t>(j)].stride;
      for (int64_t o = from; o < to; ++o) y[o] += bias[o];
    }
  });
  each(rows_, rows_ * (q + kv) * 4, [&](int row, int) { append_row(layer, row); });
  attend(layer);
  float* x = scratch_.x.data();
  const std::vector<Output> projected = {{first + 3, scratch_.normed.data(), stride}};
  multiply(rows_of(scratch_.attended.data(), padded(q)), projected, false,
           [&](int, int row, int64_t from, int64_t to) {
             const float* y = scratch_.normed.data() + row * stride;
             for (int64_t o = from; o < to; ++o) x[row * stride + o] += y[o];
           });
}

// Norms and turns a row's queries and keys, and writes its keys and values to the cache.
void Pass::append_row(int layer, int row) {
  const auto& vectors = model_.layer_vectors_[static_cast<size_t>(layer)];
  const Sequence& s = sequences_[static_cast<size_t>(scratch_.sequence_of[static_cast<size_t>(row)])];
  const KvCache& cache = *s.given->cache;
  const int64_t size = shape_.head_dim, half = size / 2;
  const int64_t slot = s.start + row - s.first, chunk = slot / kChunk, place = slot % kChunk;
  const int64_t kv_stride = padded(shape_.kv_heads * size);
  float* q = scratch_.qkv[0].data() + row * padded(shape_.heads * size);
  float* k = scratch_.qkv[1].data() + row * kv_stride;
  const float* v = scratch_.qkv[2].data() + row * kv_stride;
  if (vectors.q_norm != nullptr) {
    for (int h = 0; h < shape_.heads; ++h)
      kernels_.element.rms_norm(q + h * size, vectors.q_norm, shape_.norm_eps, size, q + h * size);
    for (int h = 0; h < shape_.kv_heads; ++h)
      kernels_.element.rms_norm(k + h * size, vectors.k_norm, shape_.norm_eps, size, k + h * size);
  }
  const float* cosine = scratch_.cosine.data() + row * half;
  const float* sine = scratch_.sine.data() + row * half;
  kernels_.element.rope(q, shape_.heads, size, cosine, sine);
  kernels_.element.rope(k, shape_.kv_heads, size, cosine, sine);
  for (int h = 0; h < shape_.kv_heads; ++h) {
    uint16_t* keys = cache.keys(layer, h, chunk) + place / kPanel * size * kPanel + place % kPanel;
    for (int64_t first = 0; first < size; first += kPanel) {
      uint16_t bits[kPanel];
      const int64_t n = std::min<int64_t>(kPanel, size - first);
      kernels_.element.to_half(k + h * size + first, bits, n);
      for (int64_t d = 0; d < n; ++d) keys[(first + d) * kPanel] = bits[d];
    }
    kernels_.element.to_half(v + h * size, cache.values(layer, h, chunk) + place * cache.value_stride, size);
  }
}

void Pass::mlp_block(int layer) {
  const auto& vectors = model_.layer_vectors_[static_cast<size_t>(layer)];
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  each(rows_, rows_ * hidden * 2, [&](int row, int) {
    kernels_.element.rms_norm(scratch_.x.data() + row * stride, vectors.mlp_norm, shape_.norm_eps, hidden,
                              scratch_.normed.data() + row * stride);
  });
  if (shape_.experts > 0) {
    expert_mlp(layer);
    return;
  }
  // The result may overwrite the norm: every product of gate and up is finished by then.
  gated_mlp(model_.layer_matrix(layer, 4), rows_of(scratch_.normed.data(), stride), scratch_.normed.data(), stride);
  each(rows_, rows_ * hidden, [&](int row, int) {
    float* x = scratch_.x.data() + row * stride;
    const float* y = scratch_.normed.data() + row * stride;
    for (int64_t i = 0; i < hidden; ++i) x[i] += y[i];
  });
}

// y = down(silu(gate(x)) * up(x)) for the three matrices from `first_matrix` on.
void Pass::gated_mlp(int first_matrix, Input in, float* y, int64_t y_stride) {
  const int64_t stride = padded(shape_.intermediate);
  float *gate = scratch_.gate.data(), *up = scratch_.up.data();
  multiply(in, {{first_matrix, gate, stride}, {first_matrix + 1, up, stride}}, true,
           [&](int, int row, int64_t from, int64_t to) {
             kernels_.element.silu_mul(gate + row * stride + from, up + row * stride + from, to - from);
             // A draft view may have written past the end; its next product reads zeros there.
             if (to == shape_.intermediate) std::fill(gate + row * stride + to, gate + (row + 1) * stride, 0.0F);
           });
  multiply({gate, stride, in.rows, in.efforts}, {{first_matrix + 2, y, y_stride}}, false,
           [](int, int, int64_t, int64_t) {});
}

// Logits of the rows that ask for them, in the order of the batch.
void Pass::head(float* logits) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  std::vector<int> shown;
  scratch_.head_efforts.clear();
  for (const SequenceRows& given : batch_) {
    size_t j = 0;
    while (sequences_[j].given != &given) ++j;
    const Sequence& s = sequences_[j];
    for (int row = s.rows - given.shown_rows(); row < s.rows; ++row) {
      shown.push_back(s.first + row);
      scratch_.head_efforts.push_back(given.efforts);
    }
  }
  const auto rows = static_cast<int>(shown.size());
  if (rows == 0) return;
  each(rows, rows * hidden * 2, [&](int j, int) {
    kernels_.element.rms_norm(scratch_.x.data() + shown[static_cast<size_t>(j)] * stride, model_.final_norm_,
                              shape_.norm_eps, hidden, scratch_.normed.data() + j * stride);
  });
  const int64_t wide = padded(shape_.vocab);
  if (draft_ == nullptr)
    multiply({scratch_.normed.data(), stride, rows, scratch_.head_efforts.data()},
             {{model_.head_matrix(), logits, shape_.vocab}}, false, [](int, int, int64_t, int64_t) {});
  else
    scratch_.logits.reserve(static_cast<size_t>(std::min(rows, kDraftRows) * wide));
  for (int first = 0; draft_ != nullptr && first < rows; first += kDraftRows) {
    const int count = std::min(kDraftRows, rows - first);
    multiply({scratch_.normed.data() + first * stride, stride, count, scratch_.head_efforts.data() + first},
             {{model_.head_matrix(), scratch_.logits.data(), wide}}, false, [&](int, int row, int64_t, int64_t) {
               std::memcpy(logits + (first + row) * shape_.vocab, scratch_.logits.data() + row * wide,
                           static_cast<size_t>(shape_.vocab) * 4);
             });
  }
  uint64_t before = 0;
  for (SequenceRows& given : batch_) {
    const uint64_t after = before + static_cast<uint64_t>(given.shown_rows()), all = static_cast<uint64_t>(rows);
    given.bytes += shared_bytes_ * after / all - shared_bytes_ * before / all;
    before = after;
  }
}

}  // namespace specdec
