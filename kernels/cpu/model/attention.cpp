// How a pass spreads attention over threads. The arithmetic is in attention.inl.

#include <cmath>
#include <limits>

#include "forward.h"

namespace specdec {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// With at most this many rows threads share out the chunks of the context, with more the rows.
constexpr int kFewRows = 16;

}  // namespace

// Tokens [first_token, last_token) times query heads [first_head, last_head) of one key-value head.
struct Pass::AttentionTile {
  int kv_head, first_token, last_token, first_head, last_head;
  int rows() const { return (last_token - first_token) * (last_head - first_head); }
};

namespace {

// Tiles of one key-value head: several tokens with all their query heads, or some heads of one token.
struct Tiling {
  int tokens, splits, heads, count;
  Tiling(int rows, int group, int max_tile) {
    heads = std::min(group, max_tile);
    splits = (group + heads - 1) / heads;
    tokens = splits > 1 ? 1 : std::max(1, max_tile / group);
    count = (rows + tokens - 1) / tokens * splits;
  }
};

}  // namespace

Pass::AttentionTile Pass::attention_tile(int kv_head, int index) const {
  const int group = shape_.heads / shape_.kv_heads;
  const Tiling tiling(rows_, group, kernels_.dense.max_tile);
  const int token = index / tiling.splits * tiling.tokens, head = index % tiling.splits * tiling.heads;
  return {kv_head, token, std::min(token + tiling.tokens, rows_), head, std::min(head + tiling.heads, group)};
}

int64_t Pass::first_seen(int layer, int64_t position) const {
  const int64_t window = shape_.windows[static_cast<size_t>(layer)];
  return window == 0 ? 0 : std::max<int64_t>(0, position - window + 1);
}

void Pass::attend(int layer) {
  const int64_t last = start_ + rows_ - 1, first_chunk = first_seen(layer, start_) / kChunk;
  bytes_ += static_cast<uint64_t>(last + 1 - first_seen(layer, start_)) * 2 * sizeof(uint16_t) *
            static_cast<uint64_t>(shape_.kv_heads) * static_cast<uint64_t>(shape_.head_dim);
  if (rows_ <= kFewRows)
    attend_by_chunk(layer, first_chunk, last / kChunk + 1 - first_chunk);
  else
    attend_by_tile(layer);
}

void Pass::gather_q(const AttentionTile& tile, float* q) const {
  const int64_t size = shape_.head_dim, stride = padded(shape_.heads * size);
  const int group = shape_.heads / shape_.kv_heads, rows = tile.rows();
  int r = 0;
  for (int token = tile.first_token; token < tile.last_token; ++token)
    for (int head = tile.first_head; head < tile.last_head; ++head, ++r) {
      const float* from = scratch_.qkv[0].data() + token * stride + (tile.kv_head * group + head) * size;
      for (int64_t d = 0; d < size; ++d) q[d * rows + r] = from[d];
    }
}

void Pass::attend_tile(int layer, const AttentionTile& tile, int64_t chunk, const float* q, float* scratch, float* peak,
                       float* total, float* sums) {
  int32_t from[kMaxTile], to[kMaxTile];
  const int heads = tile.last_head - tile.first_head;
  const int64_t base = chunk * kChunk;
  for (int r = 0; r < tile.rows(); ++r) {
    const int64_t position = start_ + tile.first_token + r / heads;
    from[r] = static_cast<int32_t>(std::clamp<int64_t>(first_seen(layer, position) - base, 0, kChunk));
    to[r] = static_cast<int32_t>(std::clamp<int64_t>(position + 1 - base, 0, kChunk));
  }
  kernels_.attention.chunk({cache_.keys(layer, tile.kv_head), cache_.values(layer, tile.kv_head), cache_.value_stride,
                            shape_.head_dim, 1.0F / std::sqrt(static_cast<float>(shape_.head_dim)), q, tile.rows(),
                            chunk, from, to, peak, total, sums, scratch});
}

void Pass::finish_row(const float* sums, float total, int token, int head) {
  const int64_t size = shape_.head_dim;
  float* y = scratch_.attended.data() + token * padded(shape_.heads * size) + head * size;
  const float scale = 1.0F / total;
  for (int64_t d = 0; d < size; ++d) y[d] = sums[d] * scale;
}

// Every chunk of every key-value head by itself, then each row's chunks in ascending order.
void Pass::attend_by_chunk(int layer, int64_t first_chunk, int64_t chunks) {
  const int group = shape_.heads / shape_.kv_heads, heads = shape_.heads;
  const int64_t stride = cache_.value_stride, count = int64_t{rows_} * heads;
  const Tiling tiling(rows_, group, kernels_.dense.max_tile);
  scratch_.partial.reserve(static_cast<size_t>(chunks * count * (stride + 2)));
  float* peaks = scratch_.partial.data();  // [chunk][kv head][token][head of the group], then totals, then sums
  float* totals = peaks + chunks * count;
  float* sums = totals + chunks * count;
  const int64_t work = count * chunks * kChunk * shape_.head_dim;
  each(static_cast<int>(chunks) * shape_.kv_heads, work, [&](int part, int thread) {
    const int kv_head = part % shape_.kv_heads;
    const int64_t chunk = part / shape_.kv_heads;
    float* scratch = thread_scratch(thread);
    float* q = scratch + attention_scratch_floats();
    for (int t = 0; t < tiling.count; ++t) {
      const AttentionTile tile = attention_tile(kv_head, t);
      const int64_t at = chunk * count + (int64_t{kv_head} * rows_ + tile.first_token) * group + tile.first_head;
      gather_q(tile, q);
      attend_tile(layer, tile, first_chunk + chunk, q, scratch, peaks + at, totals + at, sums + at * stride);
    }
  });
  each(static_cast<int>(count), count * chunks * stride, [&](int row, int thread) {
    float* scratch = thread_scratch(thread);
    float peak = kNothing, total = 0;
    std::fill(scratch, scratch + stride, 0.0F);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t at = chunk * count + row;
      if (peaks[at] == kNothing) continue;
      kernels_.attention.combine(&peak, &total, scratch, peaks[at], totals[at], sums + at * stride, stride);
    }
    const int kv_head = row / (rows_ * group), token = row / group % rows_;
    finish_row(scratch, total, token, kv_head * group + row % group);
  });
}

// The same sums, chunk after chunk for a tile at a time.
void Pass::attend_by_tile(int layer) {
  const int group = shape_.heads / shape_.kv_heads;
  const int64_t stride = cache_.value_stride;
  const Tiling tiling(rows_, group, kernels_.dense.max_tile);
  model_.pool_->run(tiling.count * shape_.kv_heads, [&](int part, int thread) {
    const AttentionTile tile = attention_tile(part % shape_.kv_heads, part / shape_.kv_heads);
    const int rows = tile.rows();
    float* scratch = thread_scratch(thread);
    float* q = scratch + attention_scratch_floats();
    float* sums = q + kMaxTile * padded(shape_.head_dim);
    float* chunk_sums = sums + kMaxTile * padded(shape_.head_dim);
    float peak[kMaxTile], total[kMaxTile], chunk_peak[kMaxTile], chunk_total[kMaxTile];
    gather_q(tile, q);
    std::fill(peak, peak + rows, kNothing);
    std::fill(total, total + rows, 0.0F);
    std::fill(sums, sums + rows * stride, 0.0F);
    const int64_t first = first_seen(layer, start_ + tile.first_token) / kChunk;
    const int64_t last = (start_ + tile.last_token - 1) / kChunk;
    for (int64_t chunk = first; chunk <= last; ++chunk) {
      attend_tile(layer, tile, chunk, q, scratch, chunk_peak, chunk_total, chunk_sums);
      for (int r = 0; r < rows; ++r)
        if (chunk_peak[r] != kNothing)
          kernels_.attention.combine(peak + r, total + r, sums + r * stride, chunk_peak[r], chunk_total[r],
                                     chunk_sums + r * stride, stride);
    }
    const int heads = tile.last_head - tile.first_head;
    for (int r = 0; r < rows; ++r)
      finish_row(sums + r * stride, total[r], tile.first_token + r / heads,
                 tile.kv_head * group + tile.first_head + r % heads);
  });
}

}  // namespace specdec
