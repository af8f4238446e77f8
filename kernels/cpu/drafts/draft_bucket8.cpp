#include "draft_bucket8.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "half.h"

namespace specdec {
namespace {

// Buckets of a tile; as for kTileOutputs in draft_int4.cpp.
constexpr int64_t kTileBuckets = 140;
// A part reads at least so many bytes at an effort of a quarter, of at least so many inputs.
constexpr int64_t kPartBytes = 64 << 10, kPartInputs = 256;
constexpr int64_t kMaxChunks = 8, kMaxTileChunks = 2;
// Inputs that are packed or built together.
constexpr int64_t kBuildInputs = 32;

int64_t buckets_of(int64_t outputs) { return (outputs + kBucket - 1) / kBucket; }

// Output of a bucket at a place of its record: see bucket8_simd.inl.
constexpr int output_at(int place) { return place / 4 % 4 * 16 + place / 16 * 4 + place % 4; }

}  // namespace

Bucket8View::Bucket8View(const KernelTable& kernels, JoinedMatrices joined)
    : kernels_(kernels), joined_(std::move(joined)), packed_(joined_.count()) {
  for (size_t j = 0; j < joined_.count(); ++j)
    if (joined_.inputs(j) > UINT16_MAX) throw std::invalid_argument("view bucket8 takes matrices of at most 65535 inputs");
}

void Bucket8View::layout(Packed& packed, size_t j) const {
  packed.in = joined_.inputs(j);
  for (const int m : joined_.list(j)) {
    packed.starts.push_back(packed.buckets);
    packed.buckets += buckets_of(joined_.shape(m).out);
    packed.steps.emplace_back(static_cast<size_t>(packed.in));
    packed.own_scores.emplace_back(static_cast<size_t>(kTiers * packed.stride()));
  }
  int64_t count = (packed.buckets + kTileBuckets - 1) / kTileBuckets;
  if (count > 4) count = (count + 3) / 4 * 4;  // so that few threads finish together
  packed.data = Buffer<uint8_t>(static_cast<size_t>(packed.in * packed.buckets * kInputBytes));
  for (int64_t t = 0; t < count; ++t) {
    const int64_t first = packed.buckets * t / count, last = packed.buckets * (t + 1) / count;
    packed.tiles.push_back({first, last - first, packed.data.data() + first * packed.in * kInputBytes});
  }
  const int64_t most = count == 1 ? kMaxChunks : count <= 4 ? kMaxTileChunks : 1;
  const int64_t bytes = static_cast<int64_t>(packed.data.size()) / 4 / count;
  packed.chunks = std::max<int64_t>(1, std::min({bytes / kPartBytes, packed.in / kPartInputs, most}));
}

// levels and tiers by output.
void Bucket8View::pack_bucket(const Packed& packed, int64_t input, int64_t bucket, const int8_t* levels,
                              const uint8_t* tiers) const {
  size_t t = 0;
  while (bucket >= packed.tiles[t].first + packed.tiles[t].buckets) ++t;
  const Tile& tile = packed.tiles[t];
  const int64_t b = bucket - tile.first;
  uint8_t* row = tile.data + input * tile.buckets * kInputBytes;
  uint64_t masks[kTiers] = {};
  uint8_t* values[kTiers];
  for (int k = 0; k < kTiers - 1; ++k) values[k] = row + (k * tile.buckets + b) * kTierBytes + 8;
  values[kTiers - 1] = row + (kTiers - 1) * tile.buckets * kTierBytes + b * kTierSize;
  for (int place = 0; place < kBucket; ++place) {
    const int o = output_at(place);
    masks[tiers[o]] |= uint64_t{1} << place;
    *values[tiers[o]]++ = static_cast<uint8_t>(levels[o] + 128);
  }
  for (int k = 0; k < kTiers - 1; ++k) std::memcpy(row + (k * tile.buckets + b) * kTierBytes, masks + k, 8);
}

void Bucket8View::pack_source(const Packed& packed, size_t m, const Bucket8Source& source, int64_t buckets,
                              int64_t input) const {
  for (int64_t b = 0; b < buckets; ++b) {
    int8_t levels[kBucket];
    uint8_t tiers[kBucket];
    uint64_t left = ~uint64_t{0};
    for (int k = 0; k < kTiers; ++k) {
      uint64_t mask = left;
      if (k < kTiers - 1) std::memcpy(&mask, source.masks[k] + (input * buckets + b) * 8, 8);
      left &= ~mask;
      const int8_t* value = source.values[k] + (input * buckets + b) * kTierSize;
      for (; mask != 0; mask &= mask - 1) {
        const int o = __builtin_ctzll(mask);
        levels[o] = *value++;
        tiers[o] = static_cast<uint8_t>(k);
      }
    }
    pack_bucket(packed, input, packed.starts[m] + b, levels, tiers);
  }
}

// Every tier must hold kTierSize outputs of its own.
static bool masks_fit(const Bucket8Source& source, int64_t input, int64_t buckets) {
  for (int64_t b = 0; b < buckets; ++b) {
    uint64_t seen = 0;
    for (int k = 0; k < kTiers - 1; ++k) {
      uint64_t mask;
      std::memcpy(&mask, source.masks[k] + (input * buckets + b) * 8, 8);
      if (__builtin_popcountll(mask) != kTierSize || (mask & seen) != 0) return false;
      seen |= mask;
    }
  }
  return true;
}

void Bucket8View::load(Pool& pool, size_t j, const std::vector<Bucket8Source>& sources) {
  const std::vector<int>& list = joined_.list(j);
  Packed& packed = packed_[j];
  if (packed.loaded) throw std::invalid_argument("matrices can be loaded once");
  if (sources.size() != list.size()) throw std::invalid_argument("joined matrices must be loaded together");
  std::atomic<bool> fit{true};
  const auto inputs = static_cast<int>(joined_.inputs(j));
  for (size_t m = 0; m < sources.size(); ++m)
    pool.run(inputs, [&](int i, int) {
      if (!masks_fit(sources[m], i, buckets_of(joined_.shape(list[m]).out))) fit = false;
    });
  if (!fit) throw std::invalid_argument("a mask of view bucket8 does not hold 16 weights of its own");
  layout(packed, j);
  for (size_t m = 0; m < sources.size(); ++m) {
    const int64_t buckets = buckets_of(joined_.shape(list[m]).out);
    pool.run(inputs, [&](int i, int) {
      pack_source(packed, m, sources[m], buckets, i);
      packed.steps[m][static_cast<size_t>(i)] = sources[m].steps[i];
      for (int k = 0; k < kTiers; ++k)
        packed.own_scores[m][static_cast<size_t>(k * packed.stride() + i)] = sources[m].scores[int64_t{i} * kTiers + k];
    });
  }
  join_scores(packed, j);
}

void Bucket8View::build_matrix(Pool& pool, Packed& packed, size_t m, const PackedMatrix& exact) const {
  const int64_t panels = exact.panel_count(), buckets = buckets_of(exact.out);
  const auto parts = static_cast<int>((exact.in + kBuildInputs - 1) / kBuildInputs);
  pool.run(parts, [&](int part, int) {
    const int64_t first = part * kBuildInputs, last = std::min(first + kBuildInputs, exact.in);
    uint16_t peaks[kBuildInputs] = {};
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t i = first; i < last; ++i) {
        uint16_t buffer[kPanel];
        const uint16_t* bits = exact.whole_line(p, i, buffer);
        uint16_t peak = peaks[i - first];
        for (int o = 0; o < kPanel; ++o) peak = std::max<uint16_t>(peak, bits[o] & 0x7FFF);
        peaks[i - first] = peak;
      }
    float inverse[kBuildInputs];
    double sums[kBuildInputs][kTiers] = {};
    for (int64_t i = first; i < last; ++i) {
      float peak;
      kernels_.element.widen(peaks + (i - first), exact.dtype, 1, &peak);
      const float step = peak / 127.0F;
      packed.steps[m][static_cast<size_t>(i)] = step;
      inverse[i - first] = step != 0.0F ? 1.0F / step : 0.0F;
    }
    for (int64_t b = 0; b < buckets; ++b)
      for (int64_t i = first; i < last; ++i) {
        uint16_t bits[kBucket] = {}, buffer[kPanel];
        for (int64_t p = 2 * b; p < std::min(2 * b + 2, panels); ++p)
          std::memcpy(bits + (p - 2 * b) * kPanel, exact.whole_line(p, i, buffer), kPanel * 2);
        float weights[kBucket];
        kernels_.element.widen(bits, exact.dtype, kBucket, weights);
        for (uint16_t& magnitude : bits) magnitude &= 0x7FFF;
        uint8_t tiers[kBucket];
        int8_t levels[kBucket];
        kernels_.draft.bucket8_rank(bits, tiers);
        for (int o = 0; o < kBucket; ++o) {
          const float level = weights[o] * inverse[i - first];
          levels[o] = static_cast<int8_t>(std::clamp<long>(std::lrintf(level), -127, 127));
          sums[i - first][tiers[o]] += std::fabs(weights[o]);
        }
        pack_bucket(packed, i, packed.starts[m] + b, levels, tiers);
      }
    for (int64_t i = first; i < last; ++i) {
      float least = INFINITY;  // rounding must not make scores rise with the tier
      for (int k = 0; k < kTiers; ++k) {
        least = std::min(least, static_cast<float>(sums[i - first][k] / static_cast<double>(buckets * kTierSize)));
        packed.own_scores[m][static_cast<size_t>(k * packed.stride() + i)] = least;
      }
    }
  });
}

void Bucket8View::build(Pool& pool, size_t j, const std::vector<const PackedMatrix*>& exact) {
  Packed& packed = packed_[j];
  if (packed.loaded) throw std::invalid_argument("matrices can be loaded once");
  if (exact.size() != joined_.list(j).size()) throw std::invalid_argument("joined matrices must be built together");
  layout(packed, j);
  for (size_t m = 0; m < exact.size(); ++m) build_matrix(pool, packed, m, *exact[m]);
  join_scores(packed, j);
}

void Bucket8View::join_scores(Packed& packed, size_t j) const {
  packed.scores = Buffer<float>(static_cast<size_t>(kTiers * packed.stride()));
  for (size_t m = 0; m < packed.own_scores.size(); ++m) {
    const int64_t buckets = buckets_of(joined_.shape(joined_.list(j)[m]).out);
    const float share = static_cast<float>(buckets) / static_cast<float>(packed.buckets);
    for (size_t i = 0; i < packed.scores.size(); ++i) packed.scores[i] += share * packed.own_scores[m][i];
  }
  packed.loaded = true;
}

uint64_t Bucket8View::bytes() const {
  uint64_t total = 0;
  for (const Packed& packed : packed_) {
    total += packed.data.bytes() + packed.scores.bytes();
    for (size_t m = 0; m < packed.steps.size(); ++m) total += packed.steps[m].bytes() + packed.own_scores[m].bytes();
  }
  return total;
}

bool Bucket8View::complete() const {
  return std::all_of(packed_.begin(), packed_.end(), [](const Packed& packed) { return packed.loaded; });
}

// Fills the passes of rows_, tier_passes_for(in) apart.
void Bucket8View::choose(Pool& pool, const Packed& packed, const float* scores, const DraftRows& in, size_t effort,
                         int count) {
  const size_t rows = rows_.size(), stride = static_cast<size_t>(packed.stride()), inputs = static_cast<size_t>(packed.in);
  const size_t lists = (kTiers + 2) * (stride + kGroup), most = static_cast<size_t>(tier_passes_for(packed.in));
  scores_.reserve(rows * kTiers * stride);
  taken_.reserve(rows * inputs);
  lists_.reserve(rows * lists);
  passes_.reserve(rows * most);
  counts_.resize(rows);
  pool.run(static_cast<int>(rows), [&](int part, int) {
    const auto r = static_cast<size_t>(part);
    counts_[r] = kernels_.draft.choose_tiers(
        {in.row(rows_[r]), scores, packed.in, in.efforts[static_cast<size_t>(rows_[r] * count) + effort],
         scores_.data() + r * kTiers * stride, taken_.data() + r * inputs, lists_.data() + r * lists, passes_.data() + r * most});
  });
}

// Splits a row's passes into chunks of about equal work.
void Bucket8View::split(const Packed& packed, const TierPass* passes, int64_t count, int64_t* bounds) const {
  std::fill_n(bounds, packed.chunks + 1, count);
  bounds[0] = 0;
  int64_t total = 0, done = 0, chunk = 1;
  for (int64_t p = 0; p < count; ++p) total += passes[p].quads * passes[p].tiers;
  for (int64_t p = 0; p < count && chunk < packed.chunks; ++p) {
    done += passes[p].quads * passes[p].tiers;
    while (chunk < packed.chunks && done * packed.chunks >= total * chunk) bounds[chunk++] = p + 1;
  }
}

// One part per tile and chunk of passes, for the matrices [first, last) of the list and rows_.
void Bucket8View::plan(const Packed& packed, const DraftRows& in, size_t first, size_t last, float* direct, int threads) {
  const size_t rows = rows_.size(), chunks = static_cast<size_t>(packed.chunks);
  const auto most = static_cast<size_t>(tier_passes_for(packed.in));
  bounds_.resize(rows * (chunks + 1));
  for (size_t r = 0; r < rows; ++r) split(packed, passes_.data() + r * most, counts_[r], bounds_.data() + r * (chunks + 1));
  segments_.clear();
  segments_.reserve(packed.tiles.size() + packed.starts.size());  // calls point into it
  calls_.clear();
  for (const Tile& tile : packed.tiles) {
    const size_t from = segments_.size();
    for (size_t m = first; m < last; ++m) {
      const int64_t end = m + 1 < packed.starts.size() ? packed.starts[m + 1] : packed.buckets;
      const int64_t begin = std::max(packed.starts[m], tile.first), stop = std::min(end, tile.first + tile.buckets);
      if (begin < stop) segments_.push_back({begin - tile.first, stop - tile.first, packed.steps[m].data()});
    }
    const auto count = static_cast<int>(segments_.size() - from);
    for (size_t c = 0; count > 0 && c < chunks; ++c)
      for (size_t r = 0; r < rows; ++r) {
        float* sums = direct != nullptr ? direct + rows_[r] * in.y_stride[0]
                                        : sums_.data() + static_cast<int64_t>(r * chunks + c) * packed.buckets * kBucket;
        const int64_t* bounds = bounds_.data() + r * (chunks + 1);
        calls_.push_back({{tile.data, tile.buckets}, in.row(rows_[r]), passes_.data() + r * most, bounds[c], bounds[c + 1],
                          segments_.data() + from, count, segments_[from].first, segments_.back().last,
                          sums + tile.first * kBucket, nullptr, true});
      }
  }
  const size_t parts = calls_.size() / rows, shares = static_cast<size_t>(threads);
  for (size_t p = 0; p + 1 < parts; ++p) {  // as in draft_int4.cpp
    bool same = true;
    for (size_t t = 1; t < shares; ++t) same &= parts * t / shares != p + 1;
    for (size_t r = p * rows; same && r < (p + 1) * rows; ++r) {
      calls_[r].next = &calls_[r + rows];
      calls_[r + rows].cold = false;
    }
  }
}

// What the rows' passes read together: of every input the tiers that any row takes.
uint64_t Bucket8View::bytes_of(const Packed& packed, int64_t buckets) {
  auto input = [buckets](int tiers) {
    const int record = tiers == kTiers ? kInputBytes : tiers * kTierBytes;
    return static_cast<uint64_t>(record * buckets) + sizeof(float);
  };
  uint64_t bytes = 0;
  if (rows_.size() == 1) {
    for (int64_t p = 0; p < counts_[0]; ++p)
      bytes += static_cast<uint64_t>(passes_[static_cast<size_t>(p)].count) * input(passes_[static_cast<size_t>(p)].tiers);
    return bytes;
  }
  std::fill_n(taken_.data(), packed.in, uint8_t{0});
  for (size_t r = 0; r < rows_.size(); ++r) {
    const TierPass* passes = passes_.data() + r * static_cast<size_t>(tier_passes_for(packed.in));
    for (int64_t p = 0; p < counts_[r]; ++p)
      for (int j = 0; j < passes[p].count; ++j) {
        uint8_t& most = taken_[passes[p].input[j]];
        most = std::max(most, static_cast<uint8_t>(passes[p].tiers));
      }
  }
  for (int64_t i = 0; i < packed.in; ++i)
    if (taken_[static_cast<size_t>(i)] > 0) bytes += input(taken_[static_cast<size_t>(i)]);
  return bytes;
}

// Matrices [first, last) of a list times rows_, whose choice is by `scores` and the effort of matrix `first`.
uint64_t Bucket8View::multiply_outputs(Pool& pool, const Packed& packed, const float* scores, const int* matrices,
                                       size_t first, size_t last, int count, const DraftRows& in) {
  const int64_t outputs = packed.buckets * kBucket;
  const auto rows = static_cast<int>(rows_.size());
  choose(pool, packed, scores, in, first, count);
  const bool direct = packed.chunks == 1 && count == 1;
  if (!direct) sums_.reserve(static_cast<size_t>(rows * packed.chunks * outputs));
  plan(packed, in, first, last, direct ? in.y[0] : nullptr, pool.threads());
  pool.run(static_cast<int>(calls_.size()) / rows, [&](int part, int) {
    for (int r = 0; r < rows; ++r) kernels_.draft.bucket8(calls_[static_cast<size_t>(part * rows + r)]);
  });
  auto hand_out = [&](int r, int) {
    for (size_t m = first; m < last; ++m)
      kernels_.draft.add_up(sums_.data() + r * packed.chunks * outputs + packed.starts[m] * kBucket, packed.chunks, outputs,
                            joined_.shape(matrices[m]).out, in.result(static_cast<int>(m), rows_[static_cast<size_t>(r)]));
  };
  if (!direct) pool.run(rows, hand_out);
  int64_t buckets = 0;
  for (size_t m = first; m < last; ++m) buckets += buckets_of(joined_.shape(matrices[m]).out);
  return bytes_of(packed, buckets);
}

uint64_t Bucket8View::multiply(Pool& pool, int count, const int* matrices, const DraftRows& in, const DraftAfter* after) {
  const Packed& packed = packed_[joined_.list_of(matrices[0])];
  uint64_t bytes = 0;
  if (in.take(count, true, &rows_))
    bytes += multiply_outputs(pool, packed, packed.scores.data(), matrices, 0, static_cast<size_t>(count), count, in);
  if (in.take(count, false, &rows_))
    for (size_t m = 0; m < static_cast<size_t>(count); ++m)
      bytes += multiply_outputs(pool, packed, packed.own_scores[m].data(), matrices, m, m + 1, count, in);
  int64_t outs[3];
  for (int m = 0; m < count; ++m) outs[m] = joined_.shape(matrices[m]).out;
  finish(pool, count, outs, in, after);
  return bytes;
}

}  // namespace specdec
