// What a multiplication in the exact view needs beforehand: the parts of each matrix, rows in tiles, and what effort
// chooses.
#include "forward.h"

namespace specdec {
namespace {

// Bytes of weights that one part of a region streams, about: enough for the hardware to find its stride, few enough
// for threads to finish together.
constexpr int64_t kPartBytes = 64 << 10;

}  // namespace

std::vector<Pass::Plan> Pass::plan(Input in, const std::vector<Output>& outputs) {
  const RowTiles tiles(in.rows, kernels_.dense.max_tile);
  std::vector<Plan> plans;
  bool masked = false, quantised = false;
  const float* x = nullptr;
  for (const Output& output : outputs) {
    const PackedMatrix& matrix = model_.matrix(output.matrix);
    if (matrix.is_quantised()) {
      const int threads = model_.pool_->threads();
      Plan p{&matrix, {}, false, 0, (matrix.quantised.tiles + threads - 1) / threads};
      p.call.dense.tiles = tiles;
      p.call.dense.y = output.y;
      p.call.dense.y_stride = output.stride;
      quantised = true;
      plans.push_back(p);
      continue;
    }
    if (x == nullptr) x = to_tiles(in, matrix.in, tiles);
    // A few rows go through two panels side by side.
    const int64_t group = std::max<int64_t>(2, kPartBytes / (matrix.in * matrix.line() * 2) / 2 * 2);
    const int64_t threads = model_.pool_->threads(), share = (matrix.panel_count() + threads - 1) / threads;
    Plan p{&matrix, {}, !all_full(in, output.matrix), group, static_cast<int>((share + group - 1) / group)};
    p.call.dense = matrix.dense_call(x, tiles, output.y, output.stride);
    masked |= p.masked;
    plans.push_back(p);
  }
  if (masked) choose(in, plans);
  if (quantised) plan_quantised(in, outputs, plans);
  for (size_t j = 0; j < plans.size(); ++j) {
    const Plan& p = plans[j];
    if (p.matrix->is_quantised()) {
      shared_bytes_ += quantised_bytes(p);
      continue;
    }
    const int64_t lines = p.matrix->panel_count() * (p.masked ? p.call.active_count : p.matrix->in);
    const int64_t line_bytes = p.matrix->line() * 2 + (p.masked ? 4 * (p.matrix->tiers - 1) : 0);
    shared_bytes_ += static_cast<uint64_t>(lines * line_bytes);
  }
  return plans;
}

bool Pass::all_full(Input in, int matrix) const {
  bool full = true;
  for (int row = 0; row < in.rows && full && !full_; ++row) full = in.effort(row, matrix) >= 1;
  return full;
}

// Fills in what effort chooses for every row of outputs where one has an effort below 1.
void Pass::choose(Input in, std::vector<Plan>& plans) {
  const int64_t width = plans[0].matrix->in;
  const RowTiles tiles = plans[0].call.dense.tiles;
  const auto& sizes = shape_.layout.tier_sizes;
  const int64_t keys_words = width * shape_.layout.tiers();
  const auto count = static_cast<int>(plans.size());
  each(in.rows * count, in.rows * count * width * shape_.layout.tiers() * 10, [&](int part, int thread) {
    const int j = part / in.rows, row = part % in.rows;
    const Plan& p = plans[static_cast<size_t>(j)];
    if (!p.masked) return;
    uint8_t* chosen = scratch_.chosen_row.data() + thread * width;
    uint32_t* keys = scratch_.keys.data() + thread * keys_words;
    const double effort = in.effort(row, static_cast<int>(p.matrix - model_.matrices_.data()));
    if (effort >= 1)
      std::fill_n(chosen, width, static_cast<uint8_t>(p.matrix->tiers));
    else
      kernels_.select({width, p.matrix->tiers, sizes.data(), in.x + row * in.stride, p.matrix->scores.data(),
                       weights_to_take(effort, width * shape_.layout.bucket_size), chosen, keys});
    int tile = 0;
    while (row >= tiles.start(tile + 1)) ++tile;
    const int64_t size = tiles.size(tile);
    int32_t* to = scratch_.offsets.data() + (j * in.rows + tiles.start(tile)) * width + (row - tiles.start(tile));
    for (int64_t i = 0; i < width; ++i) to[i * size] = mask_offset(i, chosen[i], p.matrix->tiers);
  });
  each(count, in.rows * count * width, [&](int j, int) {
    Plan& p = plans[static_cast<size_t>(j)];
    if (!p.masked) return;
    const int32_t* offsets = scratch_.offsets.data() + j * in.rows * width;
    int32_t* active = scratch_.active.data() + j * width;
    // Lines read one after another come faster than half of them with gaps; an input that no row takes adds nothing.
    const auto index = static_cast<int>(p.matrix - model_.matrices_.data());
    bool most = false;
    for (int row = 0; row < in.rows && !most; ++row) most = in.effort(row, index) > 0.5;
    int64_t found = most ? width : 0;
    for (int64_t i = 0; i < width && !most; ++i) {
      int32_t any = 0;
      for (int t = 0; t < tiles.count; ++t) {
        const int32_t* row = offsets + tiles.start(t) * width + i * tiles.size(t);
        for (int r = 0; r < tiles.size(t); ++r) any |= row[r];
      }
      active[found] = static_cast<int32_t>(i);
      found += any != 0;
    }
    if (found * 2 > width) {
      for (found = 0; found < width; ++found) active[found] = static_cast<int32_t>(found);
    }
    p.call = MaskedCall{p.call.dense, p.matrix->tiers, p.matrix->masks.data(), offsets, active, found};
  });
}

// One row is its own tile.
const float* Pass::to_tiles(Input in, int64_t width, RowTiles tiles) {
  if (in.rows == 1) return in.x;
  constexpr int64_t kPart = 512;
  const auto pieces = static_cast<int>((width + kPart - 1) / kPart);
  each(tiles.count * pieces, in.rows * width * 4, [&](int part, int) {
    const int tile = part / pieces, size = tiles.size(tile);
    const int64_t first = part % pieces * kPart, last = std::min(first + kPart, width);
    const float* from = in.x + tiles.start(tile) * in.stride;
    float* to = scratch_.tiles.data() + tiles.start(tile) * width;
    for (int64_t i = first; i < last; ++i)
      for (int r = 0; r < size; ++r) to[i * size + r] = from[r * in.stride + i];
  });
  return scratch_.tiles.data();
}

}  // namespace specdec
