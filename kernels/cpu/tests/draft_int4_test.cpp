// The int4 view against float64, for shapes that are no multiple of anything.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "draft_int4.h"
#include "draft_rows.h"

namespace specdec::test {
namespace {

struct Stored {
  MatrixShape shape;
  std::vector<uint8_t> nibbles;
  std::vector<uint16_t> scales;
  std::vector<float> scores;
  Int4Source source() const { return {nibbles.data(), scales.data(), scores.data()}; }
  int level(int64_t i, int64_t o) const {
    const uint8_t byte = nibbles[static_cast<size_t>(i * ((shape.out + 1) / 2) + o / 2)];
    return (o % 2 == 0 ? byte & 15 : byte >> 4) - 8;
  }
  float scale(int64_t i, int64_t o) const {
    return half_to_float(scales[static_cast<size_t>(i / kGroup * shape.out + o)]);
  }
};

Stored random_stored(MatrixShape shape, uint32_t seed) {
  Stored s{shape, {}, {}, {}};
  std::mt19937 engine(seed);
  s.nibbles.resize(static_cast<size_t>(shape.in * ((shape.out + 1) / 2)));
  for (auto& byte : s.nibbles) byte = static_cast<uint8_t>(engine());
  for (const float scale : random_floats(static_cast<size_t>((shape.in + kGroup - 1) / kGroup * shape.out), seed + 1, 0.01F))
    s.scales.push_back(float_to_half(scale));
  for (const float score : random_floats(static_cast<size_t>(shape.in), seed + 2)) s.scores.push_back(std::fabs(score));
  return s;
}

// The scale that the view keeps: a whole multiple of a 127th of the largest among 64 outputs of the joined matrices.
std::vector<std::vector<double>> kept_scales(const std::vector<Stored>& matrices, int64_t group) {
  std::vector<float> all;
  for (const Stored& m : matrices)
    for (int64_t o = 0; o < m.shape.out; ++o) all.push_back(m.scale(group * kGroup, o));
  std::vector<double> kept(all.size());
  for (size_t first = 0; first < all.size(); first += 64) {
    const size_t last = std::min(first + 64, all.size());
    float peak = 0;
    for (size_t o = first; o < last; ++o) peak = std::max(peak, std::fabs(all[o]));
    const float step = peak / 127.0F;
    for (size_t o = first; o < last; ++o) kept[o] = step > 0 ? std::nearbyint(all[o] / step) * static_cast<double>(step) : 0.0;
  }
  std::vector<std::vector<double>> split;
  size_t at = 0;
  for (const Stored& m : matrices) {
    split.emplace_back(kept.begin() + static_cast<int64_t>(at), kept.begin() + static_cast<int64_t>(at) + m.shape.out);
    at += static_cast<size_t>(m.shape.out);
  }
  return split;
}

struct Case {
  std::vector<Stored> matrices;
  std::vector<float> x, joint;  // padded to whole groups; joint: mean scores over all outputs
  std::vector<std::vector<float>> y;

  explicit Case(const std::vector<MatrixShape>& shapes) {
    const int64_t in = shapes[0].in;
    uint32_t seed = static_cast<uint32_t>(in * 31 + shapes[0].out);
    int64_t total = 0;
    for (const MatrixShape& shape : shapes) {
      matrices.push_back(random_stored(shape, seed += 10));
      y.emplace_back(static_cast<size_t>((shape.out + 63) / 64 * 64 + 64));
      total += shape.out;
    }
    x = random_floats(static_cast<size_t>(in), seed + 5);
    x.resize(static_cast<size_t>((in + 63) / 64 * 64));
    joint.resize(x.size());
    for (const Stored& m : matrices)
      for (size_t i = 0; i < static_cast<size_t>(in); ++i)
        joint[i] += m.scores[i] * (static_cast<float>(m.shape.out) / static_cast<float>(total));
  }

  Int4View view(const KernelTable& table, Pool& pool) const {
    std::vector<MatrixShape> shapes;
    std::vector<int> numbers;
    std::vector<Int4Source> sources;
    for (const Stored& m : matrices) {
      numbers.push_back(static_cast<int>(shapes.size()));
      shapes.push_back(m.shape);
      sources.push_back(m.source());
    }
    Int4View made(table, JoinedMatrices(shapes, {numbers}));
    made.load(pool, 0, sources);
    return made;
  }

  uint64_t multiply(Int4View& view, Pool& pool, const std::vector<float>& efforts) {
    std::vector<int> numbers;
    std::vector<float*> out;
    for (size_t m = 0; m < matrices.size(); ++m) {
      numbers.push_back(static_cast<int>(m));
      std::fill(y[m].begin(), y[m].end(), NAN);
      out.push_back(y[m].data());
    }
    return multiply_row(view, pool, static_cast<int>(numbers.size()), numbers.data(), x.data(), efforts.data(), out.data());
  }

  // Checks matrix m against float64, for the inputs that `scores` and `effort` choose.
  void check_matrix(const KernelTable& table, size_t m, const std::vector<float>& scores, float effort, const std::string& where) {
    const int64_t in = matrices[m].shape.in, out = matrices[m].shape.out;
    std::vector<uint32_t> masks(static_cast<size_t>((in + kGroup - 1) / kGroup));
    std::vector<float> scratch(x.size());
    table.draft.choose({x.data(), scores.data(), in, effort, scratch.data(), masks.data()});
    std::vector<double> sums(static_cast<size_t>(out)), sizes(static_cast<size_t>(out));
    for (size_t g = 0; g < masks.size(); ++g) {
      const auto kept = kept_scales(matrices, static_cast<int64_t>(g))[m];
      ChosenGroup group;
      table.draft.quantise(x.data() + g * kGroup, masks[g], &group);
      for (int k = 0; k < group.count; ++k) {
        const int64_t i = static_cast<int64_t>(g) * kGroup + group.index[k];
        const double value = group.value[k] * static_cast<double>(group.step);
        for (int64_t o = 0; o < out; ++o) {
          const double product = value * matrices[m].level(i, o) * kept[static_cast<size_t>(o)];
          sums[static_cast<size_t>(o)] += product;
          sizes[static_cast<size_t>(o)] += std::fabs(product);
        }
      }
    }
    // Products within a group are exact. A group's sum is at most the sum of magnitudes, scaled and added with about
    // five roundings of float32 (6e-8 each) a group; magnitudes do not cancel, so 1e-6 of their sum bounds them all.
    bool close = true;
    for (size_t o = 0; o < sums.size(); ++o) close &= std::fabs(y[m][o] - sums[o]) <= 1e-6 * sizes[o] + 1e-12;
    CHECK(close, where + " matrix " + std::to_string(m));
  }
};

std::string name_of(const KernelTable& table, const std::vector<MatrixShape>& shapes) {
  std::string name = table.name;
  for (const auto& shape : shapes) name += " " + std::to_string(shape.out) + "x" + std::to_string(shape.in);
  return name;
}

const std::vector<std::vector<MatrixShape>> kShapes = {
    {{1, 1}},          {{7, 33}},   {{64, 32}}, {{65, 31}}, {{128, 64}}, {{192, 96}}, {{1023, 100}}, {{130, 70}, {33, 70}, {34, 70}},
    {{300, 40}, {300, 40}}, {{96, 1000}}, {{18000, 33}}, {{9000, 600}, {9000, 600}}};

}  // namespace

TEST(int4_matches_float64) {
  Pool pool(2);
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      Case c(shapes);
      Int4View view = c.view(*table, pool);
      for (const float effort : {1.0F, 0.6F, 0.2F}) {
        c.multiply(view, pool, std::vector<float>(shapes.size(), effort));
        for (size_t m = 0; m < shapes.size(); ++m)
          c.check_matrix(*table, m, c.joint, effort, name_of(*table, shapes) + " effort " + std::to_string(effort));
      }
    }
}

TEST(int4_takes_an_effort_for_each_joined_matrix) {
  Pool pool(2);
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      if (shapes.size() < 2) continue;
      Case c(shapes);
      Int4View view = c.view(*table, pool);
      std::vector<float> efforts = {0.3F, 1.0F, 0.7F};
      efforts.resize(shapes.size());
      c.multiply(view, pool, efforts);
      for (size_t m = 0; m < shapes.size(); ++m) {
        std::vector<float> scores = c.matrices[m].scores;
        scores.resize(c.x.size());
        c.check_matrix(*table, m, scores, efforts[m], name_of(*table, shapes) + " own efforts");
      }
    }
}

THREADED_TEST(int4_rows_do_not_depend_on_each_other) {
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      Case c(shapes);
      Pool pool(3);
      Int4View view = c.view(*table, pool);
      check_rows_alone(view, pool, shapes, name_of(*table, shapes));
    }
}

THREADED_TEST(int4_does_not_depend_on_threads_or_on_the_call_before) {
  for (const auto* table : tables())
    for (const auto& shapes : kShapes) {
      Case c(shapes);
      Pool one(1), three(3), sixteen(16);
      Int4View view = c.view(*table, one), fine = c.view(*table, sixteen);  // tiles as the threads want them
      for (const float effort : {1.0F, 0.4F}) {
        const std::vector<float> efforts(shapes.size(), effort);
        c.multiply(view, one, efforts);
        const auto first = c.y;
        for (Pool* pool : {&three, &one, &three}) {
          c.multiply(view, *pool, efforts);
          for (size_t m = 0; m < shapes.size(); ++m)
            CHECK(std::memcmp(first[m].data(), c.y[m].data(), static_cast<size_t>(shapes[m].out) * sizeof(float)) == 0,
                  name_of(*table, shapes) + " threads " + std::to_string(pool->threads()));
        }
        for (Pool* pool : {&sixteen, &one}) {
          c.multiply(fine, *pool, efforts);
          for (size_t m = 0; m < shapes.size(); ++m)
            CHECK(std::memcmp(first[m].data(), c.y[m].data(), static_cast<size_t>(shapes[m].out) * sizeof(float)) == 0,
                  name_of(*table, shapes) + " tiles for 16 threads, threads " + std::to_string(pool->threads()));
        }
      }
    }
}

TEST(int4_counts_the_bytes_it_reads) {
  Pool pool(1);
  const auto& table = kernels_for("scalar");
  Case c({{100, 64}});
  Int4View view = c.view(table, pool);
  // 64 inputs of 50 bytes, and a scale code for each output in both groups.
  CHECK(c.multiply(view, pool, {1.0F}) == 64 * 50 + 2 * 100, "bytes at effort 1");
  CHECK(c.multiply(view, pool, {0.5F}) <= 32 * 50 + 2 * 100, "bytes at effort 0.5");
}

THREADED_TEST(int4_rounds_exact_weights_well) {
  Pool pool(2);
  for (const auto* table : tables())
    for (const auto dtype : {Dtype::float16, Dtype::bfloat16})
      for (const MatrixShape shape : {MatrixShape{45, 70}, MatrixShape{64, 96}}) {
        PackedMatrix exact;
        exact.out = shape.out;
        exact.in = shape.in;
        exact.dtype = dtype;
        exact.panels = Buffer<uint16_t>(static_cast<size_t>(exact.panel_count() * shape.in * kPanel));
        const auto weights = random_floats(static_cast<size_t>(shape.out * shape.in), 11, 0.05F);
        auto bits_of = [&](int64_t i, int64_t o) {
          const float w = weights[static_cast<size_t>(i * shape.out + o)];
          return dtype == Dtype::float16 ? float_to_half(w) : static_cast<uint16_t>(float_to_bits(w) >> 16);
        };
        for (int64_t i = 0; i < shape.in; ++i)
          for (int64_t o = 0; o < shape.out; ++o)
            exact.panels[static_cast<size_t>((o / kPanel * shape.in + i) * kPanel + o % kPanel)] = bits_of(i, o);
        Int4View view(*table, JoinedMatrices({shape}, {{0}}));
        view.build(pool, 0, {&exact});
        CHECK(view.complete(), "built");
        double error = 0, power = 0;
        std::vector<float> x(static_cast<size_t>((shape.in + 63) / 64 * 64)), y(static_cast<size_t>((shape.out + 63) / 64 * 64));
        for (int64_t i = 0; i < shape.in; ++i) {
          x[static_cast<size_t>(i)] = 1;  // exact in 8 bits: y is a column of the rounded matrix
          const int number = 0;
          const float effort = 1;
          float* out = y.data();
          multiply_row(view, pool, 1, &number, x.data(), &effort, &out);
          x[static_cast<size_t>(i)] = 0;
          for (int64_t o = 0; o < shape.out; ++o) {
            const double w = value_of(bits_of(i, o), dtype), off = y[static_cast<size_t>(o)] - w;
            error += off * off;
            power += w * w;
          }
        }
        // The best uniform 16 levels for groups of 32 Gaussian weights leave about 8 % (measured with the definition in
        // specdec/weights/int4.py); one candidate scale alone would leave 9.5 %.
        const double relative = std::sqrt(error / power);
        CHECK(relative > 0.05 && relative < 0.09, std::string(table->name) + " relative error " + std::to_string(relative));
      }
}

}  // namespace specdec::test
