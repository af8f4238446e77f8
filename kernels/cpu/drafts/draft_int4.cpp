#include "draft_int4.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "draft_chunks.h"
#include "half.h"
#include "lines.h"

namespace specdec {
namespace {

// Outputs of a tile, at most. Long rows keep memory busy, but what one pass reads and the next must fit the second-level
// cache.
constexpr int64_t kTileOutputs = 8960;
// Two parts for each thread, so that a slow one can leave one to others, if tiles stay at least so many blocks wide: drafts
// at efforts below 1 read wide rows faster.
constexpr int64_t kPartsOfThread = 2, kWideBlocks = 4;
// Parts that rounding a matrix is split into.
constexpr int64_t kBuildParts = 32;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Where an output of a tile lies in the row of an input: byte and shift. See int4_simd.inl.
struct NibblePlace {
  int64_t byte;
  int shift;
};
NibblePlace nibble_place(int64_t width, int64_t out) {
  const int64_t block = out / kInt4Block * kInt4Block, within = out - block;
  const int64_t lanes = block + kInt4Block <= width ? 4 : 2;
  const int64_t j = within / (4 * lanes), lane = within % (4 * lanes) / 4, l = within % 4;
  return {block / 2 + lane * 16 + j / 2 * 4 + l, static_cast<int>(j % 2 * 4)};
}

// The weights of a panel of a quantised matrix, [in][kPanel]; zeros past the last output.
void panel_of(const QuantMatrix& matrix, int64_t panel, std::vector<float>& weights) {
  std::vector<float> row(static_cast<size_t>(matrix.in));
  weights.assign(row.size() * kPanel, 0.0F);
  for (int64_t o = 0; o < std::min<int64_t>(kPanel, matrix.out - panel * kPanel); ++o) {
    matrix.row(panel * kPanel + o, row.data());
    for (size_t i = 0; i < row.size(); ++i) weights[i * kPanel + static_cast<size_t>(o)] = row[i];
  }
}

}  // namespace

Int4View::Int4View(const KernelTable& kernels, JoinedMatrices joined)
    : kernels_(kernels), joined_(std::move(joined)), packed_(joined_.count()) {}

namespace {

// In how many tiles `blocks` blocks are best cut, each of `times` parts: the most that a thread has to do is least, then
// the tiles are widest.
int64_t tile_count(int64_t blocks, int64_t times, int64_t threads) {
  const int64_t fewest = (blocks * kInt4Block + kTileOutputs - 1) / kTileOutputs;
  const int64_t wanted = threads == 1 ? 1 : kPartsOfThread * threads;
  const int64_t from = std::max(fewest, std::min((wanted + times - 1) / times, blocks / kWideBlocks));
  int64_t best = 0, least = 0;
  for (int64_t count = std::max<int64_t>(from, 1); count <= std::min(blocks, from + 4 * threads); ++count) {
    const int64_t most = (count * times + threads - 1) / threads * ((blocks + count - 1) / count);
    if (best == 0 || most < least) best = count, least = most;
  }
  return best;
}

}  // namespace

void Int4View::layout(Packed& packed, size_t j, int threads) const {
  const std::vector<int>& list = joined_.list(j);
  packed.in = joined_.inputs(j);
  packed.groups = (packed.in + kGroup - 1) / kGroup;
  for (const int m : list) {
    packed.starts.push_back(packed.width);
    packed.width += joined_.shape(m).out;
  }
  const int64_t outputs = round_up(packed.width, kInt4Block / 2), all = round_up(outputs, kInt4Block) / kInt4Block;
  packed.chunks = chunk_count(all, packed.groups);
  packed.all_masks.resize(static_cast<size_t>(packed.groups));
  packed.all_bounds.resize(static_cast<size_t>(packed.chunks + 1));
  kernels_.draft.choose({nullptr, nullptr, packed.in, 1.0F, nullptr, packed.all_masks.data()});
  split(packed, packed.all_masks.data(), packed.all_bounds.data());
  const bool alike = list.size() == 2 && joined_.shape(list[0]).out == joined_.shape(list[1]).out;
  packed.halves = alike && joined_.shape(list[0]).out % kInt4Block == 0 ? 2 : 1;
  const int64_t blocks = all / packed.halves, count = tile_count(blocks, packed.chunks * packed.halves, threads);
  int64_t bytes = 0;
  for (int64_t t = 0; t < count * packed.halves; ++t) {
    const int64_t start = t / count * blocks, of_half = t % count;
    const int64_t first = (start + blocks * of_half / count) * kInt4Block;
    const int64_t last = std::min((start + blocks * (of_half + 1) / count) * kInt4Block, outputs);
    packed.tiles.push_back({first, last - first, nullptr});
    bytes += packed.groups * int4_group_bytes(last - first);
  }
  packed.data = Buffer<uint8_t>(static_cast<size_t>(bytes));
  uint8_t* data = packed.data.data();
  for (Tile& tile : packed.tiles) {
    tile.data = data;
    data += packed.groups * int4_group_bytes(tile.width);
  }
  share_out(packed, threads);
}

// The first part of each thread's share, if all outputs are multiplied by a row that takes every input.
void Int4View::share_out(Packed& packed, int threads) const {
  const int64_t chunks = packed.chunks, parts = static_cast<int64_t>(packed.tiles.size()) * chunks;
  const int64_t units = static_cast<int64_t>(packed.tiles.size()) / packed.halves;
  for (int64_t t = 0; t < threads; ++t) {
    const int64_t part = parts * t / threads, of_unit = packed.halves * chunks, c = part % chunks;
    packed.shares.emplace_back();
    if (part == parts * (t + 1) / threads) continue;
    const Tile& tile = packed.tiles[static_cast<size_t>(part / of_unit + part % of_unit / chunks * units)];
    const int64_t first = packed.all_bounds[static_cast<size_t>(c)], last = packed.all_bounds[static_cast<size_t>(c) + 1];
    packed.shares.back() = {tile.data + first * int4_group_bytes(tile.width),
                            static_cast<size_t>((last - first) * int4_group_bytes(tile.width))};
  }
}

void Int4View::load(Pool& pool, size_t j, const std::vector<Int4Source>& sources) {
  const std::vector<int>& list = joined_.list(j);
  Packed& packed = packed_[j];
  if (!packed.data.empty()) throw std::invalid_argument("matrices can be loaded once");
  if (sources.size() != list.size()) throw std::invalid_argument("joined matrices must be loaded together");
  layout(packed, j, pool.threads());
  pool.run(static_cast<int>(packed.groups), [&](int g, int) {
    pack_scales(packed, j, sources, g);
    pack_rows(packed, j, sources, g);
  });
  packed.scores = Buffer<float>(static_cast<size_t>(packed.groups * kGroup));
  for (size_t m = 0; m < sources.size(); ++m) {
    const float share = static_cast<float>(joined_.shape(list[m]).out) / static_cast<float>(packed.width);
    Buffer<float> own(packed.scores.size());
    for (size_t i = 0; i < static_cast<size_t>(packed.in); ++i) {
      own[i] = sources[m].scores[i];
      packed.scores[i] += share * sources[m].scores[i];
    }
    packed.own_scores.push_back(std::move(own));
  }
}

// What build rounds a matrix to, as Int4Source describes it.
struct Int4View::Rounded {
  Buffer<uint8_t> nibbles;
  Buffer<uint16_t> scales;
  Buffer<float> scores;
};

Int4View::Rounded Int4View::round(Pool& pool, const PackedMatrix& exact) const {
  const int64_t row = (exact.out + 1) / 2, panels = exact.panel_count();
  const auto inputs = static_cast<size_t>(exact.in);
  // The sums of magnitudes meet at panels that the shape alone fixes.
  const int64_t parts = std::min<int64_t>(panels, kBuildParts);
  Rounded result{Buffer<uint8_t>(inputs * static_cast<size_t>(row)),
                 Buffer<uint16_t>((inputs + kGroup - 1) / kGroup * static_cast<size_t>(exact.out)), Buffer<float>(inputs)};
  Buffer<double> magnitudes(inputs * static_cast<size_t>(parts));
  pool.run(static_cast<int>(parts), [&](int part, int) {
    std::vector<float> values;
    for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; ++p) {
      if (exact.is_quantised()) panel_of(exact.quantised, p, values);
      for (int64_t first = 0; first < exact.in; first += kGroup) {
        uint8_t levels[kGroup * kPanel];
        float scales[kPanel];
        const int64_t count = std::min<int64_t>(kGroup, exact.in - first);
        uint16_t buffer[kGroup * kPanel];
        kernels_.draft.int4_build({exact.is_quantised() ? nullptr : exact.whole_lines(p, first, count, buffer),
                                   exact.dtype, values.data() + first * kPanel, count, levels, scales,
                                   magnitudes.data() + part * exact.in + first});
        const int64_t outputs = std::min<int64_t>(kPanel, exact.out - p * kPanel);
        for (int64_t o = 0; o < outputs; ++o)
          result.scales[static_cast<size_t>(first / kGroup * exact.out + p * kPanel + o)] = float_to_half(scales[o]);
        for (int64_t i = 0; i < count; ++i) {
          uint8_t* bytes = result.nibbles.data() + (first + i) * row + p * kPanel / 2;
          const uint8_t* level = levels + i * kPanel;
          for (int64_t o = 0; o < outputs; o += 2)
            bytes[o / 2] = static_cast<uint8_t>(level[o] | (o + 1 < outputs ? level[o + 1] : 8) << 4);
        }
      }
    }
  });
  for (size_t i = 0; i < inputs; ++i) {
    double sum = 0;
    for (size_t part = 0; part < static_cast<size_t>(parts); ++part) sum += magnitudes[part * inputs + i];
    result.scores[i] = static_cast<float>(sum / static_cast<double>(exact.out));
  }
  return result;
}

void Int4View::build(Pool& pool, size_t j, const std::vector<const PackedMatrix*>& exact) {
  std::vector<Rounded> rounded;
  std::vector<Int4Source> sources;
  for (const PackedMatrix* matrix : exact) rounded.push_back(round(pool, *matrix));
  for (const Rounded& r : rounded) sources.push_back({r.nibbles.data(), r.scales.data(), r.scores.data()});
  load(pool, j, sources);
}

void Int4View::pack_scales(const Packed& packed, size_t j, const std::vector<Int4Source>& sources, int64_t group) const {
  std::vector<float> scales(static_cast<size_t>(round_up(packed.width, kInt4Block)));
  size_t at = 0;
  for (size_t m = 0; m < sources.size(); ++m) {
    const int64_t out = joined_.shape(joined_.list(j)[m]).out;
    for (int64_t o = 0; o < out; ++o) scales[at++] = half_to_float(sources[m].scales[group * out + o]);
  }
  for (const Tile& tile : packed.tiles) {
    uint8_t* data = tile.data + group * int4_group_bytes(tile.width);
    auto* steps = reinterpret_cast<float*>(data);
    auto* codes = reinterpret_cast<int8_t*>(data + int4_steps_bytes(tile.width));
    for (int64_t first = 0; first < tile.width; first += 64) {
      const float* own = scales.data() + tile.first + first;
      float peak = 0.0F;
      for (int k = 0; k < 64; ++k) peak = std::max(peak, std::fabs(own[k]));
      const float step = peak / 127.0F;
      steps[first / 64] = step;
      for (int k = 0; k < 64; ++k) codes[first + k] = step > 0.0F ? static_cast<int8_t>(std::lrintf(own[k] / step)) : int8_t{0};
    }
  }
}

void Int4View::pack_rows(const Packed& packed, size_t j, const std::vector<Int4Source>& sources, int64_t group) const {
  std::vector<uint8_t> levels(static_cast<size_t>(round_up(packed.width, kInt4Block)));
  const int64_t last = std::min((group + 1) * kGroup, packed.in);
  for (int64_t i = group * kGroup; i < last; ++i) {
    size_t at = 0;
    for (size_t m = 0; m < sources.size(); ++m) {
      const int64_t out = joined_.shape(joined_.list(j)[m]).out;
      const uint8_t* nibbles = sources[m].nibbles + i * ((out + 1) / 2);
      for (int64_t o = 0; o < out; ++o) levels[at++] = o % 2 == 0 ? nibbles[o / 2] & 15 : nibbles[o / 2] >> 4;
    }
    for (const Tile& tile : packed.tiles) {
      uint8_t* row = tile.data + group * int4_group_bytes(tile.width) + int4_steps_bytes(tile.width) + tile.width +
                     (i - group * kGroup) * (tile.width / 2);
      for (int64_t o = 0; o < tile.width; ++o) {
        const NibblePlace place = nibble_place(tile.width, o);
        row[place.byte] = static_cast<uint8_t>(row[place.byte] | levels[static_cast<size_t>(tile.first + o)] << place.shift);
      }
    }
  }
}

uint64_t Int4View::bytes() const {
  uint64_t total = 0;
  for (const Packed& packed : packed_) {
    total += packed.data.bytes() + packed.scores.bytes();
    for (const Buffer<float>& scores : packed.own_scores) total += scores.bytes();
  }
  return total;
}

bool Int4View::complete() const {
  return std::all_of(packed_.begin(), packed_.end(), [](const Packed& packed) { return !packed.data.empty(); });
}

// Fills taken_ for rows_. Returns twice the bytes that one output needs: a level for each input that a row takes, and a
// scale for each group with such inputs.
uint64_t Int4View::choose(Pool& pool, const Packed& packed, const float* scores, const DraftRows& in, int effort,
                          int count) {
  const auto groups = static_cast<size_t>(packed.groups);
  taken_.resize(rows_.size());
  const auto effort_of = [&](int row) { return in.efforts[row * count + effort]; };
  if (std::all_of(rows_.begin(), rows_.end(), [&](int row) { return effort_of(row) >= 1; })) {
    std::fill(taken_.begin(), taken_.end(), Taken{packed.all_masks.data(), packed.all_bounds.data()});
    return static_cast<uint64_t>(packed.in + 2 * packed.groups);
  }
  choose_scratch_.reserve(rows_.size() * groups * kGroup);
  masks_.reserve(rows_.size() * groups);
  bounds_.resize(rows_.size() * static_cast<size_t>(packed.chunks + 1));
  pool.run(static_cast<int>(rows_.size()), [&](int r, int) {
    const int row = rows_[static_cast<size_t>(r)];
    choose_row(packed, scores, in.row(row), effort_of(row), static_cast<size_t>(r));
  });
  uint64_t halves = 0;
  for (size_t g = 0; g < groups; ++g) {
    uint32_t any = 0;
    for (const Taken& taken : taken_) any |= taken.masks[g];
    halves += static_cast<uint64_t>(__builtin_popcount(any)) + (any != 0 ? 2 : 0);
  }
  return halves;
}

// The inputs that row `r` of rows_ takes.
void Int4View::choose_row(const Packed& packed, const float* scores, const float* x, float effort, size_t r) {
  const auto groups = static_cast<size_t>(packed.groups);
  uint32_t* masks = masks_.data() + r * groups;
  int64_t* bounds = bounds_.data() + r * static_cast<size_t>(packed.chunks + 1);
  ask_for(x, static_cast<size_t>(packed.in) * sizeof(float));
  kernels_.draft.choose({x, scores, packed.in, effort, choose_scratch_.data() + r * groups * kGroup, masks});
  split(packed, masks, bounds);
  taken_[r] = {masks, bounds};
}

// Splits the groups into chunks with about equal numbers of chosen inputs.
void Int4View::split(const Packed& packed, const uint32_t* masks, int64_t* bounds) const {
  std::fill_n(bounds, packed.chunks + 1, packed.groups);
  bounds[0] = 0;
  if (packed.chunks == 1) return;
  int64_t total = 0, done = 0, chunk = 1;
  for (int64_t g = 0; g < packed.groups; ++g) total += __builtin_popcount(masks[g]);
  for (int64_t g = 0; g < packed.groups && chunk < packed.chunks; ++g) {
    done += __builtin_popcount(masks[g]);
    while (chunk < packed.chunks && done * packed.chunks >= total * chunk) bounds[chunk++] = g + 1;
  }
}

Int4View::Job Int4View::job(const Packed& packed, const int* matrices, int first, int last, int count, const DraftRows& in,
                            const DraftAfter* after, int threads) const {
  Job job{packed, in, matrices, first, last, after, packed.starts[static_cast<size_t>(first)], 0, 0, 0, 1, nullptr, threads};
  job.end = packed.starts[static_cast<size_t>(last) - 1] + joined_.shape(matrices[last - 1]).out;
  const auto all = static_cast<int>(packed.tiles.size());
  auto end_of = [&](int t) { return packed.tiles[static_cast<size_t>(t)].first + packed.tiles[static_cast<size_t>(t)].width; };
  while (job.first_tile + 1 < all && end_of(job.first_tile) <= job.begin) ++job.first_tile;
  int end = job.first_tile + 1;
  while (end < all && packed.tiles[static_cast<size_t>(end)].first < job.end) ++end;
  job.tiles = end - job.first_tile;
  if (after != nullptr && after->paired && packed.halves == 2 && last - first == 2) job.halves = 2;
  if (packed.chunks == 1 && count == 1) job.direct = in.y[0];
  return job;
}

// Calls of a part, one for each of rows_. Parts lie unit after unit, in one tile after tile, in one chunk after chunk.
void Int4View::part_calls(const Job& job, int part, Int4Call* calls) {
  const Packed& packed = job.packed;
  const auto chunks = static_cast<int>(packed.chunks);
  const int of_unit = job.halves * chunks, unit = part / of_unit, half = part % of_unit / chunks, c = part % chunks;
  const Tile& tile = packed.tiles[static_cast<size_t>(job.first_tile + unit + half * job.units())];
  const int64_t padded = round_up(packed.width, kInt4Block);
  const int64_t from = std::max<int64_t>(job.begin / kInt4Block * kInt4Block - tile.first, 0);
  const int64_t to = std::min(round_up(job.end, kInt4Block) - tile.first, tile.width);
  for (size_t r = 0; r < rows_.size(); ++r) {
    const auto row = static_cast<int64_t>(r);
    float* sums = job.direct != nullptr ? job.direct + rows_[r] * job.in.y_stride[0]
                                        : sums_.data() + (row * chunks + c) * padded;
    const Taken& taken = taken_[r];
    calls[r] = {{tile.data, tile.width}, job.in.row(rows_[r]), taken.masks, taken.bounds[c], taken.bounds[c + 1],
                from, to, sums + tile.first, nullptr, true};
  }
}

// Within the share of a thread (see Pool::run) one part fetches ahead for the next. Who ends the last part of a unit adds up
// its chunks.
void Int4View::run_part(const Job& job, int part) {
  const auto parts = static_cast<int64_t>(job.parts(job.packed.chunks)), threads = static_cast<int64_t>(job.threads);
  auto begins_share = [&](int64_t p) { return parts * ((p * threads + parts - 1) / parts) / threads == p; };
  Int4Call calls[kDraftRows], next[kDraftRows];
  part_calls(job, part, calls);
  const bool ahead = part + 1 < parts && !begins_share(part + 1);
  if (ahead) part_calls(job, part + 1, next);
  for (size_t r = 0; r < rows_.size(); ++r) {
    calls[r].next = ahead ? next + r : nullptr;
    calls[r].cold = begins_share(part);
  }
  kernels_.draft.int4(calls, static_cast<int>(rows_.size()));
  const int unit = part / (job.halves * static_cast<int>(job.packed.chunks));
  if (left_[static_cast<size_t>(unit)].fetch_sub(1, std::memory_order_acq_rel) == 1) finish_unit(job, unit);
}

// Hands out the results of the tiles of a unit, and what follows them.
void Int4View::finish_unit(const Job& job, int unit) const {
  const Packed& packed = job.packed;
  const int64_t padded = round_up(packed.width, kInt4Block);
  const bool paired = job.after != nullptr && job.after->paired;
  for (size_t r = 0; r < rows_.size(); ++r)
    for (int half = 0; half < job.halves; ++half) {
      const Tile& tile = packed.tiles[static_cast<size_t>(job.first_tile + unit + half * job.units())];
      for (int m = job.first; m < job.last; ++m) {
        const int64_t start = packed.starts[static_cast<size_t>(m)], out = joined_.shape(job.matrices[m]).out;
        const int64_t from = std::max(tile.first - start, int64_t{0}), to = std::min(tile.first + tile.width - start, out);
        if (from >= to) continue;
        const float* sums = sums_.data() + static_cast<int64_t>(r) * packed.chunks * padded + start + from;
        if (job.direct == nullptr)
          kernels_.draft.add_up(sums, packed.chunks, padded, to - from, job.in.result(m, rows_[r]) + from);
        if (job.after != nullptr && (!paired || half + 1 == job.halves) && (!paired || job.halves == 2))
          (*job.after)(paired ? 0 : m, rows_[r], from, to);
      }
    }
}

// Matrices [first, last) of a list times rows_, whose choice is by `scores` and the effort of matrix `first`.
uint64_t Int4View::multiply_outputs(Pool& pool, size_t list, const float* scores, const int* matrices, int first, int last,
                                    int count, const DraftRows& in, const DraftAfter* after) {
  const Packed &packed = packed_[list], &next = packed_[(list + 1) % packed_.size()];
  const uint64_t halves = choose(pool, packed, scores, in, first, count);
  const Job job = this->job(packed, matrices, first, last, count, in, after, pool.threads());
  if (job.direct == nullptr)
    sums_.reserve(rows_.size() * static_cast<size_t>(packed.chunks * round_up(packed.width, kInt4Block)));
  const auto units = static_cast<size_t>(job.units());
  if (left_room_ < units) {
    left_ = std::make_unique<std::atomic<int>[]>(units);
    left_room_ = units;
  }
  for (size_t u = 0; u < units; ++u)
    left_[u].store(job.halves * static_cast<int>(packed.chunks), std::memory_order_relaxed);
  // Lists are multiplied in their order.
  const bool known = next.shares.size() == static_cast<size_t>(pool.threads());
  pool.run(job.parts(packed.chunks), [&](int part, int) { run_part(job, part); }, known ? next.shares.data() : nullptr);
  return halves * static_cast<uint64_t>(job.end - job.begin) / 2;
}

uint64_t Int4View::multiply(Pool& pool, int count, const int* matrices, const DraftRows& in, const DraftAfter* after) {
  const size_t list = joined_.list_of(matrices[0]);
  const Packed& packed = packed_[list];
  const bool paired = after != nullptr && after->paired;
  uint64_t bytes = 0;
  if (in.take(count, true, &rows_)) {
    bytes += multiply_outputs(pool, list, packed.scores.data(), matrices, 0, count, count, in, after);
    if (paired && packed.halves == 1) finish_rows(pool, joined_.shape(matrices[0]).out, *after);
  }
  if (in.take(count, false, &rows_)) {
    for (int m = 0; m < count; ++m)
      bytes += multiply_outputs(pool, list, packed.own_scores[static_cast<size_t>(m)].data(), matrices, m, m + 1, count, in,
                                paired ? nullptr : after);
    if (paired) finish_rows(pool, joined_.shape(matrices[0]).out, *after);
  }
  return bytes;
}

// What follows a pair of matrices whose results are not finished together.
void Int4View::finish_rows(Pool& pool, int64_t out, const DraftAfter& after) const {
  pool.run(static_cast<int>(rows_.size()), [&](int r, int) { after(0, rows_[static_cast<size_t>(r)], int64_t{0}, out); });
}

}  // namespace specdec
