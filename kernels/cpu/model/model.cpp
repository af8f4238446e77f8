#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "dispatch.h"
#include "first_touch.h"
#include "forward.h"

namespace specdec {
namespace {

// Inputs that one part of a parallel region packs; and panels, of coded matrices.
constexpr int64_t kPackInputs = 64;
constexpr int64_t kPackPanels = 16;
// Share of groups with patches beyond which several rows lose more over coded lines than one row gains.
constexpr double kMostPatched = 0.2;

void check(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}

void check_layer(const LayerShape& s) {
  if (s.all_heads == 0)
    check(s.heads > 0 && s.kv_heads > 0 && s.heads % s.kv_heads == 0, "heads must be a multiple of key-value heads");
  else
    check(s.all_kv_heads > 0 && s.heads == s.kv_heads * s.group() && s.first_head + s.heads <= s.all_heads &&
              s.first_kv_head + s.kv_heads <= s.all_kv_heads && s.width <= s.all_width &&
              s.shared_width <= s.all_shared_width,
          "a share of a layer must be whole groups of heads, and no more than there is");
  check(s.head_dim > 0 && s.head_dim % 2 == 0, "head size must be even");
  check(s.rope.frequencies.size() <= static_cast<size_t>(s.head_dim / 2), "there are more rotary frequencies than pairs");
  check(std::isfinite(s.rope.factor) && s.rope.factor > 0, "the rotary factor must be positive");
  check(s.window >= 0 && s.scale >= 0 && s.softcap >= 0, "window, scale and softcap must not be negative");
  check(s.growth == 0 || s.growth_span > 0, "growing scores need a span");
  check((s.width > 0 || s.all_width > 0) && s.width >= 0 && s.shared_width >= 0, "an MLP must have a positive width");
  check(s.experts >= 0 && (s.experts == 0 || (s.experts_used > 0 && s.experts_used <= s.experts)),
        "experts per token must be 1 to the number of experts");
  check(s.pre_norms || s.post_norms, "a layer has norms before its parts, after them or both");
}

void check_shape(const ModelShape& s) {
  check(s.vocab > 0 && s.hidden > 0 && !s.layers.empty(), "model sizes must be positive");
  check(s.logit_cap >= 0, "the cap of logits must not be negative");
  check(s.tokens() >= 0 && s.first_token >= 0 && s.first_token + s.tokens() <= s.vocab && s.hidden_outputs() >= 0 &&
            s.hidden_outputs() <= s.hidden,
        "a device's share must be a part of the model");
  for (const LayerShape& layer : s.layers) {
    check((layer.all_heads > 0 && layer.all_width > 0) == s.divided, "all layers are divided, or none");
    check_layer(layer);
  }
  int sum = 0;
  for (const int size : s.layout.tier_sizes) {
    check(size > 0, "tier sizes must be positive");
    sum += size;
  }
  check(s.layout.bucket_size % 8 == 0 && s.layout.bucket_size >= 8 && s.layout.bucket_size <= 64 &&
            sum == s.layout.bucket_size,
        "tier sizes must add up to a bucket size of 8 to 64, a multiple of 8");
}

}  // namespace

Model::Model(const ModelShape& shape, const std::string& isa, int threads)
    : shape_(shape),
      kernels_(kernels_for(isa)),
      matrices_(static_cast<size_t>(shape.matrix_count())),
      process_(getpid()) {
  check_shape(shape);
  check(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
  pool_ = Pool::shared(threads);
  std::vector<CacheShape::Layer> cached;
  int matrix = 0;
  for (int layer = 0; layer < shape.layer_count(); ++layer) {
    add_layer(layer, &matrix);
    cached.push_back({shape.layer(layer).kv_heads, shape.layer(layer).head_dim});
  }
  // Experts are chosen by a comparison: where two weigh almost the same, keys and values of 11 bits would choose the other.
  const bool mixture = shape.single_cache || std::any_of(shape.layers.begin(), shape.layers.end(), [](const LayerShape& l) { return l.experts > 0; });
  cache_shape_ = std::make_shared<const CacheShape>(std::move(cached), mixture);
  matrices_.back().set_shape(shape.tokens(), shape.hidden, shape.dtype, shape.layout);
  whole_widths_.push_back(shape.vocab);
  add_vector("final_norm", shape.hidden);
  final_norm_ = find_vector("final_norm");
}

// Matrix `index`'s place in one array for all of them: small matrices share huge pages then, and a pass reads memory
// from front to back.
template <class T>
Buffer<T> Model::part_of(Buffer<T>& all, int index, size_t (PackedMatrix::*size)() const) {
  size_t before = 0, sum = 0;
  for (size_t j = 0; j < matrices_.size(); ++j) {
    if (j == static_cast<size_t>(index)) before = sum;
    sum += (matrices_[j].*size)();
  }
  all.reserve(sum);
  return Buffer<T>::part(all.data() + before, (matrices_[static_cast<size_t>(index)].*size)());
}

// Takes inputs of a matrix into its coded form. Returns false, and leaves plain lines, where that holds no weights of this
// kind, or where it does not pay.
bool Model::load_coded(int index, const BucketSource& source, int64_t first, int64_t last, std::string& problem) {
  PackedMatrix& matrix = matrices_[static_cast<size_t>(index)];
  if (first == 0) matrix.coded = CodedMatrix(matrix.out, matrix.in, part_of(coded_, index, &PackedMatrix::coded_bytes));
  check(first % kTableInputs == 0 && (last % kTableInputs == 0 || last == matrix.in), "inputs out of range");
  std::mutex mutex;
  bool fits = true;
  const int64_t chunks = (matrix.panel_count() + kPackPanels - 1) / kPackPanels;
  const int64_t blocks = (last - first + kTableInputs - 1) / kTableInputs;
  pool_->run(static_cast<int>(chunks * blocks), [&](int part, int) {
    const int64_t begin = part / blocks * kPackPanels, input = first + part % blocks * kTableInputs;
    const CodedBlock block{input, std::min(input + kTableInputs, last), begin,
                           std::min(begin + kPackPanels, matrix.panel_count())};
    bool own = true;
    const std::string found = encode_values(matrix, source, shape_.layout, block, own);
    if (found.empty() && own) return;
    std::lock_guard<std::mutex> lock(mutex);
    fits &= own;
    if (!found.empty()) problem = found;
  });
  if (!problem.empty()) return true;
  if (fits && (last < matrix.in || matrix.coded.finish() <= kMostPatched)) return true;
  make_plain(matrix);
  return fits;
}

// Plain lines in place of coded ones.
void Model::make_plain(PackedMatrix& matrix) {
  if (!matrix.is_coded()) return;
  matrix.panels = part_of(panels_, static_cast<int>(&matrix - matrices_.data()), &PackedMatrix::panel_values);
  pool_->run(static_cast<int>(matrix.panel_count()), [&](int panel, int) { matrix.decode(panel, panel + 1); });
  matrix.coded.discard();
  matrix.coded = {};
}

std::string Model::load_values(int index, const BucketSource& source, int64_t first, int64_t last) {
  PackedMatrix& matrix = matrices_.at(static_cast<size_t>(index));
  const bool fresh = first == 0 && matrix.panels.empty();
  if (matrix.is_coded() || (fresh && matrix.can_be_coded() && may_be_coded(matrix, source))) {
    std::string found;
    if (load_coded(index, source, first, last, found)) return found;
  }
  if (matrix.panels.empty()) {
    matrix.panels = part_of(panels_, index, &PackedMatrix::panel_values);
    touch_shares(*pool_, matrix.panels.data(), matrix.panels.bytes());
  }
  std::mutex mutex;
  std::string problem;
  const auto parts = static_cast<int>((last - first + kPackInputs - 1) / kPackInputs);
  pool_->run(parts, [&](int part, int) {
    const int64_t begin = first + part * kPackInputs;
    const std::string found = pack_values(matrix, source, shape_.layout, begin, std::min(begin + kPackInputs, last));
    if (found.empty()) return;
    std::lock_guard<std::mutex> lock(mutex);
    problem = found;
  });
  return problem;
}

void Model::load_masks(int index, const BucketSource& source) {
  std::lock_guard<std::mutex> lock(mutex_);
  PackedMatrix& matrix = matrices_.at(static_cast<size_t>(index));
  if (matrix.has_masks()) return;
  make_plain(matrix);
  matrix.masks = part_of(masks_, index, &PackedMatrix::all_mask_words);
  matrix.scores = Buffer<float>(static_cast<size_t>(matrix.in * matrix.tiers));
  const auto parts = static_cast<int>((matrix.in + kPackInputs - 1) / kPackInputs);
  pool_->run(parts, [&](int part, int) {
    const int64_t begin = part * kPackInputs;
    pack_masks(matrix, source, shape_.layout, begin, std::min(begin + kPackInputs, matrix.in));
  });
}

void Model::set_tiers(int index, int loaded) {
  PackedMatrix& matrix = matrices_.at(static_cast<size_t>(index));
  check(panels_.empty() && coded_.empty() && quantised_.empty(), "tiers must be known before a matrix is loaded");
  check(loaded >= 1 && loaded <= matrix.tiers, "a matrix has its first tier, and no more than it has");
  matrix.keep_tiers(loaded, shape_.layout);
}

void Model::set_quantised(int index, const std::string& type, bool upper) {
  PackedMatrix& matrix = matrices_.at(static_cast<size_t>(index));
  check(panels_.empty() && coded_.empty() && quantised_.empty(), "types must be known before a matrix is loaded");
  matrix.quantised = QuantMatrix(type, matrix.out, matrix.in, pool_->threads(), upper);
}

std::string Model::load_quantised(int index, const QuantSource& source, int64_t first, int64_t last) {
  QuantMatrix& matrix = matrices_.at(static_cast<size_t>(index)).quantised;
  check(!matrix.empty() && first % kQuantBlock == 0 && first < last && last <= matrix.out &&
            (last % kQuantBlock == 0 || last == matrix.out),
        "outputs out of range");
  if (matrix.data.empty()) {
    matrix.data = part_of(quantised_, index, &PackedMatrix::quantised_bytes);
    touch_shares(*pool_, matrix.data.data(), matrix.data.bytes());
  }
  std::mutex mutex;
  std::string problem;
  pool_->run(static_cast<int>((last - first + kQuantBlock - 1) / kQuantBlock), [&](int part, int) {
    const int64_t skip = part * int64_t{kQuantBlock};
    const QuantSource from = matrix.type.from_row(source, matrix.in, skip);
    const std::string found = matrix.pack(from, first + skip, std::min(first + skip + kQuantBlock, last));
    if (found.empty()) return;
    std::lock_guard<std::mutex> lock(mutex);
    problem = found;
  });
  return problem;
}

void Model::load_scores(int index, const float* scores) {
  PackedMatrix& matrix = matrices_.at(static_cast<size_t>(index));
  Buffer<float>& to = matrix.is_quantised() ? matrix.quantised.scores : matrix.input_scores;
  to = Buffer<float>(static_cast<size_t>(matrix.in));
  std::memcpy(to.data(), scores, to.bytes());
}

void Model::load_embedding_blocks(const std::string& type, const QuantSource& source, int64_t first, int64_t last) {
  QuantEmbedding& table = quant_embedding_;
  const QuantType known(type);
  check(!shape_.tie_embeddings && known.fits(shape_.hidden) && first >= 0 && first < last && last <= shape_.embedded_tokens(),
        "the embedding has the wrong size");
  const auto bytes = static_cast<size_t>(known.row_bytes(shape_.hidden));
  const auto factors = static_cast<size_t>(known.row_factors(shape_.hidden)), rows = static_cast<size_t>(shape_.embedded_tokens());
  if (table.codes.empty()) {
    table.type = known;
    table.codes = Buffer<uint8_t>(rows * bytes);
    table.scales = Buffer<uint16_t>(rows * factors);
    table.biases = Buffer<uint16_t>(rows * factors);
  }
  const auto from = static_cast<size_t>(first), count = static_cast<size_t>(last - first);
  std::memcpy(table.codes.data() + from * bytes, source.codes, count * bytes);
  if (factors == 0) return;
  std::memcpy(table.scales.data() + from * factors, source.scales, count * factors * sizeof(uint16_t));
  std::memcpy(table.biases.data() + from * factors, source.biases, count * factors * sizeof(uint16_t));
}

void Model::load_vector(const std::string& name, const float* values) {
  Buffer<float>& vector = vectors_.at(name);
  std::memcpy(vector.data(), values, vector.bytes());
}

// Takes over an embedding of bfloat16 in 12 bits a weight. Returns false where 16 are fewer.
bool Model::code_embedding(const uint16_t* bits) {
  const int64_t rows = shape_.embedded_tokens(), width = shape_.hidden;
  if (shape_.dtype != Dtype::bfloat16 || width > kMostCodedInputs) return false;
  CodedMatrix coded(rows, width, Buffer<uint8_t>(CodedMatrix::bytes_for(rows, width)));
  pool_->run(static_cast<int>((rows + kPanel - 1) / kPanel), [&](int panel, int) {
    uint16_t lines[kTableInputs * kPanel] = {};
    const int64_t held = std::min<int64_t>(kPanel, rows - int64_t{panel} * kPanel);
    for (int64_t first = 0; first < width; first += kTableInputs) {
      const int64_t count = std::min<int64_t>(kTableInputs, width - first);
      for (int64_t lane = 0; lane < held; ++lane)
        for (int64_t i = 0; i < count; ++i)
          lines[i * kPanel + lane] = bits[(panel * int64_t{kPanel} + lane) * width + first + i];
      coded.encode(panel, first, count, lines);
    }
  });
  coded.finish();
  if (coded.bytes() >= static_cast<size_t>(rows * width) * sizeof *bits) return false;
  coded_embedding_ = std::move(coded);
  return true;
}

bool Model::has_embedding() const {
  return shape_.tie_embeddings || !embedding_.empty() || !coded_embedding_.empty() || !quant_embedding_.codes.empty();
}

void Model::embedding_row(int64_t token, float* weights) const {
  const uint16_t* bits = embedding_.data() + token * shape_.hidden;
  std::vector<uint16_t> decoded;
  if (!coded_embedding_.empty()) {
    decoded.resize(static_cast<size_t>(shape_.hidden));
    coded_embedding_.row(token, decoded.data());
    bits = decoded.data();
  }
  kernels_.element.widen(bits, shape_.dtype, shape_.hidden, weights);
}

void Model::load_embedding(const uint16_t* bits) {
  if (code_embedding(bits)) return;
  embedding_ = Buffer<uint16_t>(static_cast<size_t>(shape_.embedded_tokens() * shape_.hidden));
  std::memcpy(embedding_.data(), bits, embedding_.bytes());
}

void Model::load_router(int layer, const uint16_t* bits) {
  PackedMatrix& router = routers_.at(static_cast<size_t>(layer));
  router.panels = Buffer<uint16_t>(router.panel_values());
  for (int64_t o = 0; o < router.out; ++o)
    for (int64_t i = 0; i < router.in; ++i)
      router.panels[static_cast<size_t>((o / kPanel * router.in + i) * kPanel + o % kPanel)] = bits[o * router.in + i];
}

uint64_t Model::bytes() const {
  uint64_t sum = embedding_.bytes() + coded_embedding_.bytes() + quant_embedding_.codes.bytes() + quant_embedding_.scales.bytes() +
                 quant_embedding_.biases.bytes();
  for (const auto& matrix : matrices_)
    sum += matrix.panels.bytes() + matrix.coded.bytes() + matrix.input_scores.bytes() + matrix.quantised.data.bytes() +
           matrix.quantised.scores.bytes();
  for (const auto& router : routers_) sum += router.panels.bytes();
  for (const auto& [name, vector] : vectors_) sum += vector.bytes();
  return sum;
}

uint64_t Model::coded_bytes() const {
  uint64_t sum = 0;
  for (const auto& matrix : matrices_) sum += matrix.coded.bytes();
  return sum;
}

uint64_t Model::mask_bytes() const {
  uint64_t sum = 0;
  for (const auto& matrix : matrices_) sum += matrix.masks.bytes() + matrix.scores.bytes();
  return sum;
}

std::unique_ptr<KvCache> Model::new_cache(int64_t capacity) const {
  return std::make_unique<KvCache>(cache_shape_, capacity);
}

void Model::set_threads(int threads) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_ = Pool::shared(threads);
}

const float* Model::find_vector(const std::string& name) const {
  const auto found = vectors_.find(name);
  return found == vectors_.end() ? nullptr : found->second.data();
}

// Lays matrices out for choosing inputs, once, as soon as a row leaves out enough of them. The bits of products, and the
// time of full ones, stay.
void Model::widen(const std::vector<SequenceRows>& batch) {
  const double* known = nullptr;
  for (const SequenceRows& rows : batch) {
    for (size_t j = 0; rows.efforts != known && j < matrices_.size(); ++j)
      if (rows.efforts[j] < kWideBelow) widen(matrices_[j]);
    known = rows.efforts;
  }
}

void Model::widen(PackedMatrix& matrix) {
  if (matrix.is_quantised() || matrix.kept != kPanel || matrix.wide != 1 || !matrix.loaded()) return;
  // Every thread gets as many tiles, as equal as can be.
  const int64_t share = (matrix.panel_count() + pool_->threads() - 1) / pool_->threads();
  const int64_t tiles = (share + kWidePanels - 1) / kWidePanels, tile = (share + tiles - 1) / tiles;
  if (tile == 1) return;
  make_plain(matrix);
  pool_->run(static_cast<int>((matrix.panel_count() + tile - 1) / tile),
             [&](int part, int) { matrix.widen(static_cast<int>(tile), part, part + 1); });
  matrix.wide = static_cast<int>(tile);
}

void Model::forward(std::vector<SequenceRows>& batch, DraftView* draft, float* logits, Choice choice) {
  std::lock_guard<std::mutex> lock(mutex_);
  check_pass(batch, draft, choice);
  if (draft == nullptr && choice == Choice::inputs) widen(batch);
  try {
    for (const SequenceRows& rows : batch) rows.cache->reserve(rows.cache->length() + rows.rows);
    Pass(*this, batch, draft, choice).run(logits);
  } catch (...) {
    for (const SequenceRows& rows : batch) rows.cache->trim(rows.cache->length());
    throw;
  }
  for (const SequenceRows& rows : batch) rows.cache->set_length(rows.cache->length() + rows.rows);
}

void Model::logits_row(int64_t token, float* weights) const {
  const PackedMatrix& head = matrices_.back();
  if (head.is_quantised()) return head.quantised.row(token, weights);
  std::vector<uint16_t> bits(static_cast<size_t>(head.in));
  head.row(token, bits.data());
  kernels_.element.widen(bits.data(), head.dtype, head.in, weights);
}

uint64_t Model::multiply(int index, const float* x, int rows, DraftView* draft, double effort, float* y, Choice choice) {
  return multiply(index, x, std::vector<double>(static_cast<size_t>(rows), effort), draft, y, choice);
}

uint64_t Model::multiply(int index, const float* x, const std::vector<double>& efforts, DraftView* draft, float* y,
                         Choice choice) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto count = static_cast<size_t>(shape_.matrix_count());
  std::vector<double> of_matrices(efforts.size() * count);
  std::vector<SequenceRows> batch;
  for (size_t row = 0; row < efforts.size(); ++row) {
    std::fill_n(of_matrices.begin() + static_cast<int64_t>(row * count), count, efforts[row]);
    batch.push_back({nullptr, nullptr, 1, of_matrices.data() + row * count});
  }
  const bool wide = std::any_of(efforts.begin(), efforts.end(), [](double effort) { return effort < kWideBelow; });
  if (draft == nullptr && choice == Choice::inputs && wide) widen(matrices_[static_cast<size_t>(index)]);
  Pass(*this, batch, draft, choice).run_matrix(index, x, y);
  uint64_t bytes = 0;
  for (const SequenceRows& rows : batch) bytes += rows.bytes;
  return bytes;
}

void Model::check_pass(const std::vector<SequenceRows>& batch, const DraftView* draft, Choice choice) const {
  check(process_ == getpid(), "the model was loaded before this process was forked: load it again here");
  check(!batch.empty() && batch.size() <= kMaxSequences, "a pass takes 1 to 64 sequences");
  check(draft == nullptr || draft->complete(), "the draft view is not loaded");
  check(shape_.embedded_tokens() == 0 || has_embedding(), "the embedding is not loaded");
  check(!shape_.divided || gather_, "a divided model needs a way to put rows together");
  for (const auto& router : routers_) check(router.out == 0 || !router.panels.empty(), "a router is not loaded");
  for (const auto& matrix : matrices_) check(matrix.out == 0 || matrix.loaded(), "a matrix is not loaded");
  int rows = 0;
  for (size_t j = 0; j < batch.size(); ++j) {
    check_rows(batch[j]);
    rows += batch[j].rows;
    check(rows <= kMaxRows, "a pass takes 512 rows at most");
    for (size_t k = 0; k < j; ++k) check(batch[k].cache != batch[j].cache, "a cache may occur once in a pass");
    if (j == 0 || batch[j].efforts != batch[j - 1].efforts) check_efforts(batch[j].efforts, draft, choice);
  }
}

void Model::check_rows(const SequenceRows& rows) const {
  const KvCache& cache = *rows.cache;
  check(&cache.shape() == cache_shape_.get() || cache.shape() == *cache_shape_,
        "the cache belongs to a model of another shape");
  check(rows.rows >= 1 && rows.rows <= kMaxRows && rows.rows <= cache.capacity - cache.length(),
        "the cache has no room for these rows");
  check(rows.head == nullptr || (&rows.head->model() == this && !shape_.divided),
        "the draft head belongs to another model, or the model is divided");
  check(rows.choices == nullptr || !shape_.divided, "a model that is divided makes no choices");
  check(rows.layers >= 0 && rows.layers <= shape_.layer_count(), "there are not so many layers");
  check(rows.recent >= 0 && rows.sinks >= 0 && rows.sinks <= kChunk, "a window has at most 128 sinks");
  check(rows.parents == nullptr || rows.rows <= kMaxTreeRows, "a tree has at most 64 rows");
  for (int row = 0; row < rows.rows; ++row) {
    check(rows.tokens[row] >= 0 && rows.tokens[row] < shape_.vocab, "a token is outside the vocabulary");
    check(rows.parents == nullptr || (rows.parents[row] >= -1 && rows.parents[row] < row),
          "a row of a tree must follow an earlier one or -1");
  }
}

void Model::check_efforts(const double* efforts, const DraftView* draft, Choice choice) const {
  for (size_t j = 0; j < matrices_.size(); ++j) {
    check(efforts[j] > 0 && efforts[j] <= 1, "efforts must be above 0 and at most 1");
    check(draft != nullptr || efforts[j] >= 1 || matrices_[j].out == 0 || matrices_[j].chooses(choice), "effort below 1 needs tier masks or scores");
  }
}

}  // namespace specdec
