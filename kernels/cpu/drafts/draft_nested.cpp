#include "draft_nested.h"

#include <algorithm>
#include <cstring>

namespace specdec {

bool NestedView::complete() const {
  for (int m = 0; m < model_.shape().matrix_count(); ++m) {
    const PackedMatrix& matrix = model_.matrix(m);
    if (matrix.out == 0) continue;  // on other devices
    if (!matrix.loaded() || (matrix.is_quantised() && matrix.quantised.scores.empty())) return false;
  }
  return true;
}

// Fills masks_ for each row and matrix; returns the bytes that their choice reads.
uint64_t NestedView::choose(Pool& pool, int count, const int* matrices, const DraftRows& in) {
  const int64_t inputs = model_.matrix(matrices[0]).in, groups = inputs / kQuantGroup;
  const int all = in.rows * count;
  scratch_.reserve(static_cast<size_t>(all * inputs));
  masks_.reserve(static_cast<size_t>(all * groups));
  auto one = [&](int n, int) {
    const PackedMatrix& matrix = model_.matrix(matrices[n % count]);
    if (!matrix.is_quantised()) return;
    model_.kernels().draft.choose({in.row(n / count), matrix.quantised.scores.data(), inputs, in.efforts[n],
                                   scratch_.data() + n * inputs, masks_.data() + n * groups});
  };
  if (all * inputs < 8192 || std::all_of(in.efforts, in.efforts + all, [](float e) { return e >= 1; }))
    for (int n = 0; n < all; ++n) one(n, 0);
  else
    pool.run(all, one);
  uint64_t bytes = 0;
  for (int m = 0; m < count; ++m) {
    const PackedMatrix& matrix = model_.matrix(matrices[m]);
    if (!matrix.is_quantised()) continue;
    const QuantFormat& format = matrix.quantised.type.format();
    const int64_t heads = format.unit_head() * 2 / format.unit + format.group_head() * 2;  // half bytes for each output
    int64_t halves = 0;
    for (int64_t g = 0; g < groups; ++g) {
      uint32_t any = 0;
      for (int row = 0; row < in.rows; ++row) any |= masks_[static_cast<size_t>((row * count + m) * groups + g)];
      halves += __builtin_popcount(any) + (any != 0 ? heads : 0);
    }
    bytes += static_cast<uint64_t>(halves * matrix.out / 2);
  }
  return bytes;
}

// Every thread's share of the parts is its share of the tiles of each matrix; within it one part fetches for the next.
void NestedView::plan(int threads, int count, const int* matrices, const DraftRows& in) {
  parts_.clear();
  calls_.clear();
  const int64_t groups = model_.matrix(matrices[0]).in / kQuantGroup;
  for (int owner = 0; owner < threads; ++owner)
    for (int m = 0; m < count; ++m) {
      const PackedMatrix& matrix = model_.matrix(matrices[m]);
      if (!matrix.is_quantised()) continue;
      const QuantMatrix& quantised = matrix.quantised;
      const int last = quantised.tiles * (owner + 1) / threads;
      for (int t = quantised.tiles * owner / threads; t < last; ++t) {
        parts_.push_back({m, quantised.tile_start(t)});
        for (int row = 0; row < in.rows; ++row)
          calls_.push_back({quantised.type.format(), quantised.tile(t), groups, in.row(row),
                            masks_.data() + (row * count + m) * groups, nullptr, nullptr, true});
      }
    }
  const size_t parts = parts_.size(), shares = static_cast<size_t>(threads), rows = static_cast<size_t>(in.rows);
  for (size_t p = 0; p + 1 < parts; ++p) {
    bool same = true;
    for (size_t t = 1; t < shares; ++t) same &= parts * t / shares != p + 1;
    for (size_t r = p * rows; same && r < (p + 1) * rows; ++r) {
      calls_[r].next = &calls_[r + rows];
      calls_[r + rows].cold = false;
    }
  }
}

// A matrix in 16 bits: all its inputs, two panels at a time for all rows.
uint64_t NestedView::multiply_whole(Pool& pool, const PackedMatrix& matrix, int m, const DraftRows& in) {
  const int64_t panels = matrix.panel_count(), parts = std::min<int64_t>(panels, 4 * pool.threads());
  pool.run(static_cast<int>(parts), [&](int part, int) {
    const int64_t end = panels * (part + 1) / parts, step = in.rows == 1 ? panels : 2;
    for (int64_t first = panels * part / parts; first < end; first += step)
      for (int row = 0; row < in.rows; ++row)
        model_.kernels().dense.multiply(matrix.dense_call(in.row(row), RowTiles(1, 1), in.result(m, row), matrix.out), first,
                                        std::min(first + step, end));
  });
  return static_cast<uint64_t>(panels * matrix.panel_bytes());
}

uint64_t NestedView::multiply(Pool& pool, int count, const int* matrices, const DraftRows& in, const DraftAfter* after) {
  uint64_t bytes = 0;
  for (int m = 0; m < count; ++m) {
    const PackedMatrix& matrix = model_.matrix(matrices[m]);
    if (!matrix.is_quantised()) bytes += multiply_whole(pool, matrix, m, in);
  }
  bytes += choose(pool, count, matrices, in);
  plan(pool.threads(), count, matrices, in);
  int64_t widest = 0;
  for (const NestedCall& call : calls_) widest = std::max(widest, call.tile.width);
  sums_.reserve(static_cast<size_t>(widest * in.rows * pool.threads()));
  pool.run(static_cast<int>(parts_.size()), [&](int p, int thread) {
    const Part& part = parts_[static_cast<size_t>(p)];
    const int64_t outputs = model_.matrix(matrices[part.matrix]).out - part.first;
    NestedCall calls[kDraftRows];
    for (int row = 0; row < in.rows; ++row) {
      calls[row] = calls_[static_cast<size_t>(p * in.rows + row)];
      calls[row].sums = sums_.data() + (thread * in.rows + row) * widest;
    }
    model_.kernels().quant.nested(calls, in.rows);
    for (int row = 0; row < in.rows; ++row)
      std::memcpy(in.result(part.matrix, row) + part.first, calls[row].sums,
                  static_cast<size_t>(std::min(calls[row].tile.width, outputs)) * sizeof(float));
  });
  int64_t outs[3];
  for (int m = 0; m < count; ++m) outs[m] = model_.matrix(matrices[m]).out;
  finish(pool, count, outs, in, after);
  return bytes;
}

}  // namespace specdec
