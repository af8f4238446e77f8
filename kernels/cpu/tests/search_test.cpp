// Vector search: scans against plain sums, equal bits of all instruction sets, exact searches against brute force.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "check.h"
#include "codes.h"
#include "search.h"

namespace specdec::test {

namespace {

// Vectors of one chunk and everything that a search needs of them.
struct Encoded {
  std::vector<float> rows, centre, spread, numbers;
  std::vector<uint8_t> codes;
  SearchSpace space;
  Encoded(Pool& pool, int64_t count, int64_t dims, Metric metric) : rows(random_floats(static_cast<size_t>(count * dims), 11)) {
    const int64_t width = (count + kLineVectors - 1) / kLineVectors * kLineVectors;
    centre.assign(static_cast<size_t>(dims), 0.0F);
    spread.assign(static_cast<size_t>(dims), 0.25F);
    numbers.resize(static_cast<size_t>(4 * count));
    codes.resize(static_cast<size_t>(2 * dims * width / 2));
    encode(pool, {rows.data(), nullptr, count, dims, centre.data(), spread.data(), 2, true, metric == Metric::distance,
                  width, 0, codes.data(), numbers.data(), numbers.data() + count, numbers.data() + 2 * count,
                  numbers.data() + 3 * count});
    space.dims = dims;
    space.metric = metric;
    space.centre = centre.data();
    space.spread = spread.data();
    SearchChunk chunk;
    chunk.count = count, chunk.width = width, chunk.codes = codes.data();
    chunk.steps = numbers.data(), chunk.biases = numbers.data() + count;
    chunk.norms = numbers.data() + 2 * count, chunk.errors = numbers.data() + 3 * count;
    chunk.floats = rows.data();
    space.chunks.push_back(chunk);
  }
};

std::vector<int64_t> brute_force(const Encoded& set, const float* query, int64_t k) {
  const int64_t dims = set.space.dims, count = set.space.chunks[0].count;
  std::vector<double> scores(static_cast<size_t>(count));
  for (int64_t v = 0; v < count; ++v)
    for (int64_t i = 0; i < dims; ++i) {
      const double x = set.rows[static_cast<size_t>(v * dims + i)], q = query[i];
      scores[static_cast<size_t>(v)] += set.space.metric == Metric::distance ? -(x - q) * (x - q) : x * q;
    }
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(k));
  return order;
}

}  // namespace

TEST(scans_are_plain_sums_with_equal_bits) {
  constexpr int64_t kWidth = 2 * kLineVectors, kRuns = 44;
  std::vector<uint8_t> codes(kRuns * kWidth / 2);
  std::mt19937 random(5);
  for (auto& byte : codes) byte = static_cast<uint8_t>(random());
  std::vector<int32_t> runs(kRuns);
  std::iota(runs.rbegin(), runs.rend(), 0);
  std::vector<int8_t> weights(kRuns);
  for (auto& weight : weights) weight = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  const std::vector<float> steps{0.5F, 0.0371F};
  std::vector<float> first;
  for (const auto* table : tables()) {
    std::vector<float> sums(kWidth);
    table->search.scan({codes.data(), kWidth, runs.data(), weights.data(), steps.data(), kRuns / kQuad, sums.data()});
    if (first.empty()) first = sums;
    CHECK(std::memcmp(first.data(), sums.data(), kWidth * sizeof(float)) == 0, std::string(table->name) + " bits of a scan");
    for (int v = 0; v < kWidth; ++v) {
      double wanted = 0;
      for (size_t r = 0; r < kRuns; ++r) {
        const int byte = codes[static_cast<size_t>(runs[r] * kWidth / 2 + v / kLineVectors * kLine + line_byte(v % kLine))];
        const int level = v % kLineVectors < kLine ? byte & 15 : byte >> 4;
        wanted += static_cast<double>(weights[r]) * level * steps[r / (kQuad * kScanQuads)];
      }
      CHECK(std::fabs(sums[static_cast<size_t>(v)] - wanted) <= 1e-3, std::string(table->name) + " scan");
    }
  }
}

THREADED_TEST(exact_searches_equal_brute_force) {
  const auto pool = Pool::shared(2);
  const int64_t count = kFewCases ? 300 : 2500, dims = 33, k = 10, queries = kFewCases ? 3 : 12;
  for (const Metric metric : {Metric::product, Metric::distance}) {
    const Encoded set(*pool, count, dims, metric);
    const auto query = random_floats(static_cast<size_t>(queries * dims), 12);
    std::vector<std::vector<float>> scores;
    for (const auto* table : tables()) {
      std::vector<int64_t> ids(static_cast<size_t>(queries * k)), candidates(static_cast<size_t>(queries));
      scores.emplace_back(ids.size());
      search(*pool, table->search, set.space, {query.data(), queries, k, 0, 1.0, scores.back().data(), ids.data(), candidates.data()});
      for (int64_t q = 0; q < queries; ++q) {
        const auto wanted = brute_force(set, query.data() + q * dims, k);
        CHECK(std::equal(wanted.begin(), wanted.end(), ids.begin() + q * k), std::string(table->name) + " exact search");
        CHECK(candidates[static_cast<size_t>(q)] < count, std::string(table->name) + ": every vector was a candidate");
      }
      CHECK(std::memcmp(scores.front().data(), scores.back().data(), ids.size() * sizeof(float)) == 0,
            std::string(table->name) + " bits of scores");
    }
  }
}

}  // namespace specdec::test
