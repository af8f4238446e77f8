#include "draft_int4.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "half.h"

namespace specdec {
namespace {

// Outputs of a tile. Long rows keep memory busy, but what one pass reads and the next must fit the second-level cache.
constexpr int64_t kTileOutputs = 8960;
// A part reads at least so many bytes, of at least so many inputs.
constexpr int64_t kPartBytes = 64 << 10, kPartInputs = 256;
constexpr int64_t kMaxParts = 8;
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

}  // namespace

Int4View::Int4View(const KernelTable& kernels, std::vector<MatrixShape> shapes,
                   const std::vector<std::vector<int>>& joined)
    : kernels_(kernels), shapes_(std::move(shapes)), joined_(joined.size()), places_(shapes_.size()) {
  for (size_t j = 0; j < joined.size(); ++j) {
    Joined& target = joined_[j];
    target.matrices = joined[j];
    for (const int m : joined[j]) {
      if (m < 0 || static_cast<size_t>(m) >= shapes_.size() || places_[static_cast<size_t>(m)].joined >= 0)
        throw std::invalid_argument("the joined lists must name every matrix once");
      const MatrixShape& shape = shapes_[static_cast<size_t>(m)];
      if (shape.in < 1 || shape.out < 1 || (target.in != 0 && target.in != shape.in))
        throw std::invalid_argument("joined matrices must have outputs, and equally many inputs");
      places_[static_cast<size_t>(m)].joined = static_cast<int>(j);
      places_[static_cast<size_t>(m)].first = target.width;
      target.in = shape.in;
      target.width += shape.out;
    }
    if (target.matrices.empty()) throw std::invalid_argument("a joined list must name a matrix");
  }
  for (const Place& place : places_)
    if (place.joined < 0) throw std::invalid_argument("the joined lists must name every matrix once");
}

void Int4View::layout(Joined& joined) {
  joined.groups = (joined.in + kGroup - 1) / kGroup;
  const int64_t outputs = round_up(joined.width, kInt4Block / 2);
  // Many tiles come in fours, so that few threads finish together.
  int64_t count = (outputs + kTileOutputs - 1) / kTileOutputs;
  if (count > 4) count = round_up(count, 4);
  const int64_t width = round_up((outputs + count - 1) / count, kInt4Block);
  int64_t bytes = 0;
  for (int64_t first = 0; first < outputs; first += width) {
    const int64_t part = std::min(width, outputs - first);
    joined.tiles.push_back({first, part, nullptr});
    bytes += joined.groups * int4_group_bytes(part);
  }
  joined.data = Buffer<uint8_t>(static_cast<size_t>(bytes));
  uint8_t* data = joined.data.data();
  for (Tile& tile : joined.tiles) {
    tile.data = data;
    data += joined.groups * int4_group_bytes(tile.width);
  }
  const auto tiles = static_cast<int64_t>(joined.tiles.size());
  joined.chunks = std::max<int64_t>(1, std::min({bytes / tiles / kPartBytes, joined.in / kPartInputs, kMaxParts / tiles / (tiles > 1 ? 2 : 1)}));
  joined.scores = Buffer<float>(static_cast<size_t>(joined.groups * kGroup));
}

void Int4View::load(Pool& pool, size_t j, const std::vector<Int4Source>& sources) {
  Joined& joined = joined_.at(j);
  if (joined.loaded) throw std::invalid_argument("matrices can be loaded once");
  if (sources.size() != joined.matrices.size()) throw std::invalid_argument("joined matrices must be loaded together");
  layout(joined);
  pool.run(static_cast<int>(joined.groups), [&](int g, int) {
    pack_scales(joined, sources, g);
    pack_rows(joined, sources, g);
  });
  for (size_t m = 0; m < sources.size(); ++m) {
    const auto matrix = static_cast<size_t>(joined.matrices[m]);
    const float share = static_cast<float>(shapes_[matrix].out) / static_cast<float>(joined.width);
    Buffer<float>& own = places_[matrix].scores = Buffer<float>(joined.scores.size());
    for (int64_t i = 0; i < joined.in; ++i) {
      own[static_cast<size_t>(i)] = sources[m].scores[i];
      joined.scores[static_cast<size_t>(i)] += share * sources[m].scores[i];
    }
  }
  joined.loaded = true;
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
    for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; ++p)
      for (int64_t first = 0; first < exact.in; first += kGroup) {
        uint8_t levels[kGroup * kPanel];
        float scales[kPanel];
        const int64_t count = std::min<int64_t>(kGroup, exact.in - first);
        kernels_.draft.int4_build({exact.panels.data() + (p * exact.in + first) * kPanel, exact.dtype, count, levels, scales,
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

void Int4View::pack_scales(const Joined& joined, const std::vector<Int4Source>& sources, int64_t group) const {
  std::vector<float> scales(static_cast<size_t>(round_up(joined.width, kInt4Block)));
  size_t at = 0;
  for (size_t m = 0; m < sources.size(); ++m) {
    const int64_t out = shapes_[static_cast<size_t>(joined.matrices[m])].out;
    for (int64_t o = 0; o < out; ++o) scales[at++] = half_to_float(sources[m].scales[group * out + o]);
  }
  for (const Tile& tile : joined.tiles) {
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

void Int4View::pack_rows(const Joined& joined, const std::vector<Int4Source>& sources, int64_t group) const {
  std::vector<uint8_t> levels(static_cast<size_t>(round_up(joined.width, kInt4Block)));
  const int64_t last = std::min((group + 1) * kGroup, joined.in);
  for (int64_t i = group * kGroup; i < last; ++i) {
    size_t at = 0;
    for (size_t m = 0; m < sources.size(); ++m) {
      const int64_t out = shapes_[static_cast<size_t>(joined.matrices[m])].out;
      const uint8_t* nibbles = sources[m].nibbles + i * ((out + 1) / 2);
      for (int64_t o = 0; o < out; ++o) levels[at++] = o % 2 == 0 ? nibbles[o / 2] & 15 : nibbles[o / 2] >> 4;
    }
    for (const Tile& tile : joined.tiles) {
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
  for (const Joined& joined : joined_) total += joined.data.bytes() + joined.scores.bytes();
  for (const Place& place : places_) total += place.scores.bytes();
  return total;
}

bool Int4View::complete() const {
  return std::all_of(joined_.begin(), joined_.end(), [](const Joined& joined) { return joined.loaded; });
}

// Returns the bytes that one output needs, in 1/2: a level per chosen input, a scale per group that has any.
uint64_t Int4View::choose(const Joined& joined, const float* scores, const float* x, float effort) {
  choose_scratch_.reserve(static_cast<size_t>(joined.groups * kGroup));
  chosen_.reserve(static_cast<size_t>(joined.groups));
  const ChooseCall call{x, scores, joined.in, effort, choose_scratch_.data(), chosen_.data()};
  auto halves = static_cast<uint64_t>(kernels_.draft.choose(call));
  for (int64_t g = 0; g < joined.groups; ++g) halves += chosen_[static_cast<size_t>(g)].quads > 0 ? 2 : 0;
  return halves;
}

// Splits the groups into chunks with about equal numbers of quads.
void Int4View::split(const Joined& joined) {
  int64_t total = 0, done = 0;
  for (int64_t g = 0; g < joined.groups; ++g) total += chosen_[static_cast<size_t>(g)].quads;
  bounds_.assign(static_cast<size_t>(joined.chunks) + 1, joined.groups);
  bounds_[0] = 0;
  int64_t chunk = 1;
  for (int64_t g = 0; g < joined.groups && chunk < joined.chunks; ++g) {
    done += chosen_[static_cast<size_t>(g)].quads;
    while (chunk < joined.chunks && done * joined.chunks >= total * chunk) bounds_[static_cast<size_t>(chunk++)] = g + 1;
  }
}

// One call per tile and chunk, for outputs [first, last).
void Int4View::plan(const Joined& joined, int64_t first, int64_t last, float* direct, int threads) {
  const int64_t padded = round_up(joined.width, kInt4Block);
  calls_.clear();
  for (const Tile& tile : joined.tiles) {
    const int64_t from = std::max<int64_t>(first / kInt4Block * kInt4Block - tile.first, 0);
    const int64_t to = std::min(round_up(last, kInt4Block) - tile.first, tile.width);
    for (int64_t c = 0; from < to && c < joined.chunks; ++c) {
      float* sums = direct != nullptr ? direct + tile.first : sums_.data() + c * padded + tile.first;
      calls_.push_back({{tile.data, tile.width}, chosen_.data(), bounds_[static_cast<size_t>(c)],
                        bounds_[static_cast<size_t>(c) + 1], from, to, sums, nullptr, nullptr, true});
    }
  }
  // The share of a thread (see Pool::run) is fetched ahead from one part to the next.
  const size_t parts = calls_.size();
  for (size_t p = 0; p + 1 < parts; ++p) {
    bool same = true;
    for (int t = 1; t < threads; ++t) same &= parts * static_cast<size_t>(t) / static_cast<size_t>(threads) != p + 1;
    if (!same) continue;
    calls_[p].next = &calls_[p + 1];
    calls_[p + 1].cold = false;
  }
}

// Multiplies outputs [first, last) of joined matrices by the chosen inputs, and hands the sums to the `count` matrices.
void Int4View::run(Pool& pool, const Joined& joined, int64_t first, int64_t last, int count, const int* matrices,
                   float* const* y) {
  split(joined);
  const bool direct = joined.chunks == 1 && joined.matrices.size() == 1;
  const auto padded = static_cast<size_t>(round_up(joined.width, kInt4Block));
  if (!direct) sums_.reserve(static_cast<size_t>(joined.chunks) * padded);
  carry_.reserve(static_cast<size_t>(pool.threads() * (kTileOutputs + kInt4Block)));
  plan(joined, first, last, direct ? y[0] : nullptr, pool.threads());
  pool.run(static_cast<int>(calls_.size()), [&](int part, int thread) {
    Int4Call& call = calls_[static_cast<size_t>(part)];
    call.carry = carry_.data() + thread * (kTileOutputs + kInt4Block);
    kernels_.draft.int4(call);
  });
  if (direct) return;
  for (int m = 0; m < count; ++m) {
    const Place& place = places_[static_cast<size_t>(matrices[m])];
    kernels_.draft.add_up(sums_.data() + place.first, joined.chunks, static_cast<int64_t>(padded),
                          shapes_[static_cast<size_t>(matrices[m])].out, y[m]);
  }
}

uint64_t Int4View::multiply(Pool& pool, int count, const int* matrices, const float* x, const float* efforts,
                            float* const* y) {
  const Joined& joined = joined_[static_cast<size_t>(places_[static_cast<size_t>(matrices[0])].joined)];
  if (std::all_of(efforts, efforts + count, [&](float e) { return e == efforts[0]; })) {
    const uint64_t halves = choose(joined, joined.scores.data(), x, efforts[0]);
    run(pool, joined, 0, joined.width, count, matrices, y);
    return halves * static_cast<uint64_t>(joined.width) / 2;
  }
  uint64_t bytes = 0;
  for (int m = 0; m < count; ++m) {
    const Place& place = places_[static_cast<size_t>(matrices[m])];
    const int64_t out = shapes_[static_cast<size_t>(matrices[m])].out;
    bytes += choose(joined, place.scores.data(), x, efforts[m]) * static_cast<uint64_t>(out) / 2;
    run(pool, joined, place.first, place.first + out, 1, matrices + m, y + m);
  }
  return bytes;
}

}  // namespace specdec
