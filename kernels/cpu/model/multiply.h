// Matrices times the rows of a pass: the parts of a parallel region, and what follows each of them. For the files of Pass.
#pragma once

#include "forward.h"

namespace specdec {

template <class After>
void Pass::multiply(Input in, const Outputs& outputs, bool paired, const After& after) {
  if (model_.matrix(outputs[0].matrix).out == 0) return;  // all of them lie on other devices
  if (draft_ != nullptr) {
    multiply_draft(in, outputs, paired, after);
    return;
  }
  const std::vector<Plan> plans = plan(in, outputs);
  Pieces pieces;
  if (cut_quantised(in, plans, paired, &pieces)) {
    multiply_pieces(in, plans, pieces, paired, after);
    return;
  }
  // Every thread's share of the parts is a whole share of each matrix (see Pool::run), so that they finish together.
  // A pair of two kinds has no ranges that are finished in both.
  const bool joint = paired && plans[0].matrix->is_quantised() == plans[1].matrix->is_quantised() &&
                     plans[0].matrix->wide == plans[1].matrix->wide;
  const size_t kinds = joint ? 1 : plans.size();
  const int threads = model_.pool_->threads();
  int share = 0;
  for (size_t j = 0; j < kinds; ++j) share += plans[j].parts;
  auto panels = [&](const Plan& p, int64_t first, int64_t last, int thread) {
    MaskedCall call = p.call;
    call.dense.scratch = thread_scratch(thread);
    if (own_tiles_ && in.rows > 1) call.dense.x = thread_tiles(in, p.matrix->in, p.call.dense.tiles, thread);
    if (p.chosen && choice_ == Choice::tiers)
      kernels_.dense.multiply_masked(call, first, last);
    else
      kernels_.dense.multiply(call.dense, first, last);
  };
  each(threads * share, static_cast<int64_t>(in.rows) * outputs.size() * plans[0].matrix->in * plans[0].matrix->out,
       [&](int part, int thread) {
         const int64_t owner = part / share;
         part %= share;
         size_t j = 0;
         for (; part >= plans[j].parts; ++j) part -= plans[j].parts;
         const Plan& p = plans[j];
         if (p.matrix->is_quantised()) {
           const QuantMatrix& matrix = p.matrix->quantised;
           const int tile = static_cast<int>(owner) * p.parts + part;
           if (tile >= matrix.tiles) return;
           for (size_t k = j; k < (joint ? plans.size() : j + 1); ++k)
             quantised_tile(plans, k, joint, in, tile, thread_scratch(thread));
           const int64_t end = std::min(matrix.tile_start(tile + 1), matrix.out);
           for (int row = 0; row < in.rows && joint == paired; ++row)
             after(static_cast<int>(j), row, matrix.tile_start(tile), end);
           return;
         }
         const int64_t tiles = p.tiles(), wide = p.matrix->wide, begin = tiles * owner / threads + part * p.group;
         const int64_t first = begin * wide, end = std::min(begin + p.group, tiles * (owner + 1) / threads) * wide;
         const int64_t last = std::min(end, p.matrix->panel_count());
         if (first >= last) return;
         panels(p, first, last, thread);
         for (size_t k = 1; joint && k < plans.size(); ++k) panels(plans[k], first, last, thread);
         for (int row = 0; row < in.rows && joint == paired; ++row)
           after(static_cast<int>(j), row, first * kPanel, std::min(last * kPanel, p.matrix->out));
       });
  for (int row = 0; row < in.rows && joint != paired; ++row) after(0, row, int64_t{0}, plans[0].matrix->out);
}

// Of quantised matrices alone.
template <class After>
void Pass::multiply_pieces(Input in, const std::vector<Plan>& plans, const Pieces& pieces, bool paired, const After& after) {
  each(pieces.parts(), static_cast<int64_t>(in.rows) * plans[0].matrix->in * plans[0].matrix->out, [&](int part, int thread) {
    quantised_piece(in, plans, pieces, part, thread_scratch(thread));
    if (!finish_piece(in, plans, pieces, part, thread_scratch(thread))) return;
    const Piece piece = piece_of(plans, pieces, part);
    const int matrix = paired ? 0 : piece.matrix;
    const QuantMatrix& of = plans[static_cast<size_t>(matrix)].matrix->quantised;
    const int64_t end = std::min(of.tile_start(piece.tile + 1), of.out);
    const RowSet set = rows_of_batch(in, plans[static_cast<size_t>(matrix)], pieces, piece.batch);
    for (int row = set.first; row < set.first + set.rows; ++row) after(matrix, row, of.tile_start(piece.tile), end);
  });
}

template <class After>
void Pass::multiply_draft(Input in, const Outputs& outputs, bool paired, const After& after) {
  const auto count = static_cast<int>(outputs.size());
  int matrices[3];
  int64_t strides[3];
  for (int j = 0; j < count; ++j) {
    matrices[j] = outputs[static_cast<size_t>(j)].matrix;
    strides[j] = outputs[static_cast<size_t>(j)].stride;
  }
  std::vector<float>& efforts = scratch_.draft_efforts;
  efforts.clear();
  for (int row = 0; row < in.rows; ++row)
    for (int j = 0; j < count; ++j) efforts.push_back(static_cast<float>(in.effort(row, matrices[j])));
  for (int first = 0; first < in.rows; first += kDraftRows) {
    float* y[3];
    for (int j = 0; j < count; ++j) y[j] = outputs[static_cast<size_t>(j)].y + first * strides[j];
    const DraftRows rows{std::min(kDraftRows, in.rows - first), in.x + first * in.stride, in.stride,
                         efforts.data() + first * count, y, strides};
    auto finished = [&](int j, int row, int64_t from, int64_t to) { after(j, first + row, from, to); };
    using Finished = decltype(finished);
    const DraftAfter then{&finished,
                          [](void* self, int j, int row, int64_t from, int64_t to) {
                            (*static_cast<Finished*>(self))(j, row, from, to);
                          },
                          paired};
    shared_bytes_ += draft_->multiply(*model_.pool_, count, matrices, rows, &then);
  }
}

}  // namespace specdec
