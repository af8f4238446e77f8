// Attention over chunks against float64, with rows that see different parts of the context.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"

namespace specdec::test {
namespace {

constexpr int64_t kLength = 300;
constexpr int64_t kRoom = 384;

struct Context {
  int64_t size, stride;
  bool single;              // kept in float32, not float16
  std::vector<float> k, v;  // (position, size), as they are kept
  std::vector<uint16_t> keys, values;
  std::vector<float> single_keys, single_values;

  Context(int64_t head_dim, bool single) : size(head_dim), stride((head_dim + 31) / 32 * 32), single(single) {
    k = random_floats(static_cast<size_t>(kLength * size), 7);
    v = random_floats(static_cast<size_t>(kLength * size), 8);
    // What lies past the context may be anything; NaN shows up wherever it is used.
    keys.assign(static_cast<size_t>(kRoom * size), 0x7E00);
    values.assign(static_cast<size_t>(kRoom * stride), 0x7E00);
    for (int64_t p = 0; p < kLength; ++p) {
      for (int64_t d = 0; d < stride; ++d) values[static_cast<size_t>(p * stride + d)] = 0;
      for (int64_t d = 0; d < size; ++d) {
        const auto i = static_cast<size_t>(p * size + d);
        keys[static_cast<size_t>((p / kPanel * size + d) * kPanel + p % kPanel)] = float_to_half(k[i]);
        values[static_cast<size_t>(p * stride + d)] = float_to_half(v[i]);
        if (single) continue;
        k[i] = half_to_float(float_to_half(k[i]));
        v[i] = half_to_float(float_to_half(v[i]));
      }
    }
    single_keys.assign(keys.size(), NAN);
    single_values.assign(values.size(), NAN);
    for (int64_t p = 0; p < kLength; ++p) {
      for (int64_t d = 0; d < stride; ++d) single_values[static_cast<size_t>(p * stride + d)] = 0;
      for (int64_t d = 0; d < size; ++d) {
        single_keys[static_cast<size_t>((p / kPanel * size + d) * kPanel + p % kPanel)] = k[static_cast<size_t>(p * size + d)];
        single_values[static_cast<size_t>(p * stride + d)] = v[static_cast<size_t>(p * size + d)];
      }
    }
  }
  const void* keys_of(int64_t chunk) const {
    const auto at = static_cast<size_t>(chunk * kChunk * size);
    return single ? static_cast<const void*>(&single_keys[at]) : &keys[at];
  }
  const void* values_of(int64_t chunk) const {
    const auto at = static_cast<size_t>(chunk * kChunk * stride);
    return single ? static_cast<const void*>(&single_values[at]) : &values[at];
  }
};

// All rows together, chunk after chunk; row r sees positions from[r] .. to[r] - 1.
std::vector<float> attend(const KernelTable& table, const Context& c, const std::vector<float>& q,
                          const std::vector<int64_t>& from, const std::vector<int64_t>& to, float softcap) {
  const auto rows = static_cast<int>(from.size());
  std::vector<float> tile(q.size()), scratch(static_cast<size_t>(attention_scratch_floats()));
  for (int r = 0; r < rows; ++r)
    for (int64_t d = 0; d < c.size; ++d)
      tile[static_cast<size_t>(d * rows + r)] = q[static_cast<size_t>(r * c.size + d)];
  std::vector<float> sums(static_cast<size_t>(rows * c.stride)), chunk_sums(sums.size()), total(from.size());
  std::vector<float> peak(from.size(), -std::numeric_limits<float>::infinity()), chunk_peak(from.size()),
      chunk_total(from.size());
  for (int64_t chunk = 0; chunk * kChunk < kLength; ++chunk) {
    std::vector<int32_t> first(from.size()), last(from.size());
    for (size_t r = 0; r < from.size(); ++r) {
      first[r] = static_cast<int32_t>(std::clamp<int64_t>(from[r] - chunk * kChunk, 0, kChunk));
      last[r] = static_cast<int32_t>(std::clamp<int64_t>(to[r] - chunk * kChunk, 0, kChunk));
    }
    const void* next = rows % 2 == 0 ? nullptr : c.keys_of(0);  // prefetched only: must not change the result
    table.attention.chunk({c.keys_of(chunk), c.values_of(chunk), c.single, c.stride, static_cast<int>(c.size),
                           1 / std::sqrt(static_cast<float>(c.size)), softcap, tile.data(), rows, first.data(), last.data(),
                           chunk_peak.data(), chunk_total.data(), chunk_sums.data(), scratch.data(), next});
    for (size_t r = 0; r < from.size(); ++r)
      if (first[r] < last[r])
        table.attention.combine(&peak[r], &total[r], &sums[r * static_cast<size_t>(c.stride)], chunk_peak[r],
                                chunk_total[r], &chunk_sums[r * static_cast<size_t>(c.stride)], c.stride);
  }
  std::vector<float> y(q.size());
  for (size_t r = 0; r < from.size(); ++r)
    for (int64_t d = 0; d < c.size; ++d)
      y[r * static_cast<size_t>(c.size) + static_cast<size_t>(d)] =
          sums[r * static_cast<size_t>(c.stride) + static_cast<size_t>(d)] / total[r];
  return y;
}

}  // namespace

TEST(attention_matches_float64_and_rows_match_one_row) {
  for (const auto* table : tables())
    for (const int64_t size : {2, 10, 16, 33 + 1, 40, 64, 80, 96, 128, 192, 256}) {
      const Context c(size, size % 5 == 0);
      const float softcap = size % 3 == 1 ? 2.0F : 0.0F;  // of some sizes
      // Whole chunks, ends of chunks, single positions, windows that start within and across chunks.
      const std::vector<int64_t> from = {0, 0, 0, 5, 120, 128, 250, 0, 299, 127},
                                 to = {300, 300, 299, 6, 260, 256, 300, 1, 300, 129};
      const int tile = table->dense.max_tile;
      for (size_t start = 0; start < from.size(); start += static_cast<size_t>(tile)) {
        const auto end = std::min(from.size(), start + static_cast<size_t>(tile));
        const std::vector<int64_t> f(from.begin() + static_cast<int64_t>(start),
                                     from.begin() + static_cast<int64_t>(end));
        const std::vector<int64_t> t(to.begin() + static_cast<int64_t>(start), to.begin() + static_cast<int64_t>(end));
        const auto q = random_floats(f.size() * static_cast<size_t>(size), 9);
        const auto y = attend(*table, c, q, f, t, softcap);
        for (size_t r = 0; r < f.size(); ++r) {
          const std::vector<float> own(q.begin() + static_cast<int64_t>(r) * size,
                                       q.begin() + static_cast<int64_t>(r + 1) * size);
          const auto alone = attend(*table, c, own, {f[r]}, {t[r]}, softcap);
          std::vector<double> weights(static_cast<size_t>(t[r] - f[r]));
          double best = -1e300, sum = 0;
          for (int64_t p = f[r]; p < t[r]; ++p) {
            double score = 0;
            for (int64_t d = 0; d < size; ++d)
              score += static_cast<double>(own[static_cast<size_t>(d)]) * c.k[static_cast<size_t>(p * size + d)];
            score /= std::sqrt(static_cast<double>(size));
            weights[static_cast<size_t>(p - f[r])] = softcap > 0 ? softcap * std::tanh(score / softcap) : score;
            best = std::max(best, weights[static_cast<size_t>(p - f[r])]);
          }
          for (auto& weight : weights) sum += weight = std::exp(weight - best);
          for (int64_t d = 0; d < size; ++d) {
            double wanted = 0, magnitude = 0;
            for (int64_t p = f[r]; p < t[r]; ++p) {
              wanted += weights[static_cast<size_t>(p - f[r])] / sum * c.v[static_cast<size_t>(p * size + d)];
              magnitude +=
                  weights[static_cast<size_t>(p - f[r])] / sum * std::fabs(c.v[static_cast<size_t>(p * size + d)]);
            }
            const auto i = r * static_cast<size_t>(size) + static_cast<size_t>(d);
            // Scores of up to 4 or so, each off by up to (size + 2) half units, move the weights by 2e-5 at most; sums
            // over 300 positions add 300 half units.
            CHECK(std::fabs(y[i] - wanted) <= (8.0 * static_cast<double>(size + 2) + 400) * 0x1p-24 * magnitude,
                  std::string(table->name) + " size " + std::to_string(size) + " row " + std::to_string(r));
            CHECK(std::memcmp(&y[i], &alone[static_cast<size_t>(d)], sizeof(float)) == 0,
                  std::string(table->name) + " alone, size " + std::to_string(size) + " row " + std::to_string(r));
          }
        }
      }
    }
}

}  // namespace specdec::test
