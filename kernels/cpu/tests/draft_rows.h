// What tests of draft views share: one row, and rows that share a call against the same rows alone.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "draft_joined.h"
#include "draft_view.h"

namespace specdec::test {

inline uint64_t multiply_row(DraftView& view, Pool& pool, int count, const int* matrices, const float* x,
                             const float* efforts, float* const* y) {
  const int64_t strides[3] = {};
  return view.multiply(pool, count, matrices, {1, x, 0, efforts, y, strides});
}

// Random rows, some with equal efforts for all matrices, times joined matrices from `number` on: the bits of each alone, and of
// all together no more bytes than of each, and no fewer than of the greediest.
inline void check_rows_alone(DraftView& view, Pool& pool, const std::vector<MatrixShape>& shapes, const std::string& where,
                             int number = 0) {
  const auto count = static_cast<int>(shapes.size());
  const int64_t in = shapes[0].in, stride = (in + 63) / 64 * 64;
  std::vector<int> numbers;
  std::vector<int64_t> strides;
  for (int m = 0; m < count; ++m) {
    numbers.push_back(number + m);
    strides.push_back((shapes[static_cast<size_t>(m)].out + 63) / 64 * 64);
  }
  for (const int rows : cases<int>({1, 2, 5, kDraftRows}, {2, 5})) {
    std::vector<float> x(static_cast<size_t>(rows * stride)), efforts;
    const auto values = random_floats(static_cast<size_t>(rows * in), 77);
    for (int r = 0; r < rows; ++r) {
      std::copy_n(values.data() + r * in, in, x.data() + r * stride);
      for (int m = 0; m < count; ++m) efforts.push_back(r % 3 == 0 ? 1.0F : r % 3 == 1 ? 0.3F : 0.2F + 0.3F * static_cast<float>(m));
    }
    std::vector<std::vector<float>> together, alone;
    std::vector<float*> y, own;
    for (int m = 0; m < count; ++m) {
      together.emplace_back(static_cast<size_t>(rows * strides[static_cast<size_t>(m)]), NAN);
      alone.emplace_back(static_cast<size_t>(strides[static_cast<size_t>(m)]), NAN);
    }
    for (int m = 0; m < count; ++m) {
      y.push_back(together[static_cast<size_t>(m)].data());
      own.push_back(alone[static_cast<size_t>(m)].data());
    }
    const uint64_t bytes = view.multiply(pool, count, numbers.data(), {rows, x.data(), stride, efforts.data(), y.data(), strides.data()});
    uint64_t most = 0, sum = 0;
    for (int r = 0; r < rows; ++r) {
      const uint64_t read = multiply_row(view, pool, count, numbers.data(), x.data() + r * stride, efforts.data() + r * count, own.data());
      most = std::max(most, read);
      sum += read;
      for (size_t m = 0; m < shapes.size(); ++m)
        CHECK(same_bits(alone[m].data(), y[m] + r * strides[m], shapes[m].out),
              where + " row " + std::to_string(r) + " of " + std::to_string(rows) + " matrix " + std::to_string(m));
    }
    CHECK(bytes >= most && bytes <= sum, where + " bytes of " + std::to_string(rows) + " rows");
  }
}

}  // namespace specdec::test
