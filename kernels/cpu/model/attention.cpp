// How a pass spreads attention over threads, and what a row of a tree sees. The arithmetic is in attention.inl.

#include <cmath>
#include <cstring>
#include <limits>

#include "forward.h"

namespace specdec {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// With at most this many rows of a sequence threads share out the chunks of the context, with more the rows.
constexpr int kFewRows = 16;

}  // namespace

// Some query rows of a sequence that read one key-value head: row r is head r % group of its group, of token r / group.
struct Pass::AttentionTile {
  int kv_head, first, last;
  int rows() const { return last - first; }
};

Pass::AttentionTile Pass::attention_tile(int layer, const Sequence& s, int kv_head, int index) const {
  const RowTiles tiles = query_tiles(layer, s);
  return {kv_head, tiles.start(index), tiles.start(index + 1)};
}

// Positions that a row sees: [sink, sinks), which may be empty, and from `first` to its own.
struct Pass::Seen {
  int64_t sink, sinks, first;
};

Pass::Seen Pass::seen(int layer, const Sequence& s, int64_t position) const {
  const int64_t window = shape_of(layer).window;
  const int64_t start = window == 0 ? 0 : std::max<int64_t>(0, position - window + 1);
  if (s.given->recent == 0) return {0, 0, start};
  const int64_t recent = std::max<int64_t>(0, position + 1 - s.given->recent) / kChunk * kChunk;
  if (recent == 0 || start >= s.given->sinks) return {0, 0, std::max(start, recent)};
  return {start, s.given->sinks, std::max(start, recent)};
}

// The chunks that rows at positions `first` to `last` see together.
void Pass::place_chunks(int layer, Sequence& s, int64_t first, int64_t last) const {
  const Seen all = seen(layer, s, first);
  s.sinks = all.sinks > 0;
  s.first_chunk = all.first / kChunk;
  s.chunks = last / kChunk + 1 - s.first_chunk + (s.sinks ? 1 : 0);
}

// Keys and values of a chunk of one row's path, in floats.
int64_t Pass::tree_floats() const {
  const bool any = std::any_of(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return s.tree; });
  const int64_t size = largest_head();
  return any ? kChunk * (size + padded(size)) * model_.cache_shape_->value_bytes() / 4 + 64 : 0;
}

// The parts of a sequence's attention. With few rows: chunks of the context, whose query heads several threads may
// share where there are many threads. With many rows: tiles of rows.
void Pass::cut_attention(int layer, Sequence& s, int threads) const {
  const LayerShape& shape = shape_of(layer);
  const int queries = s.rows * shape.group();
  s.by_chunk = s.tree || s.rows <= kFewRows;
  s.pieces = s.tree || !s.by_chunk ? 1 : std::clamp(threads / static_cast<int>(shape.kv_heads * s.chunks), 1, queries);
  s.tile_rows = std::min(kernels_.dense.max_tile, (queries + s.pieces - 1) / s.pieces);
  s.parts = shape.kv_heads * (s.by_chunk ? static_cast<int>(s.chunks) * s.pieces : query_tiles(layer, s).count);
}

// Tiles of the query rows that read one key-value head.
RowTiles Pass::query_tiles(int layer, const Sequence& s) const {
  return RowTiles(s.rows * shape_of(layer).group(), s.tile_rows);
}

// One region for all sequences; then a row's chunks are joined, by the thread that ends the last one where that is
// cheap.
void Pass::attend(int layer) {
  const LayerShape& shape = shape_of(layer);
  if (shape.kv_heads == 0) return finish_attended(layer);  // other ranks have the heads of this layer
  const int64_t stride = model_.cache_shape_->layer(layer).value_stride;
  const int threads = model_.pool_->threads() / static_cast<int>(active_);
  int64_t floats = 0, queries = 0, work = 0, joined_work = 0;
  int parts = 0, joined = 0;
  for (size_t j = 0; j < active_; ++j) {
    Sequence& s = sequences_[j];
    const int64_t rows = int64_t{s.rows} * shape.heads;
    place_chunks(layer, s, s.start, s.last);
    cut_attention(layer, s, threads);
    s.first_part = parts;
    s.first_joined = joined;
    s.partial = floats;
    const Seen all = seen(layer, s, s.start);
    s.given->bytes += static_cast<uint64_t>(s.start + s.rows - all.first + all.sinks - all.sink) * 2 *
                      static_cast<uint64_t>(shape.kv_width() * model_.cache_shape_->value_bytes());
    work += rows * s.chunks * kChunk * shape.head_dim;
    parts += s.parts;
    if (!s.by_chunk) continue;
    s.queries = queries;
    queries += rows * shape.head_dim;
    joined += static_cast<int>(rows);
    joined_work += rows * s.chunks * stride;
    floats += s.chunks * rows * (stride + 2);
  }
  scratch_.partial.reserve(static_cast<size_t>(floats));
  scratch_.queries.reserve(static_cast<size_t>(queries));
  const bool join_at_once = joined_work < kWorthSharing;
  count_chunks(layer);
  each(static_cast<int>(active_), queries * 4, [&](int j, int) { gather_queries(layer, sequences_[static_cast<size_t>(j)]); });
  each(parts, work, [&](int part, int thread) {
    size_t j = active_ - 1;
    while (sequences_[j].first_part > part) --j;
    const Sequence& s = sequences_[j];
    if (!s.by_chunk) return attend_tiles(layer, s, part - s.first_part, thread);
    attend_chunk(layer, s, part - s.first_part, thread);
    if (join_at_once) end_chunk(layer, j, part - s.first_part, thread);
  });
  if (!join_at_once)
    each(joined, joined_work, [&](int row, int thread) {
      size_t j = active_ - 1;
      while (!sequences_[j].by_chunk || sequences_[j].first_joined > row) --j;
      join_chunks(layer, sequences_[j], row - sequences_[j].first_joined, thread);
    });
  finish_attended(layer);
}

// Sets how many parts of each sequence and key-value head are still to come.
void Pass::count_chunks(int layer) {
  const auto heads = static_cast<size_t>(shape_of(layer).kv_heads), count = active_ * heads;
  if (scratch_.chunk_room < count) {
    scratch_.chunks_left = std::make_unique<std::atomic<int>[]>(count);
    scratch_.chunk_room = count;
  }
  for (size_t j = 0; j < count; ++j)
    scratch_.chunks_left[j].store(static_cast<int>(sequences_[j / heads].chunks) * sequences_[j / heads].pieces,
                                  std::memory_order_relaxed);
}

// Counts a part of sequence `j` as done, and joins the rows of its key-value head after the last.
void Pass::end_chunk(int layer, size_t j, int part, int thread) {
  const LayerShape& shape = shape_of(layer);
  const int kv_head = part % shape.kv_heads, rows = sequences_[j].rows * shape.group();
  std::atomic<int>& left = scratch_.chunks_left[j * static_cast<size_t>(shape.kv_heads) + static_cast<size_t>(kv_head)];
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  for (int row = kv_head * rows; row < (kv_head + 1) * rows; ++row) join_chunks(layer, sequences_[j], row, thread);
}

// Gates what attention returns; the next product reads zeros past its end, where layers of other sizes may have written.
void Pass::finish_attended(int layer) {
  const LayerShape& shape = shape_of(layer);
  const int64_t width = shape.q_width(), stride = padded(width);
  for (int row = 0; row < rows_ && width < stride; ++row)
    std::fill_n(scratch_.attended.data() + row * stride + width, stride - width, 0.0F);
  if (!shape.gate) return;
  each(rows_, rows_ * width * 4, [&](int row, int) {
    kernels_.element.sigmoid_mul(scratch_.attended.data() + row * stride, scratch_.attn_gate.data() + row * stride, width);
  });
}

// The queries of a tile, dimension after dimension.
void Pass::gather_q(int layer, const Sequence& s, const AttentionTile& tile, float* q) const {
  const int64_t size = shape_of(layer).head_dim, stride = padded(shape_of(layer).q_width());
  const int group = shape_of(layer).group(), rows = tile.rows();
  for (int r = 0; r < rows; ++r) {
    const int token = (tile.first + r) / group, head = tile.kv_head * group + (tile.first + r) % group;
    const float* from = scratch_.qkv[0].data() + (s.first + token) * stride + head * size;
    for (int64_t d = 0; d < size; ++d) q[d * rows + r] = from[d];
  }
}

// All queries of a sequence whose chunks are shared out, tile after tile.
void Pass::gather_queries(int layer, const Sequence& s) {
  if (!s.by_chunk || s.pieces > 1) return;
  const LayerShape& shape = shape_of(layer);
  const RowTiles tiles = query_tiles(layer, s);
  float* q = scratch_.queries.data() + s.queries;
  for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head, q += tiles.rows * shape.head_dim)
    for (int t = 0; t < tiles.count; ++t)
      gather_q(layer, s, {kv_head, tiles.start(t), tiles.start(t + 1)}, q + tiles.start(t) * shape.head_dim);
}

// A tile over one chunk, whose values lie after its keys; `next` are the keys that this thread reads after them.
void Pass::attend_tile(int layer, const Sequence& s, const AttentionTile& tile, int64_t chunk, uint8_t* keys,
                       const uint8_t* next, const float* q, float* scratch, float* peak, float* total, float* sums) {
  int32_t from[kMaxTile], to[kMaxTile];
  const int group = shape_of(layer).group();
  const int64_t base = chunk * kChunk;
  for (int r = 0; r < tile.rows(); ++r) {
    const int64_t position = scratch_.positions[static_cast<size_t>(s.first + (tile.first + r) / group)];
    const Seen row = seen(layer, s, position);
    const bool only_sinks = chunk == 0 && row.sinks > 0;
    from[r] = static_cast<int32_t>(only_sinks ? row.sink : std::clamp<int64_t>(row.first - base, 0, kChunk));
    to[r] = static_cast<int32_t>(only_sinks ? row.sinks : std::clamp<int64_t>(position + 1 - base, 0, kChunk));
  }
  const int64_t size = shape_of(layer).head_dim;
  const CacheShape& cached = *model_.cache_shape_;
  const CacheShape::Layer& of_layer = cached.layer(layer);
  kernels_.attention.chunk({keys, cached.values_of(of_layer, keys), cached.single(), of_layer.value_stride,
                            static_cast<int>(size), parts_of(layer).scale, shape_of(layer).softcap, q, tile.rows(), from,
                            to, peak, total, sums, scratch, next});
}

// What a row's softmax holds before it has seen a chunk: nothing, or the sink of its head.
void Pass::start_row(int layer, int head, float* peak, float* total) const {
  const float* sinks = parts_of(layer).sinks;
  *peak = sinks == nullptr ? kNothing : sinks[head];
  *total = sinks == nullptr ? 0.0F : 1.0F;
}

void Pass::finish_row(int layer, const Sequence& s, const float* sums, float total, int token, int head) {
  const int64_t size = shape_of(layer).head_dim;
  float* y = scratch_.attended.data() + (s.first + token) * padded(shape_of(layer).q_width()) + head * size;
  const float scale = 1.0F / total;
  for (int64_t d = 0; d < size; ++d) y[d] = sums[d] * scale;
}

// One chunk of one key-value head by itself, for all rows of a sequence.
void Pass::attend_chunk(int layer, const Sequence& s, int part, int thread) {
  const LayerShape& shape = shape_of(layer);
  const int group = shape.group(), kv_head = part % shape.kv_heads;
  const KvCache& cache = *s.given->cache;
  const int64_t stride = cache.shape().layer(layer).value_stride, count = int64_t{s.rows} * shape.heads;
  const int piece = part / shape.kv_heads % s.pieces;
  const int64_t index = part / shape.kv_heads / s.pieces, chunk = s.chunk(index);
  // [chunk][kv head][token][head of the group], then totals, then sums
  const int64_t own = index * count + int64_t{kv_head} * s.rows * group;
  float* peaks = scratch_.partial.data() + s.partial + own;
  float* totals = peaks + s.chunks * count;
  float* sums = scratch_.partial.data() + s.partial + 2 * s.chunks * count + own * stride;
  if (s.tree && (chunk + 1) * kChunk > s.start) {
    attend_tree(layer, s, kv_head, chunk, peaks, totals, sums, thread);
    return;
  }
  const RowTiles tiles = query_tiles(layer, s);
  uint8_t* keys = cache.keys(layer, kv_head, chunk);
  if (s.pieces > 1) {
    float *scratch = thread_scratch(thread), *q = scratch + attention_scratch_floats();
    for (int t = tiles.count * piece / s.pieces; t < tiles.count * (piece + 1) / s.pieces; ++t) {
      const AttentionTile tile{kv_head, tiles.start(t), tiles.start(t + 1)};
      gather_q(layer, s, tile, q);
      attend_tile(layer, s, tile, chunk, keys, keys, q, scratch, peaks + tile.first, totals + tile.first,
                  sums + tile.first * stride);
    }
    return;
  }
  const float* q = scratch_.queries.data() + s.queries + int64_t{kv_head} * tiles.rows * shape.head_dim;
  const int next_part = std::min(part + 1, static_cast<int>(s.chunks) * shape.kv_heads - 1);
  const uint8_t* next = cache.keys(layer, next_part % shape.kv_heads, s.chunk(next_part / shape.kv_heads));
  for (int t = 0; t < tiles.count; ++t) {
    const int64_t at = tiles.start(t);
    attend_tile(layer, s, {kv_head, tiles.start(t), tiles.start(t + 1)}, chunk, keys, t == 0 ? next : nullptr,
                q + at * shape.head_dim, thread_scratch(thread), peaks + at, totals + at, sums + at * stride);
  }
}

// The same for a chunk that holds rows of the tree itself: each row sees its own path, laid out by position, so that its
// sums are those of a chain.
void Pass::attend_tree(int layer, const Sequence& s, int kv_head, int64_t chunk, float* peaks, float* totals, float* sums,
                       int thread) {
  const int group = shape_of(layer).group();
  const KvCache& cache = *s.given->cache;
  const CacheShape::Layer& place = cache.shape().layer(layer);
  const int64_t stride = place.value_stride, size = place.head_dim, base = chunk * kChunk;
  float* scratch = thread_scratch(thread);
  float* q = scratch + attention_scratch_floats();
  auto* keys = reinterpret_cast<uint8_t*>(q + kMaxTile * padded(size));
  if (const int64_t before = std::max<int64_t>(s.start - base, 0); before > 0) {
    const int64_t panels = (before + kPanel - 1) / kPanel, bytes = cache.shape().value_bytes();
    uint8_t* held_keys = cache.keys(layer, kv_head, chunk);
    std::copy_n(held_keys, panels * size * kPanel * bytes, keys);
    std::copy_n(cache.shape().values_of(place, held_keys), before * stride * bytes, cache.shape().values_of(place, keys));
  }
  int32_t held[kMaxTreeRows];  // which row's keys and values lie at each depth
  std::fill_n(held, kMaxTreeRows, -1);
  const RowTiles tiles(group, kernels_.dense.max_tile);
  for (int token = 0; token < s.rows; ++token) {
    const int64_t first = int64_t{token} * group;
    std::fill_n(peaks + first, group, kNothing);
    if (scratch_.positions[static_cast<size_t>(s.first + token)] < base) continue;
    gather_path(layer, s, kv_head, chunk, token, held, keys);
    for (int t = 0; t < tiles.count; ++t) {
      const int64_t at = first + tiles.start(t);
      const AttentionTile tile{kv_head, static_cast<int>(at), static_cast<int>(first + tiles.start(t + 1))};
      gather_q(layer, s, tile, q);
      attend_tile(layer, s, tile, chunk, keys, nullptr, q, scratch, peaks + at, totals + at, sums + at * stride);
    }
  }
}

// Puts the keys and values of a row's path where a chain would have them in this chunk.
void Pass::gather_path(int layer, const Sequence& s, int kv_head, int64_t chunk, int token, int32_t* held,
                       uint8_t* keys) {
  const KvCache& cache = *s.given->cache;
  for (int row = token; row >= 0; row = s.given->parents[row]) {
    const int64_t position = scratch_.positions[static_cast<size_t>(s.first + row)];
    int32_t& there = held[position - s.start];
    if (position / kChunk != chunk || there == row) continue;
    there = row;
    const int64_t slot = s.start + row;
    cache.shape().copy_place(cache.shape().layer(layer), cache.keys(layer, kv_head, slot / kChunk), slot % kChunk, keys,
                             position % kChunk);
  }
}

// A row's chunks in ascending order.
void Pass::join_chunks(int layer, const Sequence& s, int row, int thread) {
  const LayerShape& shape = shape_of(layer);
  const int group = shape.group(), kv_head = row / (s.rows * group), token = row / group % s.rows;
  const int head = kv_head * group + row % group;
  const int64_t stride = s.given->cache->shape().layer(layer).value_stride, count = int64_t{s.rows} * shape.heads;
  const float* peaks = scratch_.partial.data() + s.partial;
  const float* totals = peaks + s.chunks * count;
  const float* sums = totals + s.chunks * count;
  float* scratch = thread_scratch(thread);
  float peak, total;
  start_row(layer, head, &peak, &total);
  std::fill(scratch, scratch + stride, 0.0F);
  for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
    const int64_t at = chunk * count + row;
    if (peaks[at] == kNothing) continue;
    kernels_.attention.combine(&peak, &total, scratch, peaks[at], totals[at], sums + at * stride, stride);
  }
  finish_row(layer, s, scratch, total, token, head);
}

// The same sums for many rows, chunk after chunk for a tile at a time.
void Pass::attend_tiles(int layer, const Sequence& s, int part, int thread) {
  const LayerShape& shape = shape_of(layer);
  const int group = shape.group();
  const KvCache& cache = *s.given->cache;
  const int64_t stride = cache.shape().layer(layer).value_stride, room = padded(shape.head_dim);
  const AttentionTile tile = attention_tile(layer, s, part % shape.kv_heads, part / shape.kv_heads);
  const int rows = tile.rows(), first_head = tile.kv_head * group;
  float* scratch = thread_scratch(thread);
  float* q = scratch + attention_scratch_floats();
  float* sums = q + kMaxTile * room;
  float* chunk_sums = sums + kMaxTile * room;
  float peak[kMaxTile], total[kMaxTile], chunk_peak[kMaxTile], chunk_total[kMaxTile];
  gather_q(layer, s, tile, q);
  for (int r = 0; r < rows; ++r) start_row(layer, first_head + (tile.first + r) % group, peak + r, total + r);
  std::fill(sums, sums + rows * stride, 0.0F);
  Sequence own = s;
  place_chunks(layer, own, s.start + tile.first / group, s.start + (tile.last - 1) / group);
  for (int64_t index = 0; index < own.chunks; ++index) {
    const int64_t chunk = own.chunk(index), next = own.chunk(std::min(index + 1, own.chunks - 1));
    attend_tile(layer, s, tile, chunk, cache.keys(layer, tile.kv_head, chunk), cache.keys(layer, tile.kv_head, next), q,
                scratch, chunk_peak, chunk_total, chunk_sums);
    for (int r = 0; r < rows; ++r)
      if (chunk_peak[r] != kNothing)
        kernels_.attention.combine(peak + r, total + r, sums + r * stride, chunk_peak[r], chunk_total[r],
                                   chunk_sums + r * stride, stride);
  }
  for (int r = 0; r < rows; ++r)
    finish_row(layer, s, sums + r * stride, total[r], (tile.first + r) / group, first_head + (tile.first + r) % group);
}

}  // namespace specdec
