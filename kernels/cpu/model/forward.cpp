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

Pass::Pass(Model& model, std::vector<SequenceRows>& batch, DraftView* draft, Choice choice)
    : model_(model),
      shape_(model.shape_),
      kernels_(model.kernels_),
      scratch_(model.scratch_),
      batch_(batch),
      sequences_(model.scratch_.sequences),
      draft_(draft),
      choice_(choice) {
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
    s.layers = given.layers == 0 ? shape_.layer_count() : given.layers;
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
      full_ = std::all_of(s.given->efforts, s.given->efforts + model_.matrices_.size(), [](double e) { return e >= 1; });
    known = s.given->efforts;
  }
  rows_ = all_rows_;
  active_ = sequences_.size();
}

int64_t Pass::largest_head() const {
  int64_t size = 0;
  for (const LayerShape& layer : shape_.layers) size = std::max<int64_t>(size, layer.head_dim);
  return size;
}

void Pass::allocate() {
  const auto rows = static_cast<size_t>(rows_);
  const int64_t hidden = padded(shape_.hidden), tiers = shape_.layout.tiers();
  int64_t q = 0, kv = 0, gates = 0, inner = 0, experts = 0, all_q = 0, all_inner = 0;
  for (const LayerShape& layer : shape_.layers) {
    q = std::max(q, padded(layer.q_width()));
    kv = std::max(kv, padded(layer.kv_width()));
    gates = std::max(gates, layer.gate ? padded(layer.q_width()) : 0);
    inner = std::max({inner, padded(layer.width), padded(layer.shared_width)});
    all_q = std::max(all_q, padded(layer.all_q_width()));
    for (const int mlp : {0, layer.experts}) all_inner = std::max(all_inner, padded(layer.all_mlp_width(mlp)));
    experts = std::max<int64_t>(experts, layer.experts);
  }
  const int64_t widest = std::max({all_q, hidden, all_inner});
  auto& s = scratch_;
  auto reserve = [rows](Buffer<float>& buffer, int64_t width) { buffer.reserve(rows * static_cast<size_t>(width)); };
  for (auto* buffer : {&s.x, &s.normed}) reserve(*buffer, hidden);
  for (auto* buffer : {&s.qkv[0], &s.attended}) reserve(*buffer, q);
  for (auto* buffer : {&s.qkv[1], &s.qkv[2]}) reserve(*buffer, kv);
  for (auto* buffer : {&s.gate, &s.up}) reserve(*buffer, inner);
  reserve(s.attn_gate, gates);
  if (shape_.divided) {
    reserve(s.own, hidden);
    reserve(s.all_attended, all_q);
    reserve(s.all_inner, std::max({all_inner, all_q, hidden}));
  }
  if (experts > 0)
    for (auto* buffer : {&s.expert_in, &s.expert_out, &s.mixed}) reserve(*buffer, hidden);
  reserve(s.router_logits, padded(experts));
  s.cosines.resize(model_.rotations_.size());
  s.sines.resize(model_.rotations_.size());
  for (size_t j = 0; j < model_.rotations_.size(); ++j)
    for (auto* buffer : {&s.cosines[j], &s.sines[j]})
      reserve(*buffer, static_cast<int64_t>(model_.rotations_[j].frequencies.size()));
  reserve(s.tiles, draft_ != nullptr || full_ ? widest : 4 * widest);
  const auto threads = static_cast<size_t>(model_.pool_->threads());
  constexpr int kFewRows = 6;
  constexpr size_t kManyThreads = 4;
  own_tiles_ = draft_ == nullptr && full_ && rows_ > 1 && rows_ <= kFewRows && threads >= kManyThreads;
  own_tiles_floats_ = round_up(rows_ * widest + kPanel, kPanel);
  if (own_tiles_) s.own_tiles.reserve(threads * static_cast<size_t>(own_tiles_floats_));
  s.tiles_made.resize(threads);
  const int64_t attention = attention_scratch_floats() + kMaxTile * (padded(largest_head()) * 3 + 4) + tree_floats();
  thread_floats_ = round_up(std::max({scratch_floats(rows_), attention, model_.quantised_scratch_floats(rows_)}), 16);
  s.thread.reserve(threads * static_cast<size_t>(thread_floats_));
  s.whole.reserve(static_cast<size_t>(3 * quant_words(widest / kQuantGroup + 1, rows_)));
  if (draft_ != nullptr || full_) return;
  s.offsets.reserve(3 * rows * static_cast<size_t>(widest));
  s.active.reserve(3 * static_cast<size_t>(widest));
  s.any.reserve(3 * static_cast<size_t>(widest));
  s.chosen_row.reserve(choice_ == Choice::inputs ? 3 * rows * static_cast<size_t>(widest)
                                                  : threads * static_cast<size_t>(widest));
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
  if (shape_.staged) leave();
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
  const Model::QuantEmbedding& blocks = model_.quant_embedding_;
  // A row of a tied embedding has a value in each line of its panel, which is far more to wait for.
  each(rows_, rows_ * hidden * (shape_.tie_embeddings ? 64 : 4), [&](int row, int) {
    const Sequence& s = sequences_[static_cast<size_t>(scratch_.sequence_of[static_cast<size_t>(row)])];
    const int64_t token = s.given->tokens[row - s.first] - shape_.first_token;
    float* x = scratch_.x.data() + row * stride;
    if (token < 0 || token >= shape_.embedded_tokens()) return;  // another device has it
    if (shape_.tie_embeddings)
      model_.logits_row(token, x);
    else if (!blocks.codes.empty())
      dequantise_row(blocks.type, blocks.source(), hidden, token, x);
    else
      model_.embedding_row(token, x);
    if (shape_.embed_scale != 1)
      for (int64_t i = 0; i < hidden; ++i) x[i] *= shape_.embed_scale;
  });
  shared_bytes_ += static_cast<uint64_t>(rows_ * hidden) * sizeof(uint16_t);
  if (shape_.divided) gather_embeddings();
}

// Cosines and sines of every row's position, from float64 angles: they depend on the position alone.
void Pass::rotary() {
  for (size_t kind = 0; kind < model_.rotations_.size(); ++kind) {
    const RopeShape& rope = model_.rotations_[kind];
    const auto pairs = static_cast<int64_t>(rope.frequencies.size());
    float *cosines = scratch_.cosines[kind].data(), *sines = scratch_.sines[kind].data();
    each(rows_, rows_ * pairs * 100, [&](int row, int) {
      const auto position = static_cast<double>(scratch_.positions[static_cast<size_t>(row)]);
      for (int64_t j = 0; j < pairs; ++j) {
        const double angle = position * rope.frequencies[static_cast<size_t>(j)];
        cosines[row * pairs + j] = static_cast<float>(std::cos(angle) * rope.factor);
        sines[row * pairs + j] = static_cast<float>(std::sin(angle) * rope.factor);
      }
    });
  }
}

}  // namespace specdec
