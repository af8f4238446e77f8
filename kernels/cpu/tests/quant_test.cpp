// Quantised matrices against float64: every type, every instruction set, any rows and threads.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "check.h"
#include "models.h"
#include "quant_blocks.h"

namespace specdec::test {
namespace {

// Products (rows, out) in float64, and how far from them float32 may be.
struct Wanted {
  std::vector<double> sums, bounds;
  bool close_to(const std::vector<float>& y) const {
    bool close = y.size() == sums.size();
    for (size_t j = 0; close && j < y.size(); ++j) close = std::fabs(y[j] - sums[j]) <= bounds[j];
    return close;
  }
};

// The largest |x| of each span of every row.
std::vector<double> span_peaks(const std::vector<float>& x, int64_t in) {
  std::vector<double> peaks;
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(in))
    for (int64_t first = 0; first < in; first += kQuantSpan) {
      double peak = 0;
      for (int64_t i = first; i < std::min(first + kQuantSpan, in); ++i)
        peak = std::max(peak, std::fabs(static_cast<double>(x[row + static_cast<size_t>(i)])));
      peaks.push_back(peak);
    }
  return peaks;
}

Wanted products(const Blocks& blocks, const std::vector<float>& x) {
  const int64_t in = blocks.in, rows = static_cast<int64_t>(x.size()) / in, spans = (in + kQuantSpan - 1) / kQuantSpan;
  const std::vector<double> peaks = span_peaks(x, in);
  Wanted wanted{std::vector<double>(static_cast<size_t>(rows * blocks.out)), {}};
  wanted.bounds.resize(wanted.sums.size());
  for (int64_t o = 0; o < blocks.out; ++o) {
    const auto weights = blocks.row(o);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0, magnitude = 0, rounding = 0;
      for (int64_t i = 0; i < in; ++i) {
        const double w = weights[static_cast<size_t>(i)], v = x[static_cast<size_t>(r * in + i)];
        sum += w * v;
        // Whole numbers count codes from zero, or without their offset: what cancels is rounded too.
        const double off = blocks.type.format().has_offset() ? std::fabs(w) + 0.1 : 0;
        magnitude += (std::fabs(w) + off) * std::fabs(v);
        rounding += std::fabs(w) * peaks[static_cast<size_t>(r * spans + i / kQuantSpan)] / 32512 / 2;
      }
      const auto at = static_cast<size_t>(r * blocks.out + o);
      wanted.sums[at] = sum;
      // Half a step for each activation, all in the same direction; and a few float32 roundings for each group.
      wanted.bounds[at] = rounding + 2e-6 * magnitude + 1e-12;
    }
  }
  return wanted;
}

// The same of weights seen through the four highest bits of their codes.
Wanted upper_products(const std::vector<double>& weights, const std::vector<float>& x, int64_t in) {
  Wanted wanted;
  for (auto row = x.begin(); row != x.end(); row += in) {
    double peak = 0;
    for (auto value = row; value != row + in; ++value) peak = std::max(peak, std::fabs(static_cast<double>(*value)));
    for (auto w = weights.begin(); w != weights.end();) {
      double sum = 0, weighed = 0;
      for (auto value = row; value != row + in; ++value, ++w) {
        sum += *w * static_cast<double>(*value);
        weighed += std::fabs(*w) + 0.1;
      }
      wanted.sums.push_back(sum);
      // Half a step of 16-bit activations each, all in the same direction; and roundings of float32.
      wanted.bounds.push_back(weighed * peak * (1 / 65024.0 + 2e-6));
    }
  }
  return wanted;
}

// From the scalar kernels on.
std::vector<std::string> isas_ascending() {
  std::vector<std::string> isas = supported_isas();
  std::reverse(isas.begin(), isas.end());
  return isas;
}

// Less than a tile of rows to more than one, several tiles, more than are multiplied at once (96).
std::vector<int> row_counts(int tile_rows, bool many) {
  std::vector<int> counts;
  for (int rows = 1; rows <= std::max(kFewCases ? 0 : 14, tile_rows + 1); ++rows) counts.push_back(rows);
  for (const int rows : cases<int>({16, 24, 110}, {many ? 110 : 2 * tile_rows + 1})) counts.push_back(rows);
  return counts;
}

}  // namespace

TEST(quantised_rows_come_back_bit_for_bit) {
  for (const auto& type : kTypes)
    for (const Size size : sizes_for(type))
      for (const int threads : {1, 3}) {
        const Blocks blocks(type, size.out, size.in, 1);
        QuantMatrix matrix(type, size.out, size.in, threads);
        matrix.data = Buffer<uint8_t>(matrix.bytes());
        for (int64_t first = 0; first < size.out; first += kQuantBlock)
          CHECK(matrix.pack(blocks.source(first), first, std::min<int64_t>(first + kQuantBlock, size.out)).empty(), type);
        bool good = true;
        std::vector<float> found(static_cast<size_t>(size.in));
        for (int64_t o = 0; o < size.out; ++o) {
          matrix.row(o, found.data());
          good &= same_bits(found.data(), blocks.row(o).data(), size.in);
        }
        CHECK(good, type + " " + std::to_string(size.out) + "x" + std::to_string(size.in));
      }
}

TEST(quantised_products_match_float64_and_the_scalar_kernels) {
  for (const auto& type : kTypes)
    for (const Size size : sizes_for(type)) {
      std::vector<float> x = random_floats(static_cast<size_t>(2 * size.in), 5), scalar;
      for (size_t i = 0; i < x.size(); i += 97) x[i] *= 50;  // outliers, as activations have
      const Blocks blocks(type, size.out, size.in, 3);
      const Wanted wanted = products(blocks, x);
      for (const auto& isa : isas_ascending()) {
        OneMatrix one(type, blocks, isa, 2);
        const auto y = one.multiply(x, 1.0);
        const std::string where = type + " " + isa + " " + std::to_string(size.out) + "x" + std::to_string(size.in);
        if (scalar.empty()) scalar = y;
        CHECK(same_bits(y.data(), scalar.data(), 2 * size.out), where + ": not the scalar kernels' bits");
        CHECK(wanted.close_to(y), where);
      }
    }
}

THREADED_TEST(quantised_rows_do_not_depend_on_their_company_threads_or_tiles) {
  const Size size = cases<Size>({{1100, 512}}, {{300, 256}})[0];
  for (const auto& type : kTypes) {
    const Blocks blocks(type, size.out, size.in, 3);
    for (const auto* table : tables()) {
      OneMatrix one(type, blocks, table->name, 1), three(type, blocks, table->name, 3), many(type, blocks, table->name, 16);
      const std::vector<int> counts = row_counts(table->quant.tile_rows, type == "q6_k");
      const auto x = random_floats(static_cast<size_t>(counts.back() * size.in), 6);
      for (const double effort : {1.0, 0.3}) {
        const auto wanted = one.multiply_alone(x, effort);
        for (const int rows : counts) {
          const auto y = three.multiply({x.begin(), x.begin() + rows * size.in}, effort);
          const std::string where = type + " " + table->name + " rows " + std::to_string(rows) + " effort " + std::to_string(effort);
          CHECK(same_bits(y.data(), wanted.data(), rows * size.out), where);
          // More threads than tiles: parts of the inputs.
          if (rows != 1 && rows != 5 && rows != 9 && rows != 16) continue;
          const auto cut = many.multiply({x.begin(), x.begin() + rows * size.in}, effort);
          CHECK(same_bits(cut.data(), wanted.data(), rows * size.out), where + " 16 threads");
        }
      }
    }
  }
}

TEST(codes_without_their_lower_bits_multiply_as_what_is_left) {
  for (const auto& type : kTypes)
    for (const Size size : sizes_for(type)) {
      const auto x = random_floats(static_cast<size_t>(7 * size.in), 5);
      const Blocks blocks(type, size.out, size.in, 3);
      const auto weights = blocks.upper().weights;
      const Wanted wanted = upper_products(weights, x, size.in);
      std::vector<float> scalar;
      for (const auto& isa : isas_ascending()) {
        OneMatrix one(type, blocks, isa, 2, true), whole(type, blocks, isa, 2);
        const std::string where = type + " " + isa + " " + std::to_string(size.out) + "x" + std::to_string(size.in);
        const int bits = blocks.type.format().bits;
        CHECK((one.model->bytes() < whole.model->bytes()) == (bits > 4), where + ": bytes");
        const auto y = one.multiply(x, 1.0);
        if (scalar.empty()) scalar = y;
        CHECK(same_bits(y.data(), scalar.data(), 7 * size.out), where + ": not the scalar kernels' bits");
        if (bits == 4) CHECK(same_bits(y.data(), whole.multiply(x, 1.0).data(), 7 * size.out), where + ": nothing hidden");
        CHECK(wanted.close_to(y), where + ": products");
        CHECK(same_bits(y.data(), one.multiply_alone(x, 1.0).data(), 7 * size.out), where + ": rows alone");
        bool rows = true;
        std::vector<float> kept(static_cast<size_t>(size.in));
        for (int64_t o = 0; o < size.out; ++o) {
          one.matrix().row(o, kept.data());
          for (int64_t i = 0; i < size.in; ++i) {
            const double w = weights[static_cast<size_t>(o * size.in + i)];
            // Float32 rounds the product and the offset.
            rows &= std::fabs(kept[static_cast<size_t>(i)] - w) <= 3e-7 * (std::fabs(w) + 0.2);
          }
        }
        CHECK(rows, where + ": rows");
      }
    }
}

TEST(quantised_effort_leaves_inputs_out_as_zeros) {
  const Blocks blocks("q5_k", 130, 512, 3);
  for (const auto& isa : supported_isas()) {
    OneMatrix one("q5_k", blocks, isa, 2);
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
  ModelShape shape = two_layers(300, 256, 768, false);
  set_heads(shape, 4, 64);
  Model model(shape, "", 2);
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
