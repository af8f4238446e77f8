// Quantised matrices against float64: every type, every instruction set, any rows and threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "check.h"
#include "draft_nested.h"
#include "model.h"
#include "models.h"
#include "quant_matrix.h"

namespace specdec::test {
namespace {

const std::vector<std::string> kTypes = {
    "q4_0",        "q4_1",        "q5_0",         "q5_1",        "q8_0",         "q4_k",
    "q5_k",        "q6_k",        "affine4-g32",  "affine4-g64", "affine4-g128", "affine8-g32",
    "affine8-g64", "affine8-g128-bf16", "affine4-g64-bf16"};

// Random blocks of a type: every bit pattern of codes, scales about 0.01.
struct Blocks {
  QuantType type;
  int64_t out, in;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales, biases;

  Blocks(const std::string& name, int64_t outputs, int64_t inputs, uint32_t seed) : type(name), out(outputs), in(inputs) {
    std::mt19937 engine(seed);
    codes.resize(static_cast<size_t>(out * type.row_bytes(in)));
    for (auto& byte : codes) byte = static_cast<uint8_t>(engine());
    const bool bfloat = type.format().scale == QuantScale::bfloat;
    for (auto* factors : {&scales, &biases})
      for (const float value : random_floats(static_cast<size_t>(out * type.row_factors(in)), ++seed, 0.01F))
        factors->push_back(bfloat ? static_cast<uint16_t>(float_to_bits(value) >> 16) : float_to_half(value));
    // 16-bit floats within blocks: exponents from 2^-14 to 2^-7.
    const int64_t heads = name == "q6_k" ? 1 : type.format().has_offset() ? 2 : 1, first = name == "q6_k" ? 208 : 0;
    if (scales.empty())
      for (size_t at = static_cast<size_t>(first); at < codes.size(); at += static_cast<size_t>(block_bytes()))
        for (size_t k = 0; k < static_cast<size_t>(heads); ++k)
          codes[at + 2 * k + 1] = static_cast<uint8_t>((codes[at + 2 * k + 1] & 0x9F) | (k == 0 ? 0 : 0x04));
  }
  QuantSource source() const {
    if (scales.empty()) return {codes.data(), nullptr, nullptr};
    return {codes.data(), scales.data(), biases.data()};
  }
  int64_t block_bytes() const { return type.row_bytes(in) / (in / (kQuantGroup * type.format().unit)); }
  std::vector<float> row(int64_t o) const {
    std::vector<float> weights(static_cast<size_t>(in));
    dequantise_row(type, source(), in, o, weights.data());
    return weights;
  }
  // The same seen through the four highest bits of every code: each exact weight, moved by as many scales as its code is
  // off when the lower bits count as half their range.
  std::vector<double> upper_row(int64_t o) const {
    const std::vector<float> exact = row(o);
    const QuantFormat& format = type.format();
    const int hidden = format.bits - 4;
    std::vector<double> weights(exact.begin(), exact.end());
    QuantType::Group group;
    for (int64_t i = 0; i < in; ++i) {
      type.read(source(), in, o, i / kQuantGroup, &group);
      const int code = group.codes[i % kQuantGroup];
      const double off = (code >> hidden << hidden) + ((1 << hidden) - 1) / 2.0 - code;
      weights[static_cast<size_t>(i)] += off * scale_of(group, i);
    }
    return weights;
  }
  double scale_of(const QuantType::Group& group, int64_t i) const {
    const QuantFormat& format = type.format();
    const float scale = format.scale == QuantScale::bfloat ? bits_to_float(static_cast<uint32_t>(group.scale) << 16)
                                                           : half_to_float(group.scale);
    return static_cast<double>(scale) * (format.scale == QuantScale::six_bit ? group.own[0]
                                         : format.scale == QuantScale::int8
                                             ? static_cast<int8_t>(group.own[i % kQuantGroup / 16])
                                             : 1);
  }
};

// The same with its codes in planes.
struct Planes {
  std::vector<uint8_t> upper, rest, heads;
  explicit Planes(const Blocks& blocks) {
    const int rest_bits = blocks.type.format().bits - 4;
    upper.resize(static_cast<size_t>(blocks.out * blocks.in / 2));
    rest.resize(static_cast<size_t>(blocks.out * blocks.in * rest_bits / 8));
    QuantType::Group group;
    for (int64_t n = 0; n < blocks.out * blocks.in; ++n) {
      blocks.type.read(blocks.source(), blocks.in, n / blocks.in, n % blocks.in / kQuantGroup, &group);
      const int code = group.codes[n % kQuantGroup];
      uint8_t& high = upper[static_cast<size_t>(n / 2)];
      high = static_cast<uint8_t>(high | code >> rest_bits << (n % 2 * 4));
      uint8_t& low = rest[static_cast<size_t>(n * rest_bits / 8)];
      low = static_cast<uint8_t>(low | (code & ((1 << rest_bits) - 1)) << (n * rest_bits % 8));
    }
    if (!blocks.scales.empty()) return;
    const int64_t unit = kQuantGroup * blocks.type.format().unit;
    const int64_t head = blocks.block_bytes() - unit * (rest_bits + 4) / 8;
    const int64_t first = head == 18 ? 192 : 0;  // q6_k has its codes first
    for (auto at = blocks.codes.begin(); at != blocks.codes.end(); at += blocks.block_bytes())
      heads.insert(heads.end(), at + first, at + first + head);
  }
  QuantSource source(const Blocks& blocks, bool whole = true) const {
    QuantSource planes = blocks.source();
    planes.codes = nullptr;
    planes.upper = upper.data();
    planes.rest = whole ? rest.data() : nullptr;
    planes.heads = heads.data();
    return planes;
  }
};

// A whole matrix, packed a block of outputs at a time.
std::vector<uint8_t> packed(const Blocks& blocks, const std::string& type, const QuantSource& source, bool upper) {
  QuantMatrix matrix(type, blocks.out, blocks.in, 2, upper);
  matrix.data = Buffer<uint8_t>(matrix.bytes());
  for (int64_t first = 0; first < blocks.out; first += kQuantBlock) {
    const int64_t last = std::min(first + kQuantBlock, blocks.out);
    CHECK(matrix.pack(matrix.type.from_row(source, blocks.in, first), first, last).empty(), type);
  }
  return {matrix.data.data(), matrix.data.data() + matrix.bytes()};
}

bool same_bits(const float* a, const float* b, int64_t n) { return std::memcmp(a, b, static_cast<size_t>(n) * 4) == 0; }

// A model of one size whose matrices are of random quantised types.
ModelShape quantised_shape(bool experts) {
  ModelShape s = two_layers(300, 256, 768, experts);
  set_heads(s, 4, 64);
  s.qkv_bias = !experts;
  return s;
}

std::unique_ptr<Model> quantised_model(const ModelShape& shape, const std::string& isa, int threads, size_t first_type) {
  auto model = std::make_unique<Model>(shape, isa, threads);
  auto type_of = [&](int j) { return kTypes[(first_type + static_cast<size_t>(j)) % kTypes.size()]; };
  auto plain = [](int j) { return j % 5 == 3; };  // a matrix in 16 bits here and there
  for (int j = 0; j < shape.matrix_count(); ++j)
    if (!plain(j)) model->set_quantised(j, type_of(j));
  for (int j = 0; j < shape.matrix_count(); ++j) {
    const PackedMatrix& matrix = model->matrix(j);
    const auto seed = static_cast<uint32_t>(j * 7);
    if (plain(j)) {
      const int64_t buckets = (matrix.out + 15) / 16;
      std::vector<std::vector<uint16_t>> values;
      for (uint32_t k = 0; k < 4; ++k) values.push_back(random_bits(static_cast<size_t>(matrix.in * buckets * 4), shape.dtype, seed + k));
      std::vector<std::vector<uint8_t>> masks(3, std::vector<uint8_t>(static_cast<size_t>(matrix.in * buckets * 2)));
      for (size_t k = 0; k < 3; ++k)
        for (size_t n = 0; n < masks[k].size(); n += 2) masks[k][n + k / 2] = k % 2 == 0 ? 0x0F : 0xF0;
      const auto scores = random_floats(static_cast<size_t>(matrix.in * 4), seed, 1.0F);
      std::vector<float> falling(scores.size());
      for (size_t i = 0; i < scores.size(); ++i) falling[i] = std::fabs(scores[i / 4 * 4]) / static_cast<float>(i % 4 + 1);
      const BucketSource source{{values[0].data(), values[1].data(), values[2].data(), values[3].data()},
                                {masks[0].data(), masks[1].data(), masks[2].data()},
                                falling.data()};
      CHECK(model->load_values(j, source, 0, matrix.in).empty(), "packing");
      model->load_masks(j, source);
      continue;
    }
    const Blocks blocks(type_of(j), matrix.out, matrix.in, seed);
    // In two slices, as a loader with little memory does.
    const int64_t cut = matrix.out > kQuantBlock ? kQuantBlock : matrix.out;
    CHECK(model->load_quantised(j, blocks.source(), 0, cut).empty(), "packing " + type_of(j));
    if (cut < matrix.out) {
      const QuantSource rest = blocks.type.from_row(blocks.source(), matrix.in, cut);
      CHECK(model->load_quantised(j, rest, cut, matrix.out).empty(), "packing " + type_of(j));
    }
    std::vector<float> scores = random_floats(static_cast<size_t>(matrix.in), seed);
    for (float& score : scores) score = std::fabs(score);
    model->load_scores(j, scores.data());
  }
  load_vectors_and_routers(*model);
  if (!shape.tie_embeddings) {
    const Blocks blocks("q5_k", shape.vocab, shape.hidden, 5);
    model->load_embedding_blocks("q5_k", blocks.source(), 0, shape.vocab);
  }
  return model;
}

// One matrix of a model of nothing else that matters.
struct OneMatrix {
  Blocks blocks;
  std::vector<float> scores;
  std::unique_ptr<Model> model;
  OneMatrix(const std::string& type, int64_t out, int64_t in, const std::string& isa, int threads, bool upper = false)
      : blocks(type, out, in, 3) {
    ModelShape s;
    s.vocab = out;
    s.hidden = in;
    s.intermediate = s.layers = s.heads = s.kv_heads = 1;
    s.head_dim = 2;
    s.frequencies = {1.0};
    s.windows = {0};
    s.tie_embeddings = true;
    model = std::make_unique<Model>(s, isa, threads);
    const int head = s.matrix_count() - 1;
    model->set_quantised(head, type, upper);
    CHECK(model->load_quantised(head, blocks.source(), 0, out).empty(), "packing " + type);
    for (const float score : random_floats(static_cast<size_t>(in), 17)) scores.push_back(std::fabs(score));
    model->load_scores(head, scores.data());
  }
  std::vector<float> multiply(const std::vector<float>& x, double effort, DraftView* view = nullptr) {
    const auto rows = static_cast<int>(x.size() / static_cast<size_t>(blocks.in));
    std::vector<float> y(static_cast<size_t>(rows * blocks.out), NAN);
    model->multiply(model->shape().matrix_count() - 1, x.data(), rows, view, effort, y.data());
    return y;
  }
};

struct Size {
  int64_t out, in;
};
const std::vector<Size> kSizes = {{1, 256}, {130, 512}, {1100, 768}};

}  // namespace

TEST(quantised_rows_come_back_bit_for_bit) {
  for (const auto& type : kTypes)
    for (const Size size : kSizes)
      for (const int threads : {1, 3}) {
        const Blocks blocks(type, size.out, size.in, 1);
        QuantMatrix matrix(type, size.out, size.in, threads);
        matrix.data = Buffer<uint8_t>(matrix.bytes());
        for (int64_t first = 0; first < size.out; first += kQuantBlock) {
          const QuantSource source = blocks.type.from_row(blocks.source(), size.in, first);
          CHECK(matrix.pack(source, first, std::min<int64_t>(first + kQuantBlock, size.out)).empty(), type);
        }
        bool good = true;
        std::vector<float> found(static_cast<size_t>(size.in));
        for (int64_t o = 0; o < size.out; ++o) {
          matrix.row(o, found.data());
          good &= same_bits(found.data(), blocks.row(o).data(), size.in);
        }
        CHECK(good, type + " " + std::to_string(size.out) + "x" + std::to_string(size.in));
      }
}

TEST(codes_in_planes_pack_as_those_in_blocks) {
  for (const auto& type : kTypes)
    for (const Size size : kSizes) {
      const Blocks blocks(type, size.out, size.in, 4);
      if (blocks.type.format().bits == 4) continue;
      const Planes planes(blocks);
      const std::string where = type + " " + std::to_string(size.out) + "x" + std::to_string(size.in);
      CHECK(packed(blocks, type, planes.source(blocks), false) == packed(blocks, type, blocks.source(), false), where);
      const auto upper = packed(blocks, type, blocks.source(), true);
      CHECK(packed(blocks, type, planes.source(blocks, false), true) == upper, where + " without the rest");
    }
}

TEST(quantised_products_match_float64_and_the_scalar_kernels) {
  for (const auto& type : kTypes)
    for (const Size size : kSizes) {
      std::vector<float> x = random_floats(static_cast<size_t>(2 * size.in), 5);
      for (size_t i = 0; i < x.size(); i += 97) x[i] *= 50;  // outliers, as activations have
      std::vector<float> scalar;
      std::vector<std::string> isas = supported_isas();
      std::reverse(isas.begin(), isas.end());
      for (const auto& isa : isas) {
        OneMatrix one(type, size.out, size.in, isa, 2);
        const auto y = one.multiply(x, 1.0);
        const std::string where = type + " " + isa + " " + std::to_string(size.out) + "x" + std::to_string(size.in);
        if (scalar.empty()) scalar = y;
        CHECK(same_bits(y.data(), scalar.data(), 2 * size.out), where + ": not the bits of " + isas[0]);
        bool close = true;
        for (int64_t o = 0; o < size.out; ++o) {
          const auto weights = one.blocks.row(o);
          QuantType::Group group;
          for (int64_t r = 0; r < 2; ++r) {
            double sum = 0, magnitude = 0, rounding = 0;
            for (int64_t first = 0; first < size.in; first += kQuantSpan) {
              double peak = 0;
              for (int64_t i = first; i < first + kQuantSpan; ++i)
                peak = std::max(peak, std::fabs(static_cast<double>(x[static_cast<size_t>(r * size.in + i)])));
              for (int64_t i = first; i < first + kQuantSpan; ++i) {
                const double w = weights[static_cast<size_t>(i)], v = x[static_cast<size_t>(r * size.in + i)];
                one.blocks.type.read(one.blocks.source(), size.in, o, i / kQuantGroup, &group);
                sum += w * v;
                // Whole numbers count codes from zero, or without their offset: what cancels is rounded too.
                const double off = one.blocks.type.format().has_offset() ? std::fabs(w) + 0.1 : 0;
                magnitude += (std::fabs(w) + off) * std::fabs(v);
                rounding += std::fabs(w) * peak / 32512 / 2;
              }
            }
            // Half a step for each activation, all in the same direction; and a few float32 roundings for each group.
            close &= std::fabs(y[static_cast<size_t>(r * size.out + o)] - sum) <= rounding + 2e-6 * magnitude + 1e-12;
          }
        }
        CHECK(close, where);
      }
    }
}

TEST(quantised_rows_do_not_depend_on_their_company_threads_or_tiles) {
  for (const auto& isa : supported_isas())
    for (const auto& type : kTypes) {
      const Size size{1100, 512};
      OneMatrix one(type, size.out, size.in, isa, 1), three(type, size.out, size.in, isa, 3);
      constexpr int kRows = 110;
      const auto x = random_floats(static_cast<size_t>(kRows * size.in), 6);
      for (const double effort : {1.0, 0.3}) {
        std::vector<float> wanted;
        for (int r = 0; r < kRows; ++r) {
          const auto y = one.multiply({x.begin() + r * size.in, x.begin() + (r + 1) * size.in}, effort);
          wanted.insert(wanted.end(), y.begin(), y.end());
        }
        for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 24, 110}) {
          const auto y = three.multiply({x.begin(), x.begin() + rows * size.in}, effort);
          CHECK(same_bits(y.data(), wanted.data(), rows * size.out),
                type + " " + isa + " rows " + std::to_string(rows) + " effort " + std::to_string(effort));
        }
      }
    }
}

TEST(codes_without_their_lower_bits_multiply_as_what_is_left) {
  for (const auto& type : kTypes)
    for (const Size size : {Size{130, 512}, Size{1100, 768}}) {
      const int64_t in = size.in;
      const auto x = random_floats(static_cast<size_t>(7 * in), 5);
      std::vector<float> scalar;
      std::vector<std::string> isas = supported_isas();
      std::reverse(isas.begin(), isas.end());
      for (const auto& isa : isas) {
        OneMatrix one(type, size.out, in, isa, 2, true), whole(type, size.out, in, isa, 2);
        const std::string where = type + " " + isa;
        const int bits = one.blocks.type.format().bits;
        CHECK((one.model->bytes() < whole.model->bytes()) == (bits > 4), where + ": bytes");
        const auto y = one.multiply(x, 1.0);
        if (scalar.empty()) scalar = y;
        CHECK(same_bits(y.data(), scalar.data(), 7 * size.out), where + ": not the bits of " + isas[0]);
        if (bits == 4) CHECK(same_bits(y.data(), whole.multiply(x, 1.0).data(), 7 * size.out), where + ": nothing hidden");
        bool close = true, rows = true;
        std::vector<float> kept(static_cast<size_t>(in));
        for (int64_t o = 0; o < size.out; ++o) {
          const auto weights = one.blocks.upper_row(o);
          one.model->matrix(one.model->shape().matrix_count() - 1).quantised.row(o, kept.data());
          double weighed = 0;
          for (int64_t i = 0; i < in; ++i) {
            const double w = weights[static_cast<size_t>(i)];
            weighed += std::fabs(w) + 0.1;
            // Float32 rounds the product and the offset.
            rows &= std::fabs(kept[static_cast<size_t>(i)] - w) <= 3e-7 * (std::fabs(w) + 0.2);
          }
          for (int64_t r = 0; r < 7; ++r) {
            double sum = 0, peak = 0;
            for (int64_t i = 0; i < in; ++i) {
              const double v = x[static_cast<size_t>(r * in + i)];
              sum += weights[static_cast<size_t>(i)] * v;
              peak = std::max(peak, std::fabs(v));
            }
            // Half a step of 16-bit activations each, all in the same direction; and roundings of float32.
            close &= std::fabs(y[static_cast<size_t>(r * size.out + o)] - sum) <= weighed * peak * (1 / 65024.0 + 2e-6);
          }
        }
        CHECK(close, where + ": products");
        CHECK(rows, where + ": rows");
        std::vector<float> alone;
        for (int64_t r = 0; r < 7; ++r) {
          const auto row = one.multiply({x.begin() + r * in, x.begin() + (r + 1) * in}, 1.0);
          alone.insert(alone.end(), row.begin(), row.end());
        }
        CHECK(same_bits(y.data(), alone.data(), 7 * size.out), where + ": rows alone");
      }
    }
}

TEST(quantised_effort_leaves_inputs_out_as_zeros) {
  for (const auto& isa : supported_isas()) {
    OneMatrix one("q5_k", 130, 512, isa, 2);
    const auto x = random_floats(512, 8);
    std::vector<std::pair<float, int>> order;
    for (int i = 0; i < 512; ++i) order.emplace_back(-std::fabs(x[static_cast<size_t>(i)]) * one.scores[static_cast<size_t>(i)], i);
    std::sort(order.begin(), order.end());
    std::vector<float> left(512);
    for (int k = 0; k < 205; ++k) left[static_cast<size_t>(order[static_cast<size_t>(k)].second)] = x[static_cast<size_t>(order[static_cast<size_t>(k)].second)];
    const auto some = one.multiply(x, 0.4), wanted = one.multiply(left, 1.0);  // 0.4 of 512 is 204.8
    CHECK(same_bits(some.data(), wanted.data(), 130), isa);
  }
}

TEST(nested_matches_its_definition) {
  for (const auto* table : tables())
    for (const auto& type : kTypes)
      for (const Size size : {Size{130, 512}, Size{1100, 768}}) {
        OneMatrix one(type, size.out, size.in, table->name, 2);
        NestedView view(*one.model);
        // The other matrices of the model are not loaded: this one is multiplied alone.
        const auto x = random_floats(static_cast<size_t>(size.in), 9);
        const QuantFormat& format = one.blocks.type.format();
        for (const float effort : {1.0F, 0.5F, 0.1F}) {
          const auto y = one.multiply(x, effort, &view);
          std::vector<uint32_t> masks(static_cast<size_t>(size.in / kGroup));
          std::vector<float> scratch(x.size());
          table->draft.choose({x.data(), one.scores.data(), size.in, effort, scratch.data(), masks.data()});
          std::vector<double> values(x.size());
          for (size_t g = 0; g < masks.size(); ++g)
            for (int p = 0; p < format.parts(); ++p) {
              const uint32_t mask = format.parts() == 1 ? masks[g] : masks[g] & (p == 0 ? 0xFFFFU : 0xFFFF0000U);
              ChosenGroup group;
              table->draft.quantise(x.data() + g * kGroup, mask, &group);
              for (int k = 0; k < group.count; ++k)
                values[g * kGroup + group.index[k]] = group.value[k] * static_cast<double>(group.step);
            }
          bool close = true;
          for (int64_t o = 0; o < size.out; ++o) {
            const auto weights = one.blocks.upper_row(o);
            double sum = 0, magnitude = 0;
            QuantType::Group group;
            for (int64_t i = 0; i < size.in; ++i) {
              one.blocks.type.read(one.blocks.source(), size.in, o, i / kQuantGroup, &group);
              const double w = weights[static_cast<size_t>(i)], scale = one.blocks.scale_of(group, i);
              sum += w * values[static_cast<size_t>(i)];
              magnitude += (std::fabs(w) + std::fabs(scale) * 255 + 0.1) * std::fabs(values[static_cast<size_t>(i)]);
            }
            // As above: float32 roundings of what is added, codes and offsets apart.
            close &= std::fabs(y[static_cast<size_t>(o)] - sum) <= 1e-6 * magnitude + 1e-12;
          }
          CHECK(close, type + " " + table->name + " effort " + std::to_string(effort));
          OneMatrix other(type, size.out, size.in, table->name, 3);
          NestedView same(*other.model);
          CHECK(same_bits(other.multiply(x, effort, &same).data(), y.data(), size.out), type + " threads");
          OneMatrix upper(type, size.out, size.in, table->name, 3, true);
          NestedView seen(*upper.model);
          CHECK(same_bits(upper.multiply(x, effort, &seen).data(), y.data(), size.out), type + " without the rest");
        }
      }
}

TEST(quantised_models_give_the_same_bits_in_any_company) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 140; ++i) tokens.push_back(i * 31 % 300);
  for (const auto& isa : supported_isas())
    for (const bool experts : {false, true})
      for (const size_t first_type : {size_t{0}, size_t{7}}) {
        const ModelShape shape = quantised_shape(experts);
        const auto one = quantised_model(shape, isa, 1, first_type), two = quantised_model(shape, isa, 3, first_type);
        NestedView alone(*one), nested(*two);
        CHECK(nested.complete(), "complete");
        for (DraftView* view : {static_cast<DraftView*>(nullptr), static_cast<DraftView*>(&nested)})
          for (const double effort : {1.0, 0.4}) {
            const auto wanted = logits_of(*one, tokens, 1, effort, view == nullptr ? nullptr : &alone);
            bool finite = true;
            for (const float value : wanted) finite &= std::isfinite(value);
            CHECK(finite, isa + ": logits are finite");
            for (const int piece : {5, 16, 140}) {
              const auto found = logits_of(*two, tokens, piece, effort, view);
              CHECK(same_bits(found.data(), wanted.data(), static_cast<int64_t>(wanted.size())),
                    isa + " pieces of " + std::to_string(piece) + " effort " + std::to_string(effort) + (view != nullptr ? " nested" : ""));
            }
          }
      }
}

TEST(bad_quantised_matrices_are_refused) {
  auto refused = [](auto&& call) {
    try {
      call();
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refused([] { QuantType type("q3_k"); }), "an unknown type");
  CHECK(refused([] { QuantMatrix matrix("q4_k", 10, 128, 1); }), "half a block");
  Model model(quantised_shape(false), "", 2);
  CHECK(refused([&] { model.load_quantised(0, {}, 0, 128); }), "not declared");
  model.set_quantised(0, "q8_0");
  Blocks blocks("q8_0", 256, 256, 1);
  CHECK(refused([&] { model.load_quantised(0, blocks.source(), 100, 256); }), "within a block of outputs");
  blocks.codes[34 * 5 + 1] = 0x7C;  // the sixth block's scale: infinite
  blocks.codes[34 * 5] = 0;
  CHECK(model.load_quantised(0, blocks.source(), 0, 256).find("infinite") != std::string::npos, "infinite scale");
  CHECK(refused([&] { model.set_quantised(1, "q8_0"); }), "types after weights");
}

}  // namespace specdec::test
