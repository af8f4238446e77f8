#include "draft_nested.h"

#include <algorithm>
#include <cstring>

#include "draft_chunks.h"

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

// Cuts a multiplication: by outputs into the tiles of its matrices, and by inputs where there are few tiles.
NestedView::Job NestedView::job(int count, const int* matrices, const DraftRows& in, const DraftAfter* after) const {
  Job job{count, matrices, in, after, 1, model_.matrix(matrices[0]).in / kQuantGroup, 0, 0, after != nullptr && after->paired};
  int64_t blocks = 0;
  for (int m = 0; m < count; ++m) {
    const PackedMatrix& matrix = model_.matrix(matrices[m]);
    if (!matrix.is_quantised()) continue;
    blocks += matrix.quantised.blocks();
    job.padded = std::max(job.padded, matrix.quantised.padded_out());
    for (int t = 0; t < matrix.quantised.tiles; ++t) job.widest = std::max(job.widest, matrix.quantised.tile_width(t));
  }
  job.chunks = chunk_count(std::max<int64_t>(blocks, 1), job.groups);
  return job;
}

// The masks of each chunk, a run of groups.
void NestedView::split_masks(const Job& job) {
  if (job.chunks == 1) return;
  const int64_t lists = int64_t{job.in.rows} * job.count;
  chunk_masks_.reserve(static_cast<size_t>(lists * job.chunks * job.groups));
  std::fill_n(chunk_masks_.data(), lists * job.chunks * job.groups, 0U);
  for (int64_t n = 0; n < lists; ++n)
    for (int64_t c = 0; c < job.chunks; ++c) {
      const int64_t first = job.groups * c / job.chunks, last = job.groups * (c + 1) / job.chunks;
      std::copy_n(masks_.data() + n * job.groups + first, last - first,
                  chunk_masks_.data() + (n * job.chunks + c) * job.groups + first);
    }
}

// Parts lie unit after unit. Within a thread's share of them (see Pool::run) one part prefetches for the next.
void NestedView::plan(int threads, const Job& job) {
  parts_.clear();
  calls_.clear();
  units_ = 0;
  if (job.paired) {
    for (int t = 0; t < model_.matrix(job.matrices[0]).quantised.tiles; ++t, ++units_)
      for (int m = 0; m < job.count; ++m) add_part(job, m, t, units_);
  } else {
    for (int m = 0; m < job.count; ++m) {
      const PackedMatrix& matrix = model_.matrix(job.matrices[m]);
      for (int t = 0; matrix.is_quantised() && t < matrix.quantised.tiles; ++t, ++units_) add_part(job, m, t, units_);
    }
  }
  if (left_room_ < static_cast<size_t>(units_)) {
    left_ = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(units_));
    left_room_ = static_cast<size_t>(units_);
  }
  const int of_unit = static_cast<int>(job.chunks) * (job.paired ? job.count : 1);
  for (int u = 0; u < units_; ++u) left_[static_cast<size_t>(u)].store(of_unit, std::memory_order_relaxed);
  const size_t parts = parts_.size(), shares = static_cast<size_t>(threads), rows = static_cast<size_t>(job.in.rows);
  for (size_t p = 0; p + 1 < parts; ++p) {
    bool same = true;
    for (size_t t = 1; t < shares; ++t) same &= parts * t / shares != p + 1;
    for (size_t r = p * rows; same && r < (p + 1) * rows; ++r) {
      calls_[r].next = &calls_[r + rows];
      calls_[r + rows].cold = false;
    }
  }
}

// The parts of one tile.
void NestedView::add_part(const Job& job, int m, int tile, int unit) {
  const QuantMatrix& quantised = model_.matrix(job.matrices[m]).quantised;
  for (int chunk = 0; chunk < job.chunks; ++chunk) {
    parts_.push_back({m, tile, chunk, unit, quantised.tile_start(tile)});
    for (int row = 0; row < job.in.rows; ++row) {
      const int64_t list = int64_t{row} * job.count + m;
      const uint32_t* masks = job.chunks == 1 ? masks_.data() + list * job.groups
                                              : chunk_masks_.data() + (list * job.chunks + chunk) * job.groups;
      calls_.push_back({quantised.type.format(), quantised.tile(tile), job.groups, job.in.row(row), masks, nullptr, nullptr, true});
    }
  }
}

// The thread that ends the last part of a unit adds up its chunks.
void NestedView::run_part(const Job& job, int p, int thread) {
  const Part& part = parts_[static_cast<size_t>(p)];
  const int rows = job.in.rows;
  NestedCall calls[kDraftRows];
  for (int row = 0; row < rows; ++row) {
    calls[row] = calls_[static_cast<size_t>(p * rows + row)];
    calls[row].sums = job.chunks == 1 ? sums_.data() + (int64_t{thread} * rows + row) * job.widest
                                      : chunk_sums(job, row, part.matrix, part.chunk) + part.first;
  }
  model_.kernels().quant.nested(calls, rows);
  const int64_t outputs = std::min(calls[0].tile.width, model_.matrix(job.matrices[part.matrix]).out - part.first);
  for (int row = 0; row < rows && job.chunks == 1; ++row)
    std::memcpy(job.in.result(part.matrix, row) + part.first, calls[row].sums, static_cast<size_t>(outputs) * sizeof(float));
  if (left_[static_cast<size_t>(part.unit)].fetch_sub(1, std::memory_order_acq_rel) == 1) finish_unit(job, part);
}

// Writes the results of the unit that `part` belongs to, and runs the steps that follow them.
void NestedView::finish_unit(const Job& job, const Part& part) {
  const int first = job.paired ? 0 : part.matrix, last = job.paired ? job.count : part.matrix + 1;
  const QuantMatrix& matrix = model_.matrix(job.matrices[part.matrix]).quantised;
  const int64_t end = std::min(part.first + matrix.tile_width(part.tile), matrix.out);
  for (int row = 0; row < job.in.rows; ++row) {
    for (int m = first; m < last && job.chunks > 1; ++m)
      model_.kernels().draft.add_up(chunk_sums(job, row, m, 0) + part.first, job.chunks, job.padded, end - part.first,
                                    job.in.result(m, row) + part.first);
    if (job.after != nullptr) (*job.after)(job.paired ? 0 : part.matrix, row, part.first, end);
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
  int64_t outs[3];
  bool at_once = true;  // later steps can run tile by tile
  for (int m = 0; m < count; ++m) {
    const PackedMatrix& matrix = model_.matrix(matrices[m]);
    outs[m] = matrix.out;
    at_once &= matrix.is_quantised() && matrix.quantised.tiles == model_.matrix(matrices[0]).quantised.tiles;
    if (!matrix.is_quantised()) bytes += multiply_whole(pool, matrix, m, in);
  }
  if (after != nullptr && !after->paired)
    at_once = std::all_of(matrices, matrices + count, [&](int m) { return model_.matrix(m).is_quantised(); });
  bytes += choose(pool, count, matrices, in);
  const Job job = this->job(count, matrices, in, at_once ? after : nullptr);
  split_masks(job);
  plan(pool.threads(), job);
  const int64_t floats = job.chunks == 1 ? pool.threads() * job.widest : count * job.chunks * job.padded;
  sums_.reserve(static_cast<size_t>(in.rows * floats));
  pool.run(static_cast<int>(parts_.size()), [&](int p, int thread) { run_part(job, p, thread); });
  if (!at_once) finish(pool, count, outs, in, after);
  return bytes;
}

}  // namespace specdec
