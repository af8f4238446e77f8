#include "codes.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "search_kernels.h"

namespace specdec {
namespace {

// Steps that are tried for a vector, over the root mean square of y: larger ones clip less.
constexpr double kSteps[] = {0.30, 0.34, 0.38, 0.43, 0.50, 0.60, 0.75, 1.0};

// Rounded up, so that a bound stays one.
float above_it(double x) {
  const auto near = static_cast<float>(x * (1 + 1e-9));
  return static_cast<double>(near) >= x ? near : std::nextafter(near, INFINITY);
}

int upper_code(double y) { return static_cast<int>(std::clamp(std::floor(y) + 8, 0.0, 15.0)); }

int lower_code(double y, int upper) {
  return static_cast<int>(std::clamp(std::floor((y - upper + 8) * 16), 0.0, 15.0));
}

// Squared error of y in upper codes of a step.
double error_of(const std::vector<double>& y, double step) {
  double sum = 0;
  for (const double value : y) {
    const double gap = value - step * (upper_code(value / step) - 7.5);
    sum += gap * gap;
  }
  return sum;
}

float best_step(const std::vector<double>& y) {
  double square = 0;
  for (const double value : y) square += value * value;
  const double rms = std::sqrt(square / static_cast<double>(y.size()));
  if (rms == 0) return 0;
  double best = INFINITY, step = 0;
  for (const double share : kSteps) {
    const double error = error_of(y, rms * share);
    if (error < best) best = error, step = rms * share;
  }
  return static_cast<float>(step);
}

struct Place {
  int64_t byte;
  int shift;
};

Place place_of(int64_t vector) {
  const auto u = static_cast<int>(vector % kLineVectors);
  return {vector / kLineVectors * kLine + line_byte(u % kLine), u < kLine ? 0 : 4};
}

void encode_row(const EncodeCall& call, int64_t row, std::vector<double>& y) {
  const int64_t dims = call.dims;
  const float* x = call.rows + row * dims;
  const double factor = call.factors == nullptr ? 1.0 : call.factors[row];
  for (int64_t i = 0; i < dims; ++i)
    y[static_cast<size_t>(i)] = call.spread[i] == 0 ? 0 : (x[i] * factor - call.centre[i]) / call.spread[i];
  const float step = best_step(y);
  const Place place = place_of(call.first + row);
  double norm = 0, error = 0, length = 0;
  for (int64_t i = 0; i < dims; ++i) {
    const double value = y[static_cast<size_t>(i)], scaled = step == 0 ? 0 : value / step;
    const int upper = upper_code(scaled), lower = call.planes == 1 ? 0 : lower_code(scaled, upper);
    const double told = upper - 7.5 + (call.planes == 1 ? 0 : (lower - 7.5) / 16), gap = value - step * told;
    call.codes[i * (call.width / 2) + place.byte] |= static_cast<uint8_t>(upper << place.shift);
    if (call.planes == 2) call.codes[(dims + i) * (call.width / 2) + place.byte] |= static_cast<uint8_t>(lower << place.shift);
    const double decoded = call.errors ? x[i] * factor : call.centre[i] + call.spread[i] * step * told;
    norm += (upper - 7.5) * (upper - 7.5);
    error += gap * gap;
    length += decoded * decoded;
  }
  call.steps[row] = step;
  call.bias[row] = call.biases ? static_cast<float>(-length / 2) : 0.0F;
  call.norms[row] = above_it(std::sqrt(norm));
  call.error[row] = call.errors ? above_it(std::sqrt(error)) : 0.0F;
}

}  // namespace

void encode(Pool& pool, const EncodeCall& call) {
  // Two vectors of a line share bytes, so a line is a part.
  const int64_t first = call.first / kLineVectors, last = (call.first + call.count + kLineVectors - 1) / kLineVectors;
  pool.run(static_cast<int>(last - first), [&](int part, int) {
    std::vector<double> y(static_cast<size_t>(call.dims));
    const int64_t from = std::max((first + part) * kLineVectors - call.first, int64_t{0});
    const int64_t to = std::min((first + part + 1) * kLineVectors - call.first, call.count);
    for (int64_t row = from; row < to; ++row) encode_row(call, row, y);
  });
}

}  // namespace specdec
