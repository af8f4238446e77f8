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

int64_t Bucket8View::choose(const Packed& packed, const float* scores, const float* x, float effort) {
  scores_.reserve(static_cast<size_t>(kTiers * packed.stride()));
  taken_.reserve(static_cast<size_t>(packed.in));
  lists_.reserve(static_cast<size_t>((kTiers + 2) * (packed.stride() + kGroup)));
  passes_.reserve(static_cast<size_t>(tier_passes_for(packed.in)));
  return kernels_.draft.choose_tiers(
      {x, scores, packed.in, effort, scores_.data(), taken_.data(), lists_.data(), passes_.data()});
}

// One call per tile and chunk of passes, for the matrices [first, last) of the list.
void Bucket8View::plan(const Packed& packed, const float* x, int64_t passes, size_t first, size_t last, float* direct,
                       int threads) {
  bounds_.assign(static_cast<size_t>(packed.chunks) + 1, passes);
  bounds_[0] = 0;
  int64_t total = 0, done = 0, chunk = 1;
  for (int64_t p = 0; p < passes; ++p) total += passes_[static_cast<size_t>(p)].quads * passes_[static_cast<size_t>(p)].tiers;
  for (int64_t p = 0; p < passes && chunk < packed.chunks; ++p) {
    done += passes_[static_cast<size_t>(p)].quads * passes_[static_cast<size_t>(p)].tiers;
    while (chunk < packed.chunks && done * packed.chunks >= total * chunk) bounds_[static_cast<size_t>(chunk++)] = p + 1;
  }
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
    for (int64_t c = 0; count > 0 && c < packed.chunks; ++c) {
      float* sums = (direct != nullptr ? direct : sums_.data() + c * packed.buckets * kBucket) + tile.first * kBucket;
      calls_.push_back({{tile.data, tile.buckets}, x, passes_.data(), bounds_[static_cast<size_t>(c)],
                        bounds_[static_cast<size_t>(c) + 1], segments_.data() + from, count, segments_[from].first,
                        segments_.back().last, sums, nullptr, true});
    }
  }
  const size_t parts = calls_.size(), shares = static_cast<size_t>(threads);
  for (size_t p = 0; p + 1 < parts; ++p) {  // as in draft_int4.cpp
    bool same = true;
    for (size_t t = 1; t < shares; ++t) same &= parts * t / shares != p + 1;
    if (!same) continue;
    calls_[p].next = &calls_[p + 1];
    calls_[p + 1].cold = false;
  }
}

void Bucket8View::run(Pool& pool, const Packed& packed, const float* x, int64_t passes, size_t first, size_t last,
                      float* direct) {
  if (direct == nullptr) sums_.reserve(static_cast<size_t>(packed.chunks * packed.buckets * kBucket));
  plan(packed, x, passes, first, last, direct, pool.threads());
  pool.run(static_cast<int>(calls_.size()), [&](int part, int) { kernels_.draft.bucket8(calls_[static_cast<size_t>(part)]); });
}

uint64_t Bucket8View::bytes_of(const Packed& packed, int64_t passes, int64_t buckets) const {
  uint64_t bytes = 0;
  for (int64_t p = 0; p < passes; ++p) {
    const TierPass& pass = passes_[static_cast<size_t>(p)];
    const int row = pass.tiers == kTiers ? kInputBytes : pass.tiers * kTierBytes;
    bytes += static_cast<uint64_t>(pass.count) * (static_cast<uint64_t>(row * buckets) + sizeof(float));
  }
  (void)packed;
  return bytes;
}

uint64_t Bucket8View::multiply(Pool& pool, int count, const int* matrices, const float* x, const float* efforts,
                               float* const* y) {
  const size_t j = joined_.list_of(matrices[0]);
  const Packed& packed = packed_[j];
  auto hand_out = [&](int m) {
    kernels_.draft.add_up(sums_.data() + packed.starts[static_cast<size_t>(m)] * kBucket, packed.chunks,
                          packed.buckets * kBucket, joined_.shape(matrices[m]).out, y[m]);
  };
  if (std::all_of(efforts, efforts + count, [&](float e) { return e == efforts[0]; })) {
    const int64_t passes = choose(packed, packed.scores.data(), x, efforts[0]);
    const bool direct = packed.chunks == 1 && count == 1;
    run(pool, packed, x, passes, 0, static_cast<size_t>(count), direct ? y[0] : nullptr);
    for (int m = 0; m < count && !direct; ++m) hand_out(m);
    return bytes_of(packed, passes, packed.buckets);
  }
  uint64_t bytes = 0;
  for (int m = 0; m < count; ++m) {
    const int64_t passes = choose(packed, packed.own_scores[static_cast<size_t>(m)].data(), x, efforts[m]);
    run(pool, packed, x, passes, static_cast<size_t>(m), static_cast<size_t>(m) + 1, nullptr);
    hand_out(m);
    bytes += bytes_of(packed, passes, buckets_of(joined_.shape(matrices[m]).out));
  }
  return bytes;
}

}  // namespace specdec
