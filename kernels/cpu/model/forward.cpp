#include "forward.h"

#include <cmath>
#include <cstring>

namespace specdec {
namespace {

// Bytes of weights that one part of a region streams, about: enough for the hardware to find its stride, few enough
// for threads to finish together.
constexpr int64_t kPartBytes = 64 << 10;

// Scratch of one selection.
int64_t select_words(int64_t in, int64_t tiers) { return in * tiers; }

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

Pass::Pass(Model& model, int rows, KvCache& cache, DraftView* draft, const double* efforts)
    : model_(model),
      shape_(model.shape_),
      kernels_(model.kernels_),
      scratch_(model.scratch_),
      rows_(rows),
      cache_(cache),
      draft_(draft),
      efforts_(efforts),
      start_(cache.length) {
  allocate();
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
  const int64_t attention = attention_scratch_floats() + kMaxTile * (padded(shape_.head_dim) * 3 + 4);
  thread_floats_ = round_up(std::max({scratch_floats(rows_), attention, model_.quantised_scratch_floats(rows_)}), 16);
  s.thread.reserve(threads * static_cast<size_t>(thread_floats_));
  s.whole.reserve(static_cast<size_t>(3 * quant_words(widest / kQuantGroup + 1, rows_)));
  if (draft_ != nullptr || std::all_of(efforts_, efforts_ + shape_.matrix_count(), [](double e) { return e >= 1; }))
    return;
  s.offsets.reserve(3 * rows * static_cast<size_t>(widest));
  s.active.reserve(3 * static_cast<size_t>(widest));
  s.chosen_row.reserve(threads * static_cast<size_t>(widest));
  s.keys.reserve(threads * static_cast<size_t>(select_words(widest, tiers)));
}

uint64_t Pass::run(const int32_t* tokens, bool last_only, float* logits, int layers, float* states) {
  embed(tokens);
  rotary();
  for (int layer = 0; layer < layers; ++layer) {
    attention_block(layer);
    mlp_block(layer);
    const int64_t hidden = shape_.hidden;
    for (int64_t row = 0; states != nullptr && row < rows_; ++row, states += hidden)
      std::copy_n(scratch_.x.data() + row * padded(hidden), hidden, states);
  }
  head(last_only, logits);
  cache_.length += rows_;
  return bytes_;
}

uint64_t Pass::run_matrix(int index, const float* x, float* y) {
  const PackedMatrix& matrix = model_.matrix(index);
  const int64_t in_stride = padded(matrix.in), out_stride = padded(matrix.out);
  Buffer<float> rows(static_cast<size_t>(rows_ * in_stride)), results(static_cast<size_t>(rows_ * out_stride));
  for (int row = 0; row < rows_; ++row)
    std::copy(x + row * matrix.in, x + (row + 1) * matrix.in, rows.data() + row * in_stride);
  multiply({rows.data(), in_stride, rows_}, {{index, results.data(), out_stride}}, false,
           [&](int, int row, int64_t from, int64_t to) {
             const float* result = results.data() + row * out_stride;
             std::copy(result + from, result + to, y + row * matrix.out + from);
           });
  return bytes_;
}

void Pass::embed(const int32_t* tokens) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const PackedMatrix& head = model_.matrices_.back();
  const Model::QuantEmbedding& blocks = model_.quant_embedding_;
  each(rows_, rows_ * hidden * 4, [&](int row, int thread) {
    const int64_t token = tokens[row];
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
  bytes_ += static_cast<uint64_t>(rows_ * hidden) * sizeof(uint16_t);
}

// Cosines and sines of every row's position, from float64 angles: they depend on the position alone.
void Pass::rotary() {
  const int64_t half = shape_.head_dim / 2;
  each(rows_, rows_ * half * 100, [&](int row, int) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(start_ + row) * shape_.frequencies[static_cast<size_t>(j)];
      scratch_.cosine[static_cast<size_t>(row * half + j)] = static_cast<float>(std::cos(angle));
      scratch_.sine[static_cast<size_t>(row * half + j)] = static_cast<float>(std::sin(angle));
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
  multiply({scratch_.normed.data(), stride, rows_}, outputs, false, [&](int j, int row, int64_t from, int64_t to) {
    if (const float* bias = vectors.bias[j]) {
      float* y = outputs[static_cast<size_t>(j)].y + row * outputs[static_cast<size_t>(j)].stride;
      for (int64_t o = from; o < to; ++o) y[o] += bias[o];
    }
  });
  each(rows_, rows_ * (q + kv) * 4, [&](int row, int) { append_row(layer, row); });
  attend(layer);
  float* x = scratch_.x.data();
  const std::vector<Output> projected = {{first + 3, scratch_.normed.data(), stride}};
  multiply({scratch_.attended.data(), padded(q), rows_}, projected, false, [&](int, int row, int64_t from, int64_t to) {
    const float* y = scratch_.normed.data() + row * stride;
    for (int64_t o = from; o < to; ++o) x[row * stride + o] += y[o];
  });
}

// Norms and turns a row's queries and keys, and writes its keys and values to the cache.
void Pass::append_row(int layer, int row) {
  const auto& vectors = model_.layer_vectors_[static_cast<size_t>(layer)];
  const int64_t size = shape_.head_dim, half = size / 2, position = start_ + row;
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
    uint16_t* keys = cache_.keys(layer, h) + position / kPanel * size * kPanel + position % kPanel;
    for (int64_t first = 0; first < size; first += kPanel) {
      uint16_t bits[kPanel];
      const int64_t n = std::min<int64_t>(kPanel, size - first);
      kernels_.element.to_half(k + h * size + first, bits, n);
      for (int64_t d = 0; d < n; ++d) keys[(first + d) * kPanel] = bits[d];
    }
    kernels_.element.to_half(v + h * size, cache_.values(layer, h) + position * cache_.value_stride, size);
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
  gated_mlp(model_.layer_matrix(layer, 4), {scratch_.normed.data(), stride, rows_}, scratch_.normed.data(), stride);
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
  multiply({gate, stride, in.rows}, {{first_matrix + 2, y, y_stride}}, false, [](int, int, int64_t, int64_t) {});
}

// Experts in rising order, each over the rows that chose it; so a row's sum has one order, whoever shares its pass.
void Pass::expert_mlp(int layer) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const int experts = shape_.experts, chosen = shape_.experts_per_token;
  const PackedMatrix& router = model_.routers_[static_cast<size_t>(layer)];
  std::vector<float> weights(static_cast<size_t>(rows_ * experts)), logits(static_cast<size_t>(experts));
  std::vector<int> order(static_cast<size_t>(experts));
  for (int row = 0; row < rows_; ++row) {
    const DenseCall call = router.dense_call(scratch_.normed.data() + row * stride, RowTiles(1, 1), logits.data(),
                                             experts, thread_scratch(0));
    kernels_.dense.multiply(call, 0, router.panel_count());
    for (int e = 0; e < experts; ++e) order[static_cast<size_t>(e)] = e;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    double sum = 0;
    const double top = logits[static_cast<size_t>(order[0])];
    for (int k = 0; k < chosen; ++k) sum += std::exp(logits[static_cast<size_t>(order[static_cast<size_t>(k)])] - top);
    for (int k = 0; k < chosen; ++k) {
      const int e = order[static_cast<size_t>(k)];
      weights[static_cast<size_t>(row * experts + e)] =
          static_cast<float>(std::exp(logits[static_cast<size_t>(e)] - top) / sum);
    }
  }
  bytes_ += static_cast<uint64_t>(experts * hidden) * sizeof(uint16_t);
  std::vector<int> members;
  for (int e = 0; e < experts; ++e) {
    members.clear();
    for (int row = 0; row < rows_; ++row)
      if (weights[static_cast<size_t>(row * experts + e)] > 0) members.push_back(row);
    if (members.empty()) continue;
    const auto count = static_cast<int>(members.size());
    for (int j = 0; j < count; ++j)
      std::memcpy(scratch_.expert_in.data() + j * stride,
                  scratch_.normed.data() + members[static_cast<size_t>(j)] * stride, static_cast<size_t>(stride) * 4);
    gated_mlp(model_.layer_matrix(layer, 4 + 3 * e), {scratch_.expert_in.data(), stride, count},
              scratch_.expert_out.data(), stride);
    for (int j = 0; j < count; ++j) {
      const int row = members[static_cast<size_t>(j)];
      const float weight = weights[static_cast<size_t>(row * experts + e)];
      for (int64_t i = 0; i < hidden; ++i)
        scratch_.x[static_cast<size_t>(row * stride + i)] +=
            weight * scratch_.expert_out[static_cast<size_t>(j * stride + i)];
    }
  }
}

void Pass::head(bool last_only, float* logits) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  const int first = last_only ? rows_ - 1 : 0;
  const float* norm = model_.final_norm_;
  each(rows_ - first, (rows_ - first) * hidden * 2, [&](int j, int) {
    kernels_.element.rms_norm(scratch_.x.data() + (first + j) * stride, norm, shape_.norm_eps, hidden,
                              scratch_.normed.data() + (first + j) * stride);
  });
  const Input in{scratch_.normed.data() + first * stride, stride, rows_ - first};
  if (draft_ == nullptr) {
    multiply(in, {{model_.head_matrix(), logits, shape_.vocab}}, false, [](int, int, int64_t, int64_t) {});
    return;
  }
  const int64_t wide = padded(shape_.vocab);
  scratch_.logits.reserve(static_cast<size_t>(in.rows * wide));
  multiply(in, {{model_.head_matrix(), scratch_.logits.data(), wide}}, false, [&](int, int row, int64_t, int64_t) {
    std::memcpy(logits + row * shape_.vocab, scratch_.logits.data() + row * wide,
                static_cast<size_t>(shape_.vocab) * 4);
  });
}

template <class After>
void Pass::multiply(Input in, const std::vector<Output>& outputs, bool paired, const After& after) {
  if (draft_ != nullptr) {
    multiply_draft(in, outputs, paired, after);
    return;
  }
  const std::vector<Plan> plans = plan(in, outputs);
  // Every thread's share of the parts is a whole share of each matrix (see Pool::run), so that they finish together.
  // A pair of two kinds has no ranges that are finished in both.
  const bool joint = paired && plans[0].matrix->is_quantised() == plans[1].matrix->is_quantised();
  const size_t kinds = joint ? 1 : plans.size();
  const int threads = model_.pool_->threads();
  int share = 0;
  for (size_t j = 0; j < kinds; ++j) share += plans[j].parts;
  auto panels = [&](const Plan& p, int64_t first, int64_t last, float* scratch) {
    MaskedCall call = p.call;
    call.dense.scratch = scratch;
    if (p.masked)
      kernels_.dense.multiply_masked(call, first, last);
    else
      kernels_.dense.multiply(call.dense, first, last);
  };
  each(threads * share, static_cast<int64_t>(in.rows) * outputs.size() * plans[0].matrix->in * plans[0].matrix->out,
       [&](int part, int thread) {
         const int64_t owner = part / share;
         part %= share;
         size_t j = 0;
         for (; part >= plans[j].parts; ++j) part -= plans[j].parts;
         const Plan& p = plans[j];
         if (p.matrix->is_quantised()) {
           const QuantMatrix& matrix = p.matrix->quantised;
           const int tile = static_cast<int>(owner) * p.parts + part;
           if (tile >= matrix.tiles) return;
           for (size_t k = j; k < (joint ? plans.size() : j + 1); ++k)
             quantised_tile(plans[k], in, tile, thread_scratch(thread));
           const int64_t end = std::min(matrix.tile_start(tile + 1), matrix.out);
           for (int row = 0; row < in.rows && joint == paired; ++row)
             after(static_cast<int>(j), row, matrix.tile_start(tile), end);
           return;
         }
         const int64_t panels_in_all = p.matrix->panel_count(), end = panels_in_all * (owner + 1) / threads;
         const int64_t first = panels_in_all * owner / threads + part * p.group, last = std::min(first + p.group, end);
         if (first >= last) return;
         panels(p, first, last, thread_scratch(thread));
         for (size_t k = 1; joint && k < plans.size(); ++k) panels(plans[k], first, last, thread_scratch(thread));
         for (int row = 0; row < in.rows && joint == paired; ++row)
           after(static_cast<int>(j), row, first * kPanel, std::min(last * kPanel, p.matrix->out));
       });
  for (int row = 0; row < in.rows && joint != paired; ++row) after(0, row, int64_t{0}, plans[0].matrix->out);
}

template <class After>
void Pass::multiply_draft(Input in, const std::vector<Output>& outputs, bool paired, const After& after) {
  const auto count = static_cast<int>(outputs.size());
  int matrices[3];
  float efforts[3];
  for (int j = 0; j < count; ++j) {
    matrices[j] = outputs[static_cast<size_t>(j)].matrix;
    efforts[j] = static_cast<float>(efforts_[matrices[j]]);
  }
  for (int row = 0; row < in.rows; ++row) {
    float* y[3];
    for (int j = 0; j < count; ++j)
      y[j] = outputs[static_cast<size_t>(j)].y + row * outputs[static_cast<size_t>(j)].stride;
    bytes_ += draft_->multiply(*model_.pool_, count, matrices, in.x + row * in.stride, efforts, y);
    for (int j = 0; j < (paired ? 1 : count); ++j) after(j, row, int64_t{0}, model_.matrix(matrices[j]).out);
  }
}

std::vector<Pass::Plan> Pass::plan(Input in, const std::vector<Output>& outputs) {
  const RowTiles tiles(in.rows, kernels_.dense.max_tile);
  std::vector<Plan> plans;
  bool masked = false;
  const float* x = nullptr;
  const int32_t* whole = nullptr;  // of every input
  for (const Output& output : outputs) {
    const PackedMatrix& matrix = model_.matrix(output.matrix);
    if (matrix.is_quantised()) {
      const QuantMatrix& quantised = matrix.quantised;
      const double effort = efforts_[output.matrix];
      const int threads = model_.pool_->threads();
      Plan p{&matrix, {}, false, 0, (quantised.tiles + threads - 1) / threads};
      p.call.dense.tiles = tiles;
      p.call.dense.y = output.y;
      p.call.dense.y_stride = output.stride;
      const bool known = effort >= 1 && whole != nullptr;
      p.whole = known ? whole : to_whole(in, quantised, effort, static_cast<int64_t>(plans.size()));
      if (effort >= 1) whole = p.whole;
      plans.push_back(p);
      continue;
    }
    if (x == nullptr) x = to_tiles(in, matrix.in, tiles);
    // A few rows go through two panels side by side.
    const int64_t group = std::max<int64_t>(2, kPartBytes / (matrix.in * matrix.line() * 2) / 2 * 2);
    const int64_t threads = model_.pool_->threads(), share = (matrix.panel_count() + threads - 1) / threads;
    Plan p{&matrix, {}, efforts_[output.matrix] < 1, group, static_cast<int>((share + group - 1) / group)};
    p.call.dense = matrix.dense_call(x, tiles, output.y, output.stride);
    masked |= p.masked;
    plans.push_back(p);
  }
  if (masked) choose(in, plans);
  for (size_t j = 0; j < plans.size(); ++j) {
    const Plan& p = plans[j];
    if (p.matrix->is_quantised()) {
      bytes_ += p.matrix->quantised.bytes();
      continue;
    }
    const int64_t lines = p.matrix->panel_count() * (p.masked ? p.call.active_count : p.matrix->in);
    const int64_t line_bytes = p.matrix->line() * 2 + (p.masked ? 4 * (p.matrix->tiers - 1) : 0);
    bytes_ += static_cast<uint64_t>(lines * line_bytes);
  }
  return plans;
}

// Fills in what effort chooses for every row and output whose effort is below 1.
void Pass::choose(Input in, std::vector<Plan>& plans) {
  const int64_t width = plans[0].matrix->in;
  const RowTiles tiles = plans[0].call.dense.tiles;
  const auto& sizes = shape_.layout.tier_sizes;
  const int64_t keys_words = select_words(width, shape_.layout.tiers());
  const auto count = static_cast<int>(plans.size());
  each(in.rows * count, in.rows * count * width * shape_.layout.tiers() * 10, [&](int part, int thread) {
    const int j = part / in.rows, row = part % in.rows;
    const Plan& p = plans[static_cast<size_t>(j)];
    if (!p.masked) return;
    uint8_t* chosen = scratch_.chosen_row.data() + thread * width;
    uint32_t* keys = scratch_.keys.data() + thread * keys_words;
    const double effort = efforts_[p.matrix - model_.matrices_.data()];
    kernels_.select({width, p.matrix->tiers, sizes.data(), in.x + row * in.stride, p.matrix->scores.data(),
                     weights_to_take(effort, width * shape_.layout.bucket_size), chosen, keys});
    int tile = 0;
    while (row >= tiles.start(tile + 1)) ++tile;
    const int64_t size = tiles.size(tile);
    int32_t* to = scratch_.offsets.data() + (j * in.rows + tiles.start(tile)) * width + (row - tiles.start(tile));
    for (int64_t i = 0; i < width; ++i) to[i * size] = mask_offset(i, chosen[i], p.matrix->tiers);
  });
  each(count, in.rows * count * width, [&](int j, int) {
    Plan& p = plans[static_cast<size_t>(j)];
    if (!p.masked) return;
    const int32_t* offsets = scratch_.offsets.data() + j * in.rows * width;
    int32_t* active = scratch_.active.data() + j * width;
    // Lines read one after another come faster than half of them with gaps; an input that no row takes adds nothing.
    const bool most = efforts_[p.matrix - model_.matrices_.data()] > 0.5;
    int64_t found = most ? width : 0;
    for (int64_t i = 0; i < width && !most; ++i) {
      int32_t any = 0;
      for (int t = 0; t < tiles.count; ++t) {
        const int32_t* row = offsets + tiles.start(t) * width + i * tiles.size(t);
        for (int r = 0; r < tiles.size(t); ++r) any |= row[r];
      }
      active[found] = static_cast<int32_t>(i);
      found += any != 0;
    }
    if (found * 2 > width) {
      for (found = 0; found < width; ++found) active[found] = static_cast<int32_t>(found);
    }
    p.call = MaskedCall{p.call.dense, p.matrix->tiers, p.matrix->masks.data(), offsets, active, found};
  });
}

// One row is its own tile.
const float* Pass::to_tiles(Input in, int64_t width, RowTiles tiles) {
  if (in.rows == 1) return in.x;
  constexpr int64_t kPart = 512;
  const auto pieces = static_cast<int>((width + kPart - 1) / kPart);
  each(tiles.count * pieces, in.rows * width * 4, [&](int part, int) {
    const int tile = part / pieces, size = tiles.size(tile);
    const int64_t first = part % pieces * kPart, last = std::min(first + kPart, width);
    const float* from = in.x + tiles.start(tile) * in.stride;
    float* to = scratch_.tiles.data() + tiles.start(tile) * width;
    for (int64_t i = first; i < last; ++i)
      for (int r = 0; r < size; ++r) to[i * size + r] = from[r * in.stride + i];
  });
  return scratch_.tiles.data();
}

}  // namespace specdec
