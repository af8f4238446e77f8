// The small layers against float64, and conversions against each other, bit for bit.
#include <cmath>
#include <cstring>

#include "check.h"

namespace specdec::test {

TEST(widen_is_exact_for_every_float16_and_bfloat16) {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  for (const auto* table : tables())
    for (const auto dtype : {Dtype::float16, Dtype::bfloat16}) {
      std::vector<float> y(bits.size());
      table->element.widen(bits.data(), dtype, static_cast<int64_t>(bits.size()), y.data());
      for (size_t i = 0; i < bits.size(); ++i) {
        const float wanted = value_of(bits[i], dtype);
        if (std::isnan(wanted))
          CHECK(std::isnan(y[i]), std::string(table->name) + " NaN " + std::to_string(i));
        else
          CHECK(std::memcmp(&wanted, &y[i], sizeof wanted) == 0,
                std::string(table->name) + " bits " + std::to_string(i));
      }
    }
}

TEST(to_half_rounds_to_nearest_even) {
  auto values = random_floats(4099, 5, 100.0F);
  for (const float special : {0.0F, -0.0F, 65504.0F, 65519.9F, 65520.0F, 1e9F, 0x1p-24F, 0x1p-25F, 0x1.8p-25F, 0x1p-14F,
                              0x1.ffcp-15F, 1.0009765F, 1.00048828125F, 1.00146484375F})
    values.push_back(special), values.push_back(-special);
  for (size_t i = 0; i < 2000; ++i) values.push_back(values[i] * 1e-7F);
  for (const auto* table : tables()) {
    std::vector<uint16_t> y(values.size());
    table->element.to_half(values.data(), y.data(), static_cast<int64_t>(values.size()));
    for (size_t i = 0; i < values.size(); ++i)
      CHECK(y[i] == float_to_half(values[i]), std::string(table->name) + " of " + std::to_string(values[i]));
  }
}

TEST(norm_gate_and_rotation_match_float64) {
  for (const auto* table : tables())
    for (const int64_t n : {1, 7, 33, 64, 100, 1023}) {
      const auto x = random_floats(static_cast<size_t>(n), 1, 3.0F), weight = random_floats(static_cast<size_t>(n), 2);
      std::vector<float> y(x.size());
      double squares = 0;
      for (const float value : x) squares += static_cast<double>(value) * value;
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
      table->element.rms_norm(x.data(), weight.data(), 1e-5F, n, y.data());
      // The sum of squares has at most n roundings of half a unit (all terms are positive), the rest a few more.
      const double norm_bound = static_cast<double>(n + 8) * 0x1p-24;
      for (size_t i = 0; i < x.size(); ++i) {
        const double wanted = x[i] * scale * weight[i];
        CHECK(std::fabs(y[i] - wanted) <= norm_bound * std::fabs(wanted),
              std::string(table->name) + " norm of " + std::to_string(n));
      }
      auto gate = random_floats(static_cast<size_t>(n), 3, 20.0F);
      gate[0] = -200.0F;  // past where e^x overflows
      const auto before = gate;
      table->element.silu_mul(gate.data(), x.data(), n);
      for (size_t i = 0; i < x.size(); ++i) {
        const double g = before[i], wanted = g / (1 + std::exp(-g)) * x[i];
        // e^x to 2 units in the last place, and four roundings; below -88 the clamp leaves something below 1e-35.
        CHECK(std::fabs(gate[i] - wanted) <= 6 * 0x1p-23 * std::fabs(wanted) + 1e-34,
              std::string(table->name) + " gate");
      }
    }
  for (const auto* table : tables())
    for (const int64_t size : {2, 6, 16, 64, 128}) {
      const int64_t half = size / 2, heads = 3;
      const auto x = random_floats(static_cast<size_t>(heads * size), 4);
      auto y = x;
      std::vector<float> cosine(static_cast<size_t>(half)), sine(cosine);
      for (int64_t j = 0; j < half; ++j) {
        cosine[static_cast<size_t>(j)] = static_cast<float>(std::cos(0.37 * static_cast<double>(j)));
        sine[static_cast<size_t>(j)] = static_cast<float>(std::sin(0.37 * static_cast<double>(j)));
      }
      table->element.rope(y.data(), heads, size, half, cosine.data(), sine.data());
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = 0; j < half; ++j) {
          const auto low = static_cast<size_t>(h * size + j), high = low + static_cast<size_t>(half);
          const double c = cosine[static_cast<size_t>(j)], s = sine[static_cast<size_t>(j)];
          // Two products and a sum, half a unit each, of values that add up to no more than |low| + |high|.
          const double limit = 3 * 0x1p-24 * (std::fabs(x[low]) + std::fabs(x[high]));
          CHECK(std::fabs(y[low] - (x[low] * c - x[high] * s)) <= limit, std::string(table->name) + " rotation");
          CHECK(std::fabs(y[high] - (x[high] * c + x[low] * s)) <= limit, std::string(table->name) + " rotation");
        }
    }
}

}  // namespace specdec::test
