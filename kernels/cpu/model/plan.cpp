// What a multiplication in the exact view needs beforehand: the parts of each matrix, rows in tiles, and what effort
// chooses.
#include "forward.h"
#include "half.h"
#include "lines.h"

namespace specdec {
namespace {

// Bytes of weights that one part of a region streams, about: enough for the hardware to find its stride, few enough
// for threads to finish together.
constexpr int64_t kPartBytes = 64 << 10;

}  // namespace

std::vector<Pass::Plan> Pass::plan(Input in, const Outputs& outputs) {
  const RowTiles tiles(in.rows, kernels_.dense.max_tile);
  std::vector<Plan> plans;
  ++scratch_.multiplication;
  bool chosen = false, quantised = false;
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
    const bool full = all_full(in, output.matrix);
    if (x == nullptr && !(own_tiles_ && in.rows > 1) && (full || choice_ == Choice::tiers)) x = to_tiles(in, matrix.in, tiles);
    // A few rows go through two panels side by side, a single row through four coded ones.
    const int64_t wide = matrix.wide, beside = matrix.is_coded() && in.rows == 1 ? 4 : 2;
    const int64_t in_one = std::max(beside, kPartBytes / matrix.panel_bytes() / beside * beside);
    Plan p{&matrix, {}, !full, wide == 1 ? in_one : 1, 0};
    const int64_t threads = model_.pool_->threads(), share = (p.tiles() + threads - 1) / threads;
    p.parts = static_cast<int>((share + p.group - 1) / p.group);
    p.call.dense = matrix.dense_call(x, tiles, output.y, output.stride);
    chosen |= p.chosen;
    plans.push_back(p);
  }
  if (chosen && choice_ == Choice::tiers) choose_tiers(in, plans);
  if (chosen && choice_ == Choice::inputs) choose_inputs(in, plans);
  if (quantised) plan_quantised(in, outputs, plans);
  for (size_t j = 0; j < plans.size(); ++j) {
    const Plan& p = plans[j];
    if (p.matrix->is_quantised()) {
      shared_bytes_ += quantised_bytes(p);
      continue;
    }
    if (p.matrix->is_coded()) {
      shared_bytes_ += static_cast<uint64_t>(p.matrix->panel_count() * p.matrix->panel_bytes());
      continue;
    }
    const bool tiers = p.chosen && choice_ == Choice::tiers;
    const int64_t inputs = tiers ? p.call.active_count : p.call.dense.active ? p.call.dense.active_count : p.matrix->in;
    const int64_t line_bytes = p.matrix->line() * 2 + (tiers ? 4 * (p.matrix->tiers - 1) : 0);
    shared_bytes_ += static_cast<uint64_t>(p.matrix->panel_count() * inputs * line_bytes);
  }
  return plans;
}

bool Pass::all_full(Input in, int matrix) const {
  bool full = true;
  for (int row = 0; row < in.rows && full && !full_; ++row) full = in.effort(row, matrix) >= 1;
  return full;
}

// Which tiers effort chooses for every row of matrices where one has an effort below 1.
void Pass::choose_tiers(Input in, std::vector<Plan>& plans) {
  const int64_t width = plans[0].matrix->in;
  const RowTiles tiles = plans[0].call.dense.tiles;
  const auto& sizes = shape_.layout.tier_sizes;
  const int64_t keys_words = width * shape_.layout.tiers();
  const auto count = static_cast<int>(plans.size());
  each(in.rows * count, in.rows * count * width * shape_.layout.tiers() * 10, [&](int part, int thread) {
    const int j = part / in.rows, row = part % in.rows;
    const Plan& p = plans[static_cast<size_t>(j)];
    if (!p.chosen) return;
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
    if (!p.chosen) return;
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

// The same of whole inputs: rows in tiles, with zeros for what they leave out; of a wide matrix the inputs that some row
// takes, alone.
void Pass::choose_inputs(Input in, std::vector<Plan>& plans) {
  const auto count = static_cast<int>(plans.size());
  const int tiles = plans[0].call.dense.tiles.count;
  const int64_t work = in.rows * count * plans[0].matrix->in * 10;
  auto of_chosen = [&](int j, const auto& run) {
    if (plans[static_cast<size_t>(j)].chosen) run(plans[static_cast<size_t>(j)]);
  };
  each(in.rows * count, work, [&](int part, int thread) {
    const int j = part / in.rows;
    of_chosen(j, [&](Plan& p) {
      take_inputs(in, p, j, part % in.rows, thread);
      if (in.rows > 1) return;
      list_inputs(in, p, j);
      pack_inputs(in, p, j, 0);
    });
  });
  if (in.rows == 1) return;
  each(count, work, [&](int j, int) { of_chosen(j, [&](Plan& p) { list_inputs(in, p, j); }); });
  each(count * tiles, work, [&](int part, int) {
    of_chosen(part / tiles, [&](Plan& p) { pack_inputs(in, p, part / tiles, part % tiles); });
  });
}

// Whether one row takes each input of output j.
void Pass::take_inputs(Input in, const Plan& plan, int j, int row, int thread) {
  const PackedMatrix& matrix = *plan.matrix;
  uint8_t* taken = scratch_.chosen_row.data() + (j * in.rows + row) * matrix.in;
  const double effort = in.effort(row, static_cast<int>(plan.matrix - model_.matrices_.data()));
  const int size = 1;
  if (effort >= 1)
    std::fill_n(taken, matrix.in, uint8_t{1});
  else
    kernels_.select({matrix.in, 1, &size, in.x + row * in.stride, matrix.input_scores.data(),
                     weights_to_take(effort, matrix.in), taken, scratch_.keys.data() + thread * matrix.in});
}

// The inputs of a wide matrix that some row takes, unless those are nearly all.
void Pass::list_inputs(Input in, Plan& plan, int j) {
  const int64_t width = plan.matrix->in;
  if (plan.matrix->wide == 1) return;
  const uint8_t* taken = scratch_.chosen_row.data() + j * in.rows * width;
  uint8_t* any = scratch_.any.data() + j * width;
  std::copy_n(taken, width, any);
  for (int row = 1; row < in.rows; ++row)
    for (int64_t i = 0; i < width; ++i) any[i] |= taken[row * width + i];
  int32_t* active = scratch_.active.data() + j * width;
  int64_t found = 0;
  for (int64_t i = 0; i < width; ++i) {
    active[found] = static_cast<int32_t>(i);
    found += any[i];
  }
  if (found * 16 > width * 15) return;
  plan.call.dense.active = active;
  plan.call.dense.active_count = found;
}

// One tile of rows for output j, zeros where a row does not take an input.
void Pass::pack_inputs(Input in, Plan& plan, int j, int tile) {
  DenseCall& call = plan.call.dense;
  const int64_t width = plan.matrix->in, count = call.active == nullptr ? width : call.active_count;
  float* all = scratch_.tiles.data() + (1 + j) * in.rows * width;
  const int first = call.tiles.start(tile), size = call.tiles.size(tile);
  for (int r = 0; r < size; ++r) {
    const float* x = in.x + (first + r) * in.stride;
    const uint8_t* taken = scratch_.chosen_row.data() + (j * in.rows + first + r) * width;
    float* to = all + first * count + r;
    // Without a branch: half of the guesses would be wrong.
    auto value = [&](int64_t i) { return bits_to_float(float_to_bits(x[i]) & (0U - taken[i])); };
    for (int64_t e = 0; e < count && call.active == nullptr; ++e) to[e * size] = value(e);
    for (int64_t e = 0; e < count && call.active != nullptr; ++e) to[e * size] = value(call.active[e]);
  }
  if (tile == 0) call.x = all;
}

// Puts a few rows into tiles of a thread's own, for its first part of a multiplication: no thread waits for another,
// and no line of the tiles comes from another core.
const float* Pass::thread_tiles(Input in, int64_t width, RowTiles tiles, int thread) {
  float* to = scratch_.own_tiles.data() + thread * own_tiles_floats_;
  uint64_t& made = scratch_.tiles_made[static_cast<size_t>(thread)].number;
  if (made == scratch_.multiplication) return to;
  made = scratch_.multiplication;
  for (int row = 0; row < in.rows; ++row) ask_for(in.x + row * in.stride, static_cast<size_t>(width) * sizeof(float));
  for (int tile = 0; tile < tiles.count; ++tile) {
    const int size = tiles.size(tile);
    const float* from = in.x + tiles.start(tile) * in.stride;
    float* own = to + tiles.start(tile) * width;
    for (int64_t i = 0; i < width; ++i)
      for (int r = 0; r < size; ++r) own[i * size + r] = from[r * in.stride + i];
  }
  return to;
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
