// Multiplications by quantised matrices alone, cut finely enough for many threads.
//
// A tile of outputs is cut by rows where there are many, else by its inputs, at borders of spans: each part leaves the sums
// of its spans, and whoever ends the last part of a tile adds them up in ascending order. So results equal those of a single part.
#include "forward.h"

namespace specdec {
namespace {

constexpr int kFewRows = 16;     // up to so many rows, inputs are cut
constexpr int kMaxCuts = 8;
// Fewer threads are given whole tiles (Pass::multiply).
constexpr int kManyThreads = 3;

int64_t spans_of(const QuantMatrix& matrix) { return (matrix.groups() + kSpanGroups - 1) / kSpanGroups; }

// In how many cuts the spans of some tiles take the least time: the most that a thread has to do, where tiles are equally
// wide; else an equal share, and half a part more.
int best_cuts(int64_t tiles, int64_t spans, int64_t widest, int64_t blocks, int64_t threads) {
  int best = 1;
  double least = 0;
  for (int64_t cuts = 1; cuts <= std::min<int64_t>(spans, kMaxCuts); ++cuts) {
    const int64_t parts = tiles * cuts, longest = (spans + cuts - 1) / cuts * widest;
    const double shared = static_cast<double>(blocks * spans) / static_cast<double>(threads);
    const auto most = static_cast<double>((parts + threads - 1) / threads * longest);
    const double time = blocks == tiles * widest || parts <= threads ? most : std::min(most, shared + 0.5 * static_cast<double>(longest));
    if (cuts == 1 || time < 0.97 * least) best = static_cast<int>(cuts), least = time;
  }
  return best;
}

}  // namespace

// Returns false where whole tiles do as well.
bool Pass::cut_quantised(Input in, const std::vector<Plan>& plans, bool paired, Pieces* pieces) {
  const int threads = model_.pool_->threads();
  int64_t tiles = 0, widest = 0, blocks = 0, spans = 0;
  for (const Plan& plan : plans) {
    if (!plan.matrix->is_quantised()) return false;
    const QuantMatrix& matrix = plan.matrix->quantised;
    tiles += matrix.tiles;
    blocks += matrix.blocks();
    spans = spans_of(matrix);
    for (int t = 0; t < matrix.tiles; ++t) widest = std::max(widest, matrix.tile_width(t) / kQuantBlock);
  }
  if (threads < kManyThreads) return false;
  pieces->members = paired ? 2 : 1;
  if (in.rows <= kFewRows)
    pieces->cuts = best_cuts(tiles, spans, widest, blocks, threads);
  else
    pieces->batches = static_cast<int>(std::max<int64_t>((in.rows + kRowsAtOnce - 1) / kRowsAtOnce,
                                                         std::min<int64_t>(2 * threads / tiles, in.rows / kFewRows)));
  int units = 0;
  int64_t floats = 0;
  for (size_t j = 0; j < plans.size(); ++j) {
    const QuantMatrix& matrix = plans[j].matrix->quantised;
    pieces->first_unit.push_back(units);
    pieces->first_span.push_back(floats);
    if (!paired || j == 0) units += matrix.tiles * pieces->batches;
    if (pieces->cuts > 1) floats += spans * matrix.padded_out() * in.rows;
  }
  pieces->first_unit.push_back(units);
  scratch_.spans.reserve(static_cast<size_t>(floats));
  if (scratch_.left_room < static_cast<size_t>(units)) {
    scratch_.left = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(units));
    scratch_.left_room = static_cast<size_t>(units);
  }
  for (int u = 0; u < units; ++u)
    scratch_.left[static_cast<size_t>(u)].store(pieces->members * pieces->cuts, std::memory_order_relaxed);
  return true;
}

// Parts lie unit after unit, in one member after member, in one cut after cut.
Pass::Piece Pass::piece_of(const std::vector<Plan>& plans, const Pieces& pieces, int part) const {
  const int of_unit = pieces.members * pieces.cuts;
  Piece piece{part / of_unit, 0, 0, 0, part % pieces.cuts};
  if (pieces.members == 2)
    piece.matrix = part % of_unit / pieces.cuts;
  else
    while (piece.matrix + 1 < static_cast<int>(plans.size()) && pieces.first_unit[static_cast<size_t>(piece.matrix) + 1] <= piece.unit)
      ++piece.matrix;
  const int of_matrix = piece.unit - (pieces.members == 2 ? 0 : pieces.first_unit[static_cast<size_t>(piece.matrix)]);
  piece.tile = of_matrix / pieces.batches;
  piece.batch = of_matrix % pieces.batches;
  return piece;
}

Pass::RowSet Pass::rows_of_batch(Input in, const Plan& plan, const Pieces& pieces, int batch) const {
  const RowTiles tiles(in.rows, kernels_.quant.tile_rows);
  RowSet set;
  const int first = tiles.count * batch / pieces.batches, last = tiles.count * (batch + 1) / pieces.batches;
  set.first = tiles.start(first);
  for (int t = first; t < last; ++t, ++set.tiles) {
    set.x[set.tiles] = plan.whole + quant_words(plan.matrix->quantised.groups(), tiles.start(t));
    set.sizes[set.tiles] = tiles.size(t);
    set.rows += tiles.size(t);
  }
  return set;
}

// A part's call without its rows.
QuantCall Pass::piece_call(Input in, const std::vector<Plan>& plans, const Pieces& pieces, int part) const {
  const Piece piece = piece_of(plans, pieces, part);
  const Plan& plan = plans[static_cast<size_t>(piece.matrix)];
  QuantCall call = quant_call(plan, piece.tile);
  if (pieces.cuts == 1) return call;
  const QuantMatrix& matrix = plan.matrix->quantised;
  const int64_t spans = spans_of(matrix);
  call.first_group = spans * piece.cut / pieces.cuts * kSpanGroups;
  call.last_group = std::min(spans * (piece.cut + 1) / pieces.cuts * kSpanGroups, matrix.groups());
  call.spans = scratch_.spans.data() + pieces.first_span[static_cast<size_t>(piece.matrix)] +
               matrix.tile_start(piece.tile) * spans * in.rows;
  return call;
}

// Where inputs are chosen, what follows in the share of the thread is fetched meanwhile.
void Pass::quantised_piece(Input in, const std::vector<Plan>& plans, const Pieces& pieces, int part, float* scratch) {
  const Piece piece = piece_of(plans, pieces, part);
  const Plan& plan = plans[static_cast<size_t>(piece.matrix)];
  const RowSet set = rows_of_batch(in, plan, pieces, piece.batch);
  const QuantMatrix& matrix = plan.matrix->quantised;
  const int64_t parts = pieces.parts(), threads = model_.pool_->threads(), width = matrix.tile_width(piece.tile);
  auto begins_share = [&](int64_t p) { return parts * ((p * threads + parts - 1) / parts) / threads == p; };
  QuantCall call = piece_call(in, plans, pieces, part), ahead{};
  call.tiles = set.tiles;
  call.x = set.x;
  call.rows = set.sizes;
  call.sums = scratch;
  call.sums_stride = width;
  call.scratch = reinterpret_cast<uint8_t*>(scratch + set.rows * width);
  call.cold = begins_share(part);
  if (call.choices != nullptr && part + 1 < parts && !begins_share(part + 1)) {
    ahead = piece_call(in, plans, pieces, part + 1);
    if (ahead.choices != nullptr) call.next = &ahead;
  }
  kernels_.quant.multiply(call);
  if (pieces.cuts > 1) return;
  const int64_t from = matrix.tile_start(piece.tile), outputs = std::min(width, matrix.out - from);
  for (int row = 0; row < set.rows; ++row)
    std::copy_n(scratch + row * width, outputs,
                plan.call.dense.y + (set.first + row) * plan.call.dense.y_stride + from);
}

// Counts a part as done. Returns whether its unit is: then results are in their place.
bool Pass::finish_piece(Input in, const std::vector<Plan>& plans, const Pieces& pieces, int part, float* scratch) {
  const Piece piece = piece_of(plans, pieces, part);
  if (scratch_.left[static_cast<size_t>(piece.unit)].fetch_sub(1, std::memory_order_acq_rel) != 1) return false;
  for (int member = 0; pieces.cuts > 1 && member < pieces.members; ++member) {
    const int first_part = (piece.unit * pieces.members + member) * pieces.cuts;
    const Plan& plan = plans[static_cast<size_t>(pieces.members == 2 ? member : piece.matrix)];
    const QuantMatrix& matrix = plan.matrix->quantised;
    const RowSet set = rows_of_batch(in, plan, pieces, piece.batch);
    const int64_t width = matrix.tile_width(piece.tile), from = matrix.tile_start(piece.tile);
    QuantCall call = piece_call(in, plans, pieces, first_part);
    call.tiles = set.tiles;
    call.x = set.x;
    call.rows = set.sizes;
    call.sums = scratch;
    call.sums_stride = width;
    kernels_.quant.add_spans(call);
    for (int row = 0; row < set.rows; ++row)
      std::copy_n(scratch + row * width, std::min(width, matrix.out - from),
                  plan.call.dense.y + row * plan.call.dense.y_stride + from);
  }
  return true;
}

}  // namespace specdec
