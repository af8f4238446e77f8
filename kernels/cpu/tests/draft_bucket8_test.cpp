// The bucket8 view against float64, for shapes that are no multiple of anything, and its choice of tiers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "check.h"
#include "draft_bucket8.h"
#include "draft_rows.h"

namespace specdec::test {
namespace {

struct Stored {
  MatrixShape shape;
  int64_t buckets;
  std::vector<int8_t> levels;   // [in][buckets * 64]
  std::vector<uint8_t> tiers;   // the same
  std::vector<int8_t> values[kTiers];
  std::vector<uint8_t> masks[kTiers - 1];
  std::vector<float> steps, scores;

  Bucket8Source source() const {
    Bucket8Source s{};
    for (int k = 0; k < kTiers; ++k) s.values[k] = values[k].data();
    for (int k = 0; k < kTiers - 1; ++k) s.masks[k] = masks[k].data();
    s.steps = steps.data();
    s.scores = scores.data();
    return s;
  }
};

// Random levels in random tiers: masks need not follow the levels' size.
Stored random_stored(MatrixShape shape, uint32_t seed) {
  Stored s{shape, (shape.out + kBucket - 1) / kBucket, {}, {}, {}, {}, {}, {}};
  std::mt19937 engine(seed);
  const auto rows = static_cast<size_t>(shape.in * s.buckets);
  s.levels.resize(rows * kBucket);
  s.tiers.resize(rows * kBucket);
  for (auto& level : s.levels) level = static_cast<int8_t>(static_cast<int>(engine() % 255) - 127);
  for (size_t r = 0; r < rows; ++r) {
    int order[kBucket];
    std::iota(order, order + kBucket, 0);
    std::shuffle(order, order + kBucket, engine);
    for (int j = 0; j < kBucket; ++j) s.tiers[r * kBucket + static_cast<size_t>(order[j])] = static_cast<uint8_t>(j / kTierSize);
    for (int k = 0; k < kTiers; ++k) {
      uint64_t mask = 0;
      for (size_t o = 0; o < kBucket; ++o) {
        if (s.tiers[r * kBucket + o] != k) continue;
        mask |= uint64_t{1} << o;
        s.values[k].push_back(s.levels[r * kBucket + o]);
      }
      if (k < kTiers - 1)
        for (int byte = 0; byte < 8; ++byte) s.masks[k].push_back(static_cast<uint8_t>(mask >> (8 * byte)));
    }
  }
  for (const float step : random_floats(static_cast<size_t>(shape.in), seed + 1, 0.01F)) s.steps.push_back(std::fabs(step));
  for (const float score : random_floats(static_cast<size_t>(shape.in), seed + 2))
    for (int k = 0; k < kTiers; ++k) s.scores.push_back(std::fabs(score) / static_cast<float>(k + 1));
  return s;
}

struct Chosen {
  std::vector<TierPass> passes;
  std::vector<int> tiers;  // n(i)
};

// [kTiers][padded] from [in][kTiers]
std::vector<float> transposed(const std::vector<float>& scores, int64_t in) {
  const int64_t stride = (in + kGroup - 1) / kGroup * kGroup;
  std::vector<float> out(static_cast<size_t>(kTiers * stride));
  for (int64_t i = 0; i < in; ++i)
    for (int k = 0; k < kTiers; ++k) out[static_cast<size_t>(k * stride + i)] = scores[static_cast<size_t>(i * kTiers + k)];
  return out;
}

Chosen choose(const KernelTable& table, const std::vector<float>& x, const std::vector<float>& scores, int64_t in, float effort) {
  const auto stride = static_cast<size_t>((in + kGroup - 1) / kGroup * kGroup);
  std::vector<float> scratch(kTiers * stride);
  std::vector<uint8_t> taken(static_cast<size_t>(in));
  std::vector<uint16_t> lists((kTiers + 2) * (stride + kGroup));
  Chosen c{std::vector<TierPass>(static_cast<size_t>(tier_passes_for(in))), std::vector<int>(static_cast<size_t>(in))};
  const int64_t count = table.draft.choose_tiers({x.data(), scores.data(), in, effort, scratch.data(), taken.data(), lists.data(), c.passes.data()});
  CHECK(count <= tier_passes_for(in), "room for the passes");
  c.passes.resize(static_cast<size_t>(count));
  for (const TierPass& pass : c.passes) {
    bool good = pass.quads == (pass.count + 3) / 4 && pass.count >= 1 && pass.tiers >= 1 && pass.tiers <= kTiers;
    for (int j = 0; j < 4 * pass.quads; ++j) {
      good &= pass.input[j] < in && (j < pass.count || pass.input[j] == pass.input[pass.count - 1]);
      if (j >= pass.count || pass.input[j] >= in) continue;
      good &= c.tiers[pass.input[j]] == 0;  // every input once
      c.tiers[pass.input[j]] = pass.tiers;
    }
    CHECK(good, "a pass is whole");
  }
  return c;
}

struct Case {
  std::vector<Stored> matrices;
  std::vector<float> x, joint;
  std::vector<std::vector<float>> y;
  int64_t in;

  explicit Case(const std::vector<MatrixShape>& shapes) : in(shapes[0].in) {
    uint32_t seed = static_cast<uint32_t>(in * 31 + shapes[0].out);
    int64_t total = 0;
    for (const MatrixShape& shape : shapes) {
      matrices.push_back(random_stored(shape, seed += 10));
      y.emplace_back(static_cast<size_t>((shape.out + 63) / 64 * 64));
      total += matrices.back().buckets;
    }
    x = random_floats(static_cast<size_t>(in), seed + 5);
    for (size_t i = 0; i < x.size(); i += 50) x[i] *= 200;  // outliers
    x.resize(static_cast<size_t>((in + 63) / 64 * 64));
    for (const Stored& m : matrices) {
      const auto own = transposed(m.scores, in);
      joint.resize(own.size());
      for (size_t i = 0; i < own.size(); ++i) joint[i] += static_cast<float>(m.buckets) / static_cast<float>(total) * own[i];
    }
  }

  Bucket8View view(const KernelTable& table, Pool& pool) const {
    std::vector<MatrixShape> shapes;
    std::vector<int> numbers;
    std::vector<Bucket8Source> sources;
    for (const Stored& m : matrices) {
      numbers.push_back(static_cast<int>(shapes.size()));
      shapes.push_back(m.shape);
      sources.push_back(m.source());
    }
    Bucket8View made(table, JoinedMatrices(shapes, {numbers}));
    made.load(pool, 0, sources);
    return made;
  }

  uint64_t multiply(Bucket8View& view, Pool& pool, const std::vector<float>& efforts) {
    std::vector<int> numbers;
    std::vector<float*> out;
    for (size_t m = 0; m < matrices.size(); ++m) {
      numbers.push_back(static_cast<int>(m));
      std::fill(y[m].begin(), y[m].end(), NAN);
      out.push_back(y[m].data());
    }
    return multiply_row(view, pool, static_cast<int>(numbers.size()), numbers.data(), x.data(), efforts.data(), out.data());
  }

  void check_matrix(const KernelTable& table, size_t m, const std::vector<float>& scores, float effort, const std::string& where) {
    const Stored& matrix = matrices[m];
    const Chosen chosen = choose(table, x, scores, in, effort);
    const auto out = static_cast<size_t>(matrix.shape.out);
    std::vector<double> sums(out), bounds(out);
    for (const TierPass& pass : chosen.passes) {
      double peak = 0;
      for (int j = 0; j < pass.count; ++j)
        peak = std::max(peak, std::fabs(static_cast<double>(x[pass.input[j]]) * matrix.steps[pass.input[j]]));
      for (int j = 0; j < pass.count; ++j) {
        const size_t i = pass.input[j], row = i * static_cast<size_t>(matrix.buckets) * kBucket;
        for (size_t o = 0; o < out; ++o) {
          if (matrix.tiers[row + o] >= pass.tiers) continue;
          const double product = static_cast<double>(x[i]) * matrix.steps[i] * matrix.levels[row + o];
          sums[o] += product;
          // Activations are rounded to half a 127th of the pass's largest; 1e-6 is for float32 (see the int4 test).
          bounds[o] += 0.5001 / 127 * peak * std::abs(matrix.levels[row + o]) + 1e-6 * std::fabs(product);
        }
      }
    }
    bool close = true;
    for (size_t o = 0; o < out; ++o) close &= std::fabs(y[m][o] - sums[o]) <= bounds[o] + 1e-12;
    CHECK(close, where + " matrix " + std::to_string(m));
  }
};

std::string name_of(const KernelTable& table, const std::vector<MatrixShape>& shapes) {
  std::string name = table.name;
  for (const auto& shape : shapes) name += " " + std::to_string(shape.out) + "x" + std::to_string(shape.in);
  return name;
}

const std::vector<std::vector<MatrixShape>> kShapes = {
    {{1, 1}}, {{7, 33}}, {{64, 32}}, {{65, 31}}, {{130, 100}}, {{130, 70}, {33, 70}, {34, 70}}, {{96, 1000}},
    {{9100, 40}, {9100, 40}}, {{40000, 20}}, {{2000, 600}, {2000, 600}}};

}  // namespace

TEST(bucket8_matches_float64) {
  Pool pool(2);
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      Case c(shapes);
      Bucket8View view = c.view(*table, pool);
      for (const float effort : {1.0F, 0.5F, 0.15F}) {
        c.multiply(view, pool, std::vector<float>(shapes.size(), effort));
        for (size_t m = 0; m < shapes.size(); ++m)
          c.check_matrix(*table, m, c.joint, effort, name_of(*table, shapes) + " effort " + std::to_string(effort));
      }
    }
}

TEST(bucket8_takes_an_effort_for_each_joined_matrix) {
  Pool pool(2);
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      if (shapes.size() < 2) continue;
      Case c(shapes);
      Bucket8View view = c.view(*table, pool);
      std::vector<float> efforts = {0.3F, 1.0F, 0.1F};
      efforts.resize(shapes.size());
      c.multiply(view, pool, efforts);
      for (size_t m = 0; m < shapes.size(); ++m)
        c.check_matrix(*table, m, transposed(c.matrices[m].scores, c.in), efforts[m], name_of(*table, shapes) + " own efforts");
    }
}

THREADED_TEST(bucket8_rows_do_not_depend_on_each_other) {
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      Case c(shapes);
      Pool pool(3);
      Bucket8View view = c.view(*table, pool);
      check_rows_alone(view, pool, shapes, name_of(*table, shapes));
    }
}

THREADED_TEST(bucket8_does_not_depend_on_threads_or_on_the_call_before) {
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      Case c(shapes);
      Pool one(1), three(3);
      Bucket8View view = c.view(*table, one);
      for (const float effort : {1.0F, 0.3F}) {
        const std::vector<float> efforts(shapes.size(), effort);
        c.multiply(view, one, efforts);
        const auto first = c.y;
        for (Pool* pool : {&three, &one, &three}) {
          c.multiply(view, *pool, efforts);
          for (size_t m = 0; m < shapes.size(); ++m)
            CHECK(std::memcmp(first[m].data(), c.y[m].data(), static_cast<size_t>(shapes[m].out) * sizeof(float)) == 0,
                  name_of(*table, shapes) + " threads " + std::to_string(pool->threads()));
        }
      }
    }
}

TEST(bucket8_choice_is_the_top_of_the_order_and_near_the_effort) {
  for (const auto* table : tables())
    for (const int64_t in : {1, 7, 33, 200, 1023, 9000})
      for (int kind = 0; kind < 5; ++kind) {
        const auto count = static_cast<size_t>(in);
        auto x = random_floats(count, static_cast<uint32_t>(in + kind));
        auto scores = random_floats(count * kTiers, static_cast<uint32_t>(in + kind + 1));
        for (size_t i = 0; i < count; ++i) {
          x[i] = kind == 1 ? (x[i] > 0 ? 1.0F : -2.0F) : kind == 2 ? 0.0F : kind == 3 ? x[i] * 1e-38F : kind == 4 && i % 9 == 0 ? 1e4F : x[i];
          for (size_t k = 0; k < kTiers; ++k) {
            float& score = scores[i * kTiers + k];
            score = kind == 1 ? 0.5F : std::fabs(score);
            if (k > 0) score = std::min(score, scores[i * kTiers + k - 1]);
          }
        }
        x.resize((count + 63) / 64 * 64);
        const auto by_tier = transposed(scores, in);
        for (const float effort : {0.001F, 0.15F, 0.5F, 0.77F, 0.999F, 1.0F}) {
          const Chosen chosen = choose(*table, x, by_tier, in, effort);
          const std::string where = std::string(table->name) + " in " + std::to_string(in) + " kind " + std::to_string(kind) +
                                    " effort " + std::to_string(effort);
          int64_t taken = 0;
          float least = std::numeric_limits<float>::infinity(), most = 0;
          for (size_t i = 0; i < count; ++i) {
            taken += chosen.tiers[i];
            for (int k = 0; k < kTiers; ++k) {
              const float score = std::fabs(x[i]) * scores[i * kTiers + static_cast<size_t>(k)];
              if (k < chosen.tiers[i]) least = std::min(least, score);
              else most = std::max(most, score);
            }
          }
          const double total = static_cast<double>(kTiers * in), wanted = std::max(1.0, effort * total);
          CHECK(std::fabs(static_cast<double>(taken) - wanted) <= 0.5 + 0.002 * total, where + ": share");
          CHECK(least >= most, where + ": what is taken scores no less than what is not");
        }
      }
}

THREADED_TEST(bucket8_ranks_and_rounds_exact_weights) {
  Pool pool(2);
  for (const auto* table : tables())
    for (const auto dtype : {Dtype::float16, Dtype::bfloat16}) {
      const MatrixShape shape{100, 70};
      PackedMatrix exact;
      exact.out = shape.out;
      exact.in = shape.in;
      exact.dtype = dtype;
      exact.panels = Buffer<uint16_t>(static_cast<size_t>(exact.panel_count() * shape.in * kPanel));
      const auto bits = random_bits(static_cast<size_t>(shape.out * shape.in), dtype, 5);
      for (int64_t i = 0; i < shape.in; ++i)
        for (int64_t o = 0; o < shape.out; ++o)
          exact.panels[static_cast<size_t>((o / kPanel * shape.in + i) * kPanel + o % kPanel)] = bits[static_cast<size_t>(i * shape.out + o)];
      Bucket8View view(*table, JoinedMatrices({shape}, {{0}}));
      view.build(pool, 0, {&exact});
      CHECK(view.complete(), "built");
      std::vector<float> x(128), y(128);
      const int number = 0;
      float* out = y.data();
      for (int64_t i = 0; i < shape.in; ++i) {
        x[static_cast<size_t>(i)] = 1;
        std::vector<float> weights, sizes;
        for (int64_t o = 0; o < shape.out; ++o) weights.push_back(value_of(bits[static_cast<size_t>(i * shape.out + o)], dtype));
        for (const float w : weights) sizes.push_back(std::fabs(w));
        const float peak = *std::max_element(sizes.begin(), sizes.end());
        // One input with every tier (effort 1), then the first quarter of its weights alone.
        for (const float effort : {1.0F, 0.25F / 70}) {
          multiply_row(view, pool, 1, &number, x.data(), &effort, &out);
          bool close = true;
          for (int64_t first = 0; first < shape.out; first += kBucket) {
            const int64_t last = std::min(first + kBucket, shape.out);
            std::vector<float> sorted(sizes.begin() + first, sizes.begin() + last);
            sorted.resize(kBucket);
            std::sort(sorted.rbegin(), sorted.rend());
            for (int64_t o = first; o < last; ++o) {
              const auto at = static_cast<size_t>(o);
              const bool surely = effort == 1.0F || sizes[at] > sorted[kTierSize], never = !surely && sizes[at] < sorted[kTierSize - 1];
              const double wanted = never ? 0.0 : weights[at];
              // Half a step of the weight, and float32.
              const double bound = peak / 127 * 0.5001 + 1e-6 * sizes[at];
              close &= std::fabs(y[at] - wanted) <= bound || (!surely && !never && y[at] == 0.0F);
            }
          }
          CHECK(close, std::string(table->name) + " input " + std::to_string(i) + " effort " + std::to_string(effort));
        }
        x[static_cast<size_t>(i)] = 0;
      }
    }
}

TEST(bucket8_refuses_masks_that_do_not_fit) {
  Pool pool(1);
  Case c({{100, 3}});
  c.matrices[0].masks[1][5] ^= 4;
  Bucket8View view(kernels_for("scalar"), JoinedMatrices({{100, 3}}, {{0}}));
  bool refused = false;
  try {
    view.load(pool, 0, {c.matrices[0].source()});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused && !view.complete(), "a damaged mask is refused");
}

}  // namespace specdec::test
