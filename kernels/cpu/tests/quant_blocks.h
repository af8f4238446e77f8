// What tests of quantised matrices share: random blocks of every type and their weights, models of one such matrix.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "model.h"
#include "quant_matrix.h"

namespace specdec::test {

inline const std::vector<std::string> kTypes = {
    "q4_0",        "q4_1",        "q5_0",         "q5_1",        "q8_0",         "q4_k",
    "q5_k",        "q6_k",        "affine4-g32",  "affine4-g64", "affine4-g128", "affine8-g32",
    "affine8-g64", "affine8-g128-bf16", "affine4-g64-bf16"};

// Outputs and inputs of a matrix.
struct Size {
  int64_t out, in;
};

// Sizes that a type divides: one unit of inputs, a last span that is not whole, one span, an odd number of them; blocks
// of outputs that are not whole, and several of them, which threads take in tiles of different widths.
inline std::vector<Size> sizes_for(const std::string& type) {
  const QuantType known(type);
  std::vector<Size> sizes = {{7, kQuantGroup * known.format().unit}};
  for (const Size size : cases<Size>({{40, 384}, {1, 256}, {130, 512}, {1100, 768}}, {{40, 384}, {1, 768}, {300, 256}}))
    if (known.fits(size.in)) sizes.push_back(size);
  return sizes;
}

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
  // From output `first` on, a multiple of kQuantBlock.
  QuantSource source(int64_t first = 0) const {
    QuantSource whole{codes.data(), nullptr, nullptr};
    if (!scales.empty()) whole = {codes.data(), scales.data(), biases.data()};
    return type.from_row(whole, in, first);
  }
  int64_t block_bytes() const { return type.row_bytes(in) / (in / (kQuantGroup * type.format().unit)); }
  std::vector<float> row(int64_t o) const {
    std::vector<float> weights(static_cast<size_t>(in));
    dequantise_row(type, source(), in, o, weights.data());
    return weights;
  }
  // (out, in): weights seen through the four highest bits of every code, each the exact one moved by as many scales as
  // its code is off when the lower bits count as half their range; and those scales.
  struct Upper {
    std::vector<double> weights, scales;
  };
  Upper upper() const {
    const int hidden = type.format().bits - 4;
    Upper found;
    QuantType::Group group;
    for (int64_t o = 0; o < out; ++o) {
      const std::vector<float> exact = row(o);
      for (int64_t i = 0; i < in; ++i) {
        if (i % kQuantGroup == 0) type.read(source(), in, o, i / kQuantGroup, &group);
        const int code = group.codes[i % kQuantGroup];
        const double off = (code >> hidden << hidden) + ((1 << hidden) - 1) / 2.0 - code, scale = scale_of(group, i);
        found.weights.push_back(exact[static_cast<size_t>(i)] + off * scale);
        found.scales.push_back(scale);
      }
    }
    return found;
  }

 private:
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

// One matrix of a model of nothing else that matters.
struct OneMatrix {
  int64_t out, in;
  std::vector<float> scores;
  std::unique_ptr<Model> model;

  OneMatrix(const std::string& type, const Blocks& blocks, const std::string& isa, int threads, bool upper = false)
      : out(blocks.out), in(blocks.in) {
    ModelShape s;
    s.vocab = out;
    s.hidden = in;
    s.layers.resize(1);
    s.layers[0].width = s.layers[0].heads = s.layers[0].kv_heads = 1;
    s.layers[0].head_dim = 2;
    s.tie_embeddings = true;
    model = std::make_unique<Model>(s, isa, threads);
    model->set_quantised(head(), type, upper);
    CHECK(model->load_quantised(head(), blocks.source(), 0, out).empty(), "packing " + type);
    for (const float score : random_floats(static_cast<size_t>(in), 17)) scores.push_back(std::fabs(score));
    model->load_scores(head(), scores.data());
  }
  int head() const { return model->shape().matrix_count() - 1; }
  const QuantMatrix& matrix() const { return model->matrix(head()).quantised; }
  std::vector<float> multiply(const std::vector<float>& x, double effort, DraftView* view = nullptr) {
    const auto rows = static_cast<int>(x.size() / static_cast<size_t>(in));
    std::vector<float> y(static_cast<size_t>(rows * out), NAN);
    model->multiply(head(), x.data(), rows, view, effort, y.data());
    return y;
  }
  // The same, one row after the other.
  std::vector<float> multiply_alone(const std::vector<float>& x, double effort) {
    std::vector<float> y;
    for (auto row = x.begin(); row != x.end(); row += in) {
      const auto one = multiply({row, row + in}, effort);
      y.insert(y.end(), one.begin(), one.end());
    }
    return y;
  }
};

}  // namespace specdec::test
