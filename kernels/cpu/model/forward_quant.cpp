// What a pass does with quantised matrices: activations in whole numbers, and tiles of products.
#include <cmath>

#include "forward.h"

namespace specdec {
namespace {

// Up to so many rows, inputs that none of them takes are not read, ...
constexpr int kChosenRows = 12;
// ... if they are more than this share, and the rows of a tile are so many bytes: what is read in order comes faster.
constexpr double kWorthReading = 0.8;
constexpr int64_t kRowBytes = 128;

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
  const int64_t count = std::min(rows, Pass::kRowsAtOnce);
  return widest == 0 ? 0 : count * widest + quant_scratch_bytes(count, widest) / static_cast<int64_t>(sizeof(float));
}

// What the quantised matrices among the outputs need beforehand: the inputs that rows take, and rows in whole numbers.
void Pass::plan_quantised(Input in, const Outputs& outputs, std::vector<Plan>& plans) {
  auto is_full = [&](size_t j) { return all_full(in, outputs[j].matrix); };
  bool some = false;
  for (size_t j = 0; j < plans.size(); ++j) some |= plans[j].matrix->is_quantised() && !is_full(j);
  if (some) choose_quantised(in, outputs);
  const int64_t groups = plans[0].matrix->in / kQuantGroup;
  std::vector<int> slots;
  const int32_t* shared = nullptr;  // every input of every row
  for (size_t j = 0; j < plans.size(); ++j) {
    Plan& plan = plans[j];
    if (!plan.matrix->is_quantised()) continue;
    const auto slot = static_cast<int64_t>(j);
    const bool full = is_full(j);
    plan.whole = full && shared != nullptr ? shared : scratch_.whole.data() + slot * quant_words(groups, in.rows);
    if (plan.whole != shared) slots.push_back(static_cast<int>(j));
    if (full) shared = plan.whole;
    if (!full && worth_choosing(in, plan.matrix->quantised, slot)) plan.choices = scratch_.choices.data() + slot * groups;
  }
  to_whole(in, plans, slots);
}

// Fills input_masks of the quantised matrices among the outputs.
void Pass::choose_quantised(Input in, const Outputs& outputs) {
  const auto count = static_cast<int>(outputs.size());
  const int64_t width = model_.matrix(outputs[0].matrix).in, groups = width / kQuantGroup;
  scratch_.input_masks.reserve(static_cast<size_t>(count * in.rows * groups));
  scratch_.input_scores.reserve(static_cast<size_t>(model_.pool_->threads() * width));
  scratch_.choices.reserve(static_cast<size_t>(count * groups));
  each(in.rows * count, in.rows * count * width * 10, [&](int part, int thread) {
    const int j = part / in.rows, row = part % in.rows, index = outputs[static_cast<size_t>(j)].matrix;
    const PackedMatrix& matrix = model_.matrix(index);
    if (!matrix.is_quantised()) return;
    const double effort = in.effort(row, index);
    const int64_t target = weights_to_take(std::min(effort, 1.0), width);
    kernels_.draft.choose({in.x + row * in.stride, matrix.quantised.scores.data(), width,
                           effort >= 1 ? 1.0F : static_cast<float>(target) / static_cast<float>(width) * 0.999F,
                           scratch_.input_scores.data() + thread * width,
                           scratch_.input_masks.data() + (j * in.rows + row) * groups, target});
  });
}

// Whether what no row takes of a matrix is so much that not reading it saves time.
bool Pass::worth_choosing(Input in, const QuantMatrix& matrix, int64_t slot) const {
  if (in.rows > kChosenRows || matrix.type.format().row_bytes(matrix.tile_width(0)) < kRowBytes) return false;
  const int64_t groups = matrix.groups();
  const uint32_t* masks = scratch_.input_masks.data() + slot * in.rows * groups;
  int64_t taken = 0;
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t any = 0;
    for (int row = 0; row < in.rows; ++row) any |= masks[row * groups + g];
    taken += __builtin_popcount(any);
  }
  return static_cast<double>(taken) <= kWorthReading * static_cast<double>(matrix.in);
}

// The rows in whole numbers, tile after tile of rows, and the list of what they take where inputs are chosen.
void Pass::to_whole(Input in, const std::vector<Plan>& plans, const std::vector<int>& slots) {
  const int64_t width = plans[0].matrix->in, groups = width / kQuantGroup, spans = (groups + kSpanGroups - 1) / kSpanGroups;
  const RowTiles tiles(in.rows, kernels_.quant.tile_rows);
  const auto pieces = static_cast<int>(std::min<int64_t>(spans, 4));
  const bool listed = std::any_of(plans.begin(), plans.end(), [](const Plan& plan) { return plan.choices != nullptr; });
  each(static_cast<int>(slots.size()) * pieces, static_cast<int64_t>(slots.size()) * in.rows * width * (listed ? 12 : 4), [&](int part, int) {
    const int slot = slots[static_cast<size_t>(part / pieces)], piece = part % pieces;
    const Plan& plan = plans[static_cast<size_t>(slot)];
    const int index = static_cast<int>(plan.matrix - model_.matrices_.data());
    const int64_t first = spans * piece / pieces, last = spans * (piece + 1) / pieces;
    const int parts = plan.matrix->quantised.type.format().parts();
    const uint32_t* masks = all_full(in, index) ? nullptr : scratch_.input_masks.data() + slot * in.rows * groups;
    QuantChoice* choices = plan.choices == nullptr ? nullptr : scratch_.choices.data() + slot * groups;
    for (int64_t g = first * kSpanGroups; choices != nullptr && g < std::min(last * kSpanGroups, groups); ++g) {
      uint32_t any = 0;
      for (int row = 0; row < in.rows; ++row) any |= masks[row * groups + g];
      kernels_.quant.list(any, parts, choices + g);
    }
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int64_t start = tiles.start(tile);
      kernels_.quant.activations({in.x + start * in.stride, in.stride, width, tiles.size(tile), first, last,
                                  masks == nullptr ? nullptr : masks + start * groups, choices, parts,
                                  scratch_.whole.data() + slot * quant_words(groups, in.rows) + quant_words(groups, start)});
    }
  });
}

// What a multiplication reads.
uint64_t Pass::quantised_bytes(const Plan& plan) const {
  const QuantMatrix& matrix = plan.matrix->quantised;
  if (plan.choices == nullptr) return matrix.bytes();
  const QuantFormat& format = matrix.type.format();
  int64_t taken = 0;
  for (int64_t g = 0; g < matrix.groups(); ++g) taken += __builtin_popcount(plan.choices[g].mask);
  const int64_t heads = matrix.groups() / format.unit * (format.unit_head() + format.unit * format.group_head());
  return static_cast<uint64_t>(heads * matrix.padded_out() + taken * format.row_bytes(matrix.padded_out()));
}

// A tile without its rows.
QuantCall Pass::quant_call(const Plan& plan, int tile) const {
  const QuantMatrix& matrix = plan.matrix->quantised;
  QuantCall call{};
  call.format = matrix.type.format();
  call.tile = matrix.tile(tile);
  call.groups = matrix.groups();
  call.last_out = matrix.tile_width(tile);
  call.choices = plan.choices;
  return call;
}

// All rows of one tile of matrix `k`. What the thread is likely to multiply next, in the order of its share, is fetched
// meanwhile where inputs are chosen.
void Pass::quantised_tile(const std::vector<Plan>& plans, size_t k, bool joint, Input in, int tile, float* scratch) {
  const Plan& plan = plans[k];
  const int owner = tile / plan.parts;
  auto first_of = [&](size_t j) { return owner * plans[j].parts; };
  auto end_of = [&](size_t j) { return std::min(first_of(j) + plans[j].parts, plans[j].matrix->quantised.tiles); };
  size_t next = k;
  int next_tile = tile;
  if (joint && k + 1 < plans.size()) {
    ++next;
  } else if (joint || tile + 1 < end_of(k)) {
    next = joint ? 0 : k;
    ++next_tile;
  } else if (++next < plans.size()) {
    next_tile = first_of(next);
  }
  const bool known = next < plans.size() && plans[next].choices != nullptr && next_tile < end_of(next);
  const QuantCall ahead = known ? quant_call(plans[next], next_tile) : QuantCall{};
  const bool cold = tile == first_of(k) && (k == 0 || (!joint && (plans[k - 1].choices == nullptr || first_of(k - 1) >= end_of(k - 1))));
  const QuantMatrix& matrix = plan.matrix->quantised;
  const RowTiles tiles(in.rows, kernels_.quant.tile_rows);
  const int64_t width = matrix.tile_width(tile), from = matrix.tile_start(tile);
  const int64_t outputs = std::min(width, matrix.out - from);
  constexpr int kMost = kRowsAtOnce;
  for (int first = 0; first < tiles.count;) {
    const int32_t* x[kMost];
    int sizes[kMost], count = 0, rows = 0;
    const int begin = tiles.start(first);
    for (; first < tiles.count && rows + tiles.size(first) <= Pass::kRowsAtOnce; ++first, ++count) {
      x[count] = plan.whole + quant_words(matrix.groups(), tiles.start(first));
      sizes[count] = tiles.size(first);
      rows += sizes[count];
    }
    float* sums = scratch;
    QuantCall call = quant_call(plan, tile);
    call.tiles = count;
    call.x = x;
    call.rows = sizes;
    call.sums = sums;
    call.sums_stride = width;
    call.scratch = reinterpret_cast<uint8_t*>(sums + rows * width);
    call.next = known ? &ahead : nullptr;
    call.cold = cold;
    kernels_.quant.multiply(call);
    for (int row = 0; row < rows; ++row)
      std::copy(sums + row * width, sums + row * width + outputs,
                plan.call.dense.y + (begin + row) * plan.call.dense.y_stride + from);
  }
}

}  // namespace specdec
