// bf16 weights in 12 bits: every bit comes back, and products have the bits of plain lines.
#include <algorithm>
#include <cstring>

#include "bucketed_models.h"
#include "draft_int4.h"

namespace specdec::test {
namespace {

uint16_t to_bfloat(float value) { return static_cast<uint16_t>(float_to_bits(value) >> 16); }

// Weights as models have them: a few in ten thousand need a patch.
std::vector<uint16_t> ordinary_bits(size_t count, uint32_t seed) {
  std::vector<uint16_t> bits;
  for (const float value : random_floats(count, seed, 0.02F)) bits.push_back(to_bfloat(value));
  return bits;
}

enum class Weights { ordinary, rare_patches, any_finite, zeros };

// [panels][in][kPanel], zeros past the last output.
std::vector<uint16_t> panels_of(int64_t out, int64_t in, Weights kind, uint32_t seed) {
  const int64_t panels = (out + kPanel - 1) / kPanel;
  std::vector<uint16_t> bits = ordinary_bits(static_cast<size_t>(panels * in * kPanel), seed);
  std::mt19937 engine(seed);
  const uint16_t odd[] = {0x0001, 0x8001, 0x0000, 0x8000, 0x007F, 0x7F7F, 0xFF7F, 0x1234};
  for (size_t j = 0; j < bits.size(); ++j) {
    if (kind == Weights::zeros) bits[j] = engine() % 2 == 0 ? 0 : 0x8000;
    if (kind == Weights::rare_patches && engine() % 500 == 0) bits[j] = odd[engine() % 8];
    if (kind == Weights::any_finite) {
      bits[j] = static_cast<uint16_t>(engine());
      if ((bits[j] & 0x7F80) == 0x7F80) bits[j] &= 0x807F;
    }
  }
  if (kind == Weights::rare_patches)  // borders of groups, of tables and of panels
    for (int64_t panel = 0; panel < panels; ++panel)
      for (const int64_t input : {int64_t{0}, int64_t{3}, int64_t{4}, int64_t{255}, int64_t{256}, in - 1})
        for (const int lane : {0, 15, 16, 31})
          if (input < in) bits[static_cast<size_t>((panel * in + input) * kPanel + lane)] = odd[(input + lane) % 8];
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t i = 0; i < in; ++i)
      for (int64_t lane = std::max<int64_t>(0, out - panel * kPanel); lane < kPanel; ++lane)
        bits[static_cast<size_t>((panel * in + i) * kPanel + lane)] = 0;
  bits.resize(bits.size() + kPanel);
  return bits;
}

CodedMatrix encoded(int64_t out, int64_t in, const std::vector<uint16_t>& panels) {
  CodedMatrix coded(out, in, Buffer<uint8_t>(CodedMatrix::bytes_for(out, in)));
  for (int64_t panel = 0; panel < (out + kPanel - 1) / kPanel; ++panel)
    for (int64_t first = 0; first < in; first += kTableInputs)
      coded.encode(panel, first, std::min<int64_t>(kTableInputs, in - first),
                   panels.data() + (panel * in + first) * kPanel);
  return coded;
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{1, 1}, {7, 33}, {33, 7}, {97, 259}, {160, 515}, {258, 1026}};
const std::vector<std::pair<int64_t, int64_t>> kFewShapes = {{7, 33}, {97, 259}};
constexpr Weights kKinds[] = {Weights::ordinary, Weights::rare_patches, Weights::any_finite, Weights::zeros};

std::string about(int64_t out, int64_t in, Weights kind) {
  return std::to_string(out) + "x" + std::to_string(in) + " kind " + std::to_string(static_cast<int>(kind));
}

}  // namespace

TEST(coded_weights_come_back_bit_for_bit) {
  for (const auto& [out, in] : kShapes)
    for (int kind = 0; kind < 5; ++kind) {
      std::vector<uint16_t> panels = panels_of(out, in, kKinds[kind % 4], 7);
      std::mt19937 engine(3);
      if (kind == 4)  // NaN and infinities too, which a store cannot hold
        for (auto& bits : panels) bits = static_cast<uint16_t>(engine());
      CodedMatrix coded = encoded(out, in, panels);
      const auto width = static_cast<size_t>(in);
      std::vector<uint16_t> lines(width * kPanel), row(width);
      for (const bool listed : {false, true}) {
        if (listed) CHECK(coded.finish() <= 1, "share of groups");
        for (int64_t panel = 0; panel < (out + kPanel - 1) / kPanel; ++panel) {
          const uint16_t* own = panels.data() + panel * in * kPanel;
          coded.decode(panel, 0, in, lines.data());
          CHECK(std::equal(lines.begin(), lines.end(), own), about(out, in, kKinds[kind % 4]) + " panel");
          const int64_t first = in / 3, count = std::min<int64_t>(in - first, 9);
          coded.decode(panel, first, count, lines.data());
          CHECK(std::equal(lines.begin(), lines.begin() + count * kPanel, own + first * kPanel), "some inputs");
        }
      }
      for (int64_t output = 0; output < out; ++output) {
        coded.row(output, row.data());
        bool same = true;
        for (int64_t i = 0; i < in; ++i)
          same &= row[static_cast<size_t>(i)] ==
                  panels[static_cast<size_t>((output / kPanel * in + i) * kPanel + output % kPanel)];
        CHECK(same, about(out, in, kKinds[kind % 4]) + " row");
      }
    }
}

TEST(coded_products_equal_those_of_plain_lines) {
  for (const auto* table : tables())
    for (const auto& [out, in] : cases(kShapes, kFewShapes))
      for (const Weights kind : kKinds) {
        const std::vector<uint16_t> panels = panels_of(out, in, kind, static_cast<uint32_t>(out + in));
        CodedMatrix coded = encoded(out, in, panels);
        coded.finish();
        for (int rows = 1; rows <= 30; rows += rows < 16 ? 1 : 7) {
          const RowTiles tiles(rows, table->dense.max_tile);
          const auto x = random_floats(static_cast<size_t>(rows * in), 5);
          std::vector<float> scratch(static_cast<size_t>(scratch_floats(rows)));
          std::vector<float> wanted(static_cast<size_t>(rows * out), -1), found(wanted);
          DenseCall call{panels.data(), Dtype::bfloat16, in, out, x.data(), tiles, wanted.data(), out, scratch.data()};
          const int64_t count = (out + kPanel - 1) / kPanel;
          table->dense.multiply(call, 0, count);
          call.y = found.data();
          call.coded = coded.lines();
          call.panels = nullptr;
          // In parts of any size.
          const int64_t cut = count / 3;
          table->dense.multiply(call, 0, cut);
          table->dense.multiply(call, cut, count);
          CHECK(same_bits(found.data(), wanted.data(), rows * out),
                std::string(table->name) + " " + about(out, in, kind) + " rows " + std::to_string(rows));
        }
      }
}

namespace {

// A model whose matrices hold `bits(count, matrix)`, and no tier masks.
template <class Bits>
std::unique_ptr<Model> model_of(const ModelShape& shape, int threads, const Bits& bits, int64_t slice = 1 << 20) {
  auto model = std::make_unique<Model>(shape, "", threads);
  for (int j = 0; j < shape.matrix_count(); ++j) {
    const auto& matrix = model->matrix(j);
    Bucketed bucketed(matrix.out, matrix.in, shape.layout, Dtype::bfloat16, static_cast<uint32_t>(j));
    for (auto& values : bucketed.values) values = bits(values.size(), j);
    for (int64_t first = 0; first < matrix.in; first += slice)
      CHECK(model->load_values(j, bucketed.source(), first, std::min(first + slice, matrix.in)).empty(), "packing");
    if (j % 2 == 1) continue;
    const std::vector<float> scores = random_floats(static_cast<size_t>(matrix.in), 5);
    model->load_scores(j, scores.data());
  }
  load_vectors_and_routers(*model);
  if (!shape.tie_embeddings)
    model->load_embedding(random_bits(static_cast<size_t>(shape.vocab * shape.hidden), shape.dtype, 3).data());
  return model;
}

ModelShape coded_shape(Layout layout, Dtype dtype) {
  ModelShape shape = small_shape(false, std::move(layout));
  shape.hidden = 300;
  shape.dtype = dtype;
  for (LayerShape& layer : shape.layers) layer.width = 530;
  return shape;
}

std::unique_ptr<Int4View> int4_of(Model& model) {
  std::vector<MatrixShape> shapes;
  std::vector<std::vector<int>> lists;
  const int count = model.shape().matrix_count();
  for (int j = 0; j < count; ++j) shapes.push_back({model.matrix(j).out, model.matrix(j).in});
  for (int j = 0; j + 7 <= count; j += 7) {
    lists.push_back({j, j + 1, j + 2});
    lists.push_back({j + 3});
    lists.push_back({j + 4, j + 5});
    lists.push_back({j + 6});
  }
  lists.push_back({count - 1});
  auto view = std::make_unique<Int4View>(model.kernels(), JoinedMatrices(shapes, lists));
  for (size_t j = 0; j < lists.size(); ++j) {
    std::vector<const PackedMatrix*> exact;
    for (const int matrix : lists[j]) exact.push_back(&model.matrix(matrix));
    view->build(model.pool(), j, exact);
  }
  return view;
}

void load_all_masks(Model& model) {
  for (int j = 0; j < model.shape().matrix_count(); ++j) {
    const auto& matrix = model.matrix(j);
    const Bucketed bucketed(matrix.out, matrix.in, model.shape().layout, Dtype::bfloat16, static_cast<uint32_t>(j));
    model.load_masks(j, bucketed.source());
  }
}

}  // namespace

THREADED_TEST(a_coded_model_is_the_plain_one) {
  const std::vector<int32_t> tokens = {1, 5, 9, 2, 3, 70, 8};
  for (const Layout& layout : {Layout{16, {4, 4, 4, 4}}, Layout{24, {12, 12}}, Layout{64, {64}}}) {
    const ModelShape shape = coded_shape(layout, Dtype::bfloat16);
    ModelShape half = shape;
    half.dtype = Dtype::float16;
    auto bits = [](size_t count, int j) { return ordinary_bits(count, static_cast<uint32_t>(j) + 40); };
    const auto model = model_of(shape, 2, bits), sliced = model_of(shape, 1, bits, kTableInputs);
    const auto other = model_of(half, 2, bits);
    const auto wanted = logits_of(*model, tokens, 3, 1);
    std::vector<float> row(static_cast<size_t>(shape.hidden)), plain_row(row);
    model->logits_row(70, row.data());
    auto view = int4_of(*model);
    const auto drafted = logits_of(*model, tokens, 2, 1, view.get());
    const uint64_t bytes = model->bytes();
    for (int j = 0; j < shape.matrix_count(); ++j) {
      const PackedMatrix& matrix = model->matrix(j);
      CHECK(matrix.is_coded() && sliced->matrix(j).is_coded(), "coded");
      CHECK(!other->matrix(j).is_coded(), "these are no bfloat16 values when they are read as float16");
      uint16_t line[kPanel], others[kPanel];
      for (int64_t panel = 0; panel < matrix.panel_count(); ++panel)
        for (int64_t i = 0; i < matrix.in; ++i) {
          const uint16_t* own = matrix.whole_line(panel, i, line);
          CHECK(std::equal(own, own + kPanel, other->matrix(j).whole_line(panel, i, others)), "a line");
        }
    }
    CHECK(same_bits(logits_of(*sliced, tokens, 7, 1).data(), wanted.data(), static_cast<int64_t>(wanted.size())), "slices");
    load_all_masks(*model);
    for (int j = 0; j < shape.matrix_count(); ++j) CHECK(!model->matrix(j).is_coded(), "masks need plain lines");
    CHECK(bytes * 4 < model->bytes() * 7 / 2, "a quarter less");
    CHECK(same_bits(logits_of(*model, tokens, 7, 1).data(), wanted.data(), static_cast<int64_t>(wanted.size())), "logits");
    model->logits_row(70, plain_row.data());
    CHECK(row == plain_row, "a row of the logits layer");
    view = int4_of(*model);
    const auto again = logits_of(*model, tokens, 2, 1, view.get());
    CHECK(same_bits(again.data(), drafted.data(), static_cast<int64_t>(drafted.size())), "the int4 view");
  }
}

TEST(a_coded_embedding_has_the_bits_that_were_loaded) {
  ModelShape shape = coded_shape({16, {4, 12}}, Dtype::bfloat16);
  shape.tie_embeddings = false;
  const auto width = static_cast<size_t>(shape.hidden);
  for (const bool wild : {false, true}) {
    Model model(shape, "", 2);
    const size_t count = static_cast<size_t>(shape.vocab) * width;
    auto bits = ordinary_bits(count, 8);
    if (wild)
      for (size_t j = 0; j < count; ++j) bits[j] = static_cast<uint16_t>(j * 40503 & 0xBFFF);
    const uint64_t before = model.bytes();
    model.load_embedding(bits.data());
    CHECK((model.bytes() - before < 2 * count) == !wild, "bytes of an embedding");
    std::vector<float> found(width), wanted(width);
    for (int64_t token = 0; token < shape.vocab; ++token) {
      model.embedding_row(token, found.data());
      for (size_t i = 0; i < width; ++i)
        wanted[i] = value_of(bits[static_cast<size_t>(token) * width + i], Dtype::bfloat16);
      CHECK(same_bits(found.data(), wanted.data(), shape.hidden), "a row of an embedding");
    }
  }
}

TEST(only_what_fits_is_coded) {
  const ModelShape half = coded_shape({16, {4, 12}}, Dtype::float16);
  // float16 values of eight significant bits, some of them denormal.
  auto eight_bits = [](size_t count, int j) {
    std::vector<uint16_t> bits;
    for (const float value : random_floats(count, static_cast<uint32_t>(j), 0.02F))
      bits.push_back(float_to_half(bits_to_float(float_to_bits(value) & 0xFFFF0000U)) & 0xFFF8);
    for (size_t k = 0; k < bits.size(); k += 1001) bits[k] = static_cast<uint16_t>(k % 256);
    return bits;
  };
  const auto fits = model_of(half, 2, eight_bits);
  const std::vector<int32_t> tokens = {1, 5, 9};
  const auto wanted = logits_of(*fits, tokens, 1, 1);
  for (int j = 0; j < half.matrix_count(); ++j) CHECK(fits->matrix(j).is_coded(), "float16 of eight bits");
  load_all_masks(*fits);
  CHECK(same_bits(logits_of(*fits, tokens, 3, 1).data(), wanted.data(), static_cast<int64_t>(wanted.size())), "float16");
  // One value of eleven bits in each tier, in the last slice.
  auto nearly = [&](size_t count, int j) {
    auto bits = eight_bits(count, j);
    bits.back() = 0x2801;
    return bits;
  };
  const auto misfit = model_of(half, 2, nearly, kTableInputs);
  for (int j = 0; j < half.matrix_count(); ++j) CHECK(!misfit->matrix(j).is_coded(), "a value of eleven bits");
  // The same weights but for those two.
  const PackedMatrix& matrix = misfit->matrix(0);
  int64_t differing = 0;
  for (int64_t panel = 0; panel < matrix.panel_count(); ++panel)
    for (int64_t i = 0; i < matrix.in; ++i) {
      uint16_t a[kPanel], b[kPanel];
      const uint16_t *one = matrix.whole_line(panel, i, a), *two = fits->matrix(0).whole_line(panel, i, b);
      for (int lane = 0; lane < kPanel; ++lane) differing += one[lane] != two[lane];
    }
  CHECK(differing == 2, std::to_string(differing) + " weights differ");
  const auto wild = model_of(coded_shape({16, {4, 12}}, Dtype::bfloat16), 2, [](size_t count, int j) {
    return random_bits(count, Dtype::bfloat16, static_cast<uint32_t>(j));
  });
  for (int j = 0; j < half.matrix_count(); ++j) CHECK(!wild->matrix(j).is_coded(), "too many patches");
}

}  // namespace specdec::test
