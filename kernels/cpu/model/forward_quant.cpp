// What a pass does with quantised matrices: activations in whole numbers, and tiles of products.
#include <cmath>

#include "forward.h"

namespace specdec {
namespace {

// Rows that one tile of a matrix is multiplied by at a time: their sums stay in the second-level cache.
constexpr int kQuantRowsAtOnce = 96;

}  // namespace

int64_t weights_to_take(double effort, int64_t total) {
  const auto all = static_cast<double>(total);
  int64_t count = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(effort * all)) - 1);
  while (static_cast<double>(count) / all < effort) ++count;
  return count;
}

int64_t Model::quantised_scratch_floats(int rows) const {
  int64_t widest = 0;
  for (const PackedMatrix& matrix : matrices_)
    for (int t = 0; t < matrix.quantised.tiles && matrix.is_quantised(); ++t)
      widest = std::max(widest, matrix.quantised.tile_width(t));
  const int64_t count = std::min(rows, kQuantRowsAtOnce);
  return widest == 0 ? 0 : count * widest + quant_scratch_bytes(count) / static_cast<int64_t>(sizeof(float));
}

// The rows in whole numbers, tile after tile of rows; those of different `slot` do not disturb each other.
const int32_t* Pass::to_whole(Input in, int index, int64_t slot) {
  const QuantMatrix& matrix = model_.matrix(index).quantised;
  const int64_t width = matrix.in, groups = matrix.groups(), spans = (width + kQuantSpan - 1) / kQuantSpan;
  const RowTiles tiles(in.rows, kernels_.quant.tile_rows);
  int32_t* whole = scratch_.whole.data() + slot * quant_words(groups, in.rows);
  uint8_t* taken = nullptr;
  if (!all_full(in, index)) {
    scratch_.taken.reserve(static_cast<size_t>(in.rows * width));
    taken = scratch_.taken.data();
    each(in.rows, in.rows * width * 10, [&](int row, int thread) {
      const int size = 1;
      const double effort = in.effort(row, index);
      if (effort >= 1)
        std::fill_n(taken + row * width, width, uint8_t{1});
      else
        kernels_.select({width, 1, &size, in.x + row * in.stride, matrix.scores.data(), weights_to_take(effort, width),
                         taken + row * width, scratch_.keys.data() + thread * width});
    });
  }
  const auto pieces = static_cast<int>(std::min<int64_t>(spans, 4));
  each(tiles.count * pieces, in.rows * width * 4, [&](int part, int) {
    const int tile = part / pieces, piece = part % pieces;
    const int64_t start = tiles.start(tile);
    kernels_.quant.activations({in.x + start * in.stride, in.stride, width, tiles.size(tile), spans * piece / pieces,
                                spans * (piece + 1) / pieces, taken == nullptr ? nullptr : taken + start * width,
                                whole + quant_words(groups, start)});
  });
  return whole;
}

// All rows of one tile of a matrix.
void Pass::quantised_tile(const Plan& plan, Input in, int tile, float* scratch) {
  const QuantMatrix& matrix = plan.matrix->quantised;
  const RowTiles tiles(in.rows, kernels_.quant.tile_rows);
  const int64_t width = matrix.tile_width(tile), from = matrix.tile_start(tile);
  const int64_t outputs = std::min(width, matrix.out - from);
  constexpr int kMost = kQuantRowsAtOnce;
  for (int first = 0; first < tiles.count;) {
    const int32_t* x[kMost];
    int sizes[kMost], count = 0, rows = 0;
    const int begin = tiles.start(first);
    for (; first < tiles.count && rows + tiles.size(first) <= kQuantRowsAtOnce; ++first, ++count) {
      x[count] = plan.whole + quant_words(matrix.groups(), tiles.start(first));
      sizes[count] = tiles.size(first);
      rows += sizes[count];
    }
    float* sums = scratch;
    kernels_.quant.multiply({matrix.type.format(), matrix.tile(tile), matrix.groups(), 0, width, count, x, sizes, sums,
                             width, reinterpret_cast<uint8_t*>(sums + rows * width)});
    for (int row = 0; row < rows; ++row)
      std::copy(sums + row * width, sums + row * width + outputs,
                plan.call.dense.y + (begin + row) * plan.call.dense.y_stride + from);
  }
}

}  // namespace specdec
