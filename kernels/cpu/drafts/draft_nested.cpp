#include "draft_nested.h"

#include <algorithm>
#include <cstring>

namespace specdec {

bool NestedView::complete() const {
  for (int m = 0; m < model_.shape().matrix_count(); ++m) {
    const PackedMatrix& matrix = model_.matrix(m);
    if (!matrix.loaded() || (matrix.is_quantised() && matrix.quantised.scores.empty())) return false;
  }
  return true;
}

// Fills masks_ for each matrix; returns the bytes that the choice reads.
uint64_t NestedView::choose(Pool& pool, int count, const int* matrices, const float* x, const float* efforts) {
  const int64_t in = model_.matrix(matrices[0]).in, groups = in / kQuantGroup;
  scratch_.reserve(static_cast<size_t>(count * in));
  masks_.reserve(static_cast<size_t>(count * groups));
  uint64_t read[3] = {0, 0, 0};
  auto one = [&](int m, int) {
    const PackedMatrix& matrix = model_.matrix(matrices[m]);
    if (!matrix.is_quantised()) return;
    uint32_t* masks = masks_.data() + m * groups;
    const int64_t chosen = model_.kernels().draft.choose(
        {x, matrix.quantised.scores.data(), in, efforts[m], scratch_.data() + m * in, masks});
    const QuantFormat& format = matrix.quantised.type.format();
    int64_t touched = 0;
    for (int64_t g = 0; g < groups; ++g) touched += masks[g] != 0 ? 1 : 0;
    const int64_t heads = format.unit_head() * 2 / format.unit + format.group_head() * 2;  // half bytes for each output
    read[m] = static_cast<uint64_t>((chosen + touched * heads) * matrix.out / 2);
  };
  if (efforts[0] >= 1 || in * count < 8192)
    for (int m = 0; m < count; ++m) one(m, 0);
  else
    pool.run(count, one);
  return read[0] + read[1] + read[2];
}

// Every thread's share of the parts is its share of the tiles of each matrix; within it one part fetches for the next.
void NestedView::plan(int threads, int count, const int* matrices, const float* x) {
  parts_.clear();
  const int64_t groups = model_.matrix(matrices[0]).in / kQuantGroup;
  for (int owner = 0; owner < threads; ++owner)
    for (int m = 0; m < count; ++m) {
      const PackedMatrix& matrix = model_.matrix(matrices[m]);
      if (!matrix.is_quantised()) continue;
      const QuantMatrix& quantised = matrix.quantised;
      const int last = quantised.tiles * (owner + 1) / threads;
      for (int t = quantised.tiles * owner / threads; t < last; ++t)
        parts_.push_back({{quantised.type.format(), quantised.tile(t), groups, x, masks_.data() + m * groups, nullptr,
                           nullptr, true},
                          m,
                          quantised.tile_start(t)});
    }
  const size_t parts = parts_.size(), shares = static_cast<size_t>(threads);
  for (size_t p = 0; p + 1 < parts; ++p) {
    bool same = true;
    for (size_t t = 1; t < shares; ++t) same &= parts * t / shares != p + 1;
    if (!same) continue;
    parts_[p].call.next = &parts_[p + 1].call;
    parts_[p + 1].call.cold = false;
  }
}

uint64_t NestedView::multiply(Pool& pool, int count, const int* matrices, const float* x, const float* efforts,
                              float* const* y) {
  uint64_t bytes = 0;
  for (int m = 0; m < count; ++m) {
    const PackedMatrix& matrix = model_.matrix(matrices[m]);
    if (matrix.is_quantised()) continue;
    const DenseCall call = matrix.dense_call(x, RowTiles(1, 1), y[m], matrix.out);
    const int64_t panels = matrix.panel_count(), parts = std::min<int64_t>(panels, 4 * pool.threads());
    pool.run(static_cast<int>(parts), [&](int part, int) {
      model_.kernels().dense.multiply(call, panels * part / parts, panels * (part + 1) / parts);
    });
    bytes += static_cast<uint64_t>(panels * matrix.in * matrix.line()) * sizeof(uint16_t);
  }
  bytes += choose(pool, count, matrices, x, efforts);
  plan(pool.threads(), count, matrices, x);
  int64_t widest = 0;
  for (const Part& part : parts_) widest = std::max(widest, part.call.tile.width);
  sums_.reserve(static_cast<size_t>(widest * pool.threads()));
  pool.run(static_cast<int>(parts_.size()), [&](int p, int thread) {
    const Part& part = parts_[static_cast<size_t>(p)];
    NestedCall call = part.call;
    call.sums = sums_.data() + thread * widest;
    model_.kernels().quant.nested(call);
    const int64_t outputs = std::min(call.tile.width, model_.matrix(matrices[part.matrix]).out - part.first);
    std::memcpy(y[part.matrix] + part.first, call.sums, static_cast<size_t>(outputs) * sizeof(float));
  });
  return bytes;
}

}  // namespace specdec
