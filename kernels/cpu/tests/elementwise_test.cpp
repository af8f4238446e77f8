// The small layers against float64, and conversions against each other, bit for bit.
#include <algorithm>
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

// Element by element, at lengths with and without a part of a vector left over, and however a range is cut.
template <class Run, class Wanted>
void check_map(const std::string& name, const std::vector<float>& x, const std::vector<float>& y, const Run& run,
               const Wanted& wanted, double units) {
  const auto n = static_cast<int64_t>(x.size());
  auto whole = x, parts = x;
  run(whole.data(), y.data(), n);
  for (int64_t first = 0, size = 1; first < n; first += size, size = size % 37 + 1)
    run(parts.data() + first, y.data() + first, std::min(size, n - first));
  CHECK(same_bits(whole.data(), parts.data(), n), name + ": a range in parts");
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = wanted(static_cast<double>(x[i]), static_cast<double>(y[i]));
    CHECK(std::fabs(whole[i] - value) <= units * 0x1p-24 * std::fabs(value) + 1e-33,
          name + " of " + std::to_string(x[i]) + ", " + std::to_string(y[i]) + ": " + std::to_string(whole[i]));
  }
}

TEST(activations_and_caps_match_float64) {
  auto x = random_floats(2003, 6, 5.0F), y = random_floats(2003, 7, 5.0F);
  for (size_t i = 0; i < 800; ++i) x[i] *= i < 400 ? 1e-3F : 1e-6F;  // where 1 - tanh and tanh lose digits
  for (size_t i = 800; i < 830; ++i) x[i] = static_cast<float>(i - 815) * 40.0F;
  for (const auto* table : tables()) {
    const std::string name = table->name;
    const ElementKernels& e = table->element;
    auto logistic = [](double z) { return 1 / (1 + std::exp(-z)); };
    // The argument z of e^z has up to four roundings, each of which moves e^z by |z| of them, up to 88.
    check_map(name + " gelu", x, y, e.gelu_mul, [&](double g, double u) {
      return g * logistic(2 * std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g)) * u;
    }, 400);
    check_map(name + " clamped", x, y, e.clamped_mul, [&](double g, double u) {
      g = std::min(g, 7.0);
      u = std::min(std::max(u, -7.0), 7.0);
      return g * logistic(1.702 * g) * (u + 1);
    }, 400);
    check_map(name + " sigmoid", x, y, e.sigmoid_mul, [&](double one, double g) { return one * logistic(g); }, 24);
    for (const float most : {0.5F, 30.0F, 50.0F})
      check_map(name + " cap", x, y, [&](float* values, const float*, int64_t n) { e.cap(values, most, n); },
                [&](double one, double) { return most * std::tanh(one / most); }, 12);
  }
}

TEST(rotation_turns_the_first_dimensions_alone) {
  for (const auto* table : tables())
    for (const int64_t size : {8, 80, 96, 256})
      for (const int64_t pairs : {int64_t{1}, size / 4, size / 2}) {
        const auto x = random_floats(static_cast<size_t>(3 * size), 4);
        auto half = x, interleaved = x;
        const auto cosine = random_floats(static_cast<size_t>(pairs), 8), sine = random_floats(static_cast<size_t>(pairs), 9);
        table->element.rope(half.data(), 3, size, pairs, cosine.data(), sine.data());
        table->element.rope_interleaved(interleaved.data(), 3, size, pairs, cosine.data(), sine.data());
        for (int64_t i = 0; i < 3 * size; ++i) {
          const int64_t d = i % size, base = i - d;
          auto turned = [&](int64_t low, int64_t high, int64_t j) {
            const float a = x[static_cast<size_t>(base + low)], b = x[static_cast<size_t>(base + high)];
            const float c = cosine[static_cast<size_t>(j)], s = sine[static_cast<size_t>(j)];
            return d == low ? a * c - b * s : b * c + a * s;
          };
          const float as_half = d >= 2 * pairs ? x[static_cast<size_t>(i)] : turned(d % pairs, d % pairs + pairs, d % pairs);
          const float as_pair = d >= 2 * pairs ? x[static_cast<size_t>(i)] : turned(d / 2 * 2, d / 2 * 2 + 1, d / 2);
          CHECK(half[static_cast<size_t>(i)] == as_half, std::string(table->name) + " half split");
          CHECK(interleaved[static_cast<size_t>(i)] == as_pair, std::string(table->name) + " interleaved");
        }
      }
}

}  // namespace specdec::test
