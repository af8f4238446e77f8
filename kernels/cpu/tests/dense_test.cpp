// The exact view's products against float64, and every row of a batch against the same row alone.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"

namespace specdec::test {
namespace {

struct Problem {
  int64_t out, in;
  int rows;
  Dtype dtype;
  std::vector<uint16_t> bits, panels;  // (out, in), and packed
  std::vector<float> x, tiles;         // (rows, in), and in tiles
  RowTiles tiling;

  Problem(int64_t out_, int64_t in_, int rows_, Dtype dtype_, int max_tile, uint32_t seed)
      : out(out_), in(in_), rows(rows_), dtype(dtype_), tiling(rows_, max_tile) {
    bits = random_bits(static_cast<size_t>(out * in), dtype, seed);
    x = random_floats(static_cast<size_t>(rows * in), seed + 1);
    panels.assign(static_cast<size_t>((out + kPanel - 1) / kPanel * in * kPanel) + 64, 0);
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i)
        panels[static_cast<size_t>((o / kPanel * in + i) * kPanel + o % kPanel)] =
            bits[static_cast<size_t>(o * in + i)];
    tiles = tiled(x);
  }

  template <class T>
  std::vector<T> tiled(const std::vector<T>& rowwise) const {
    std::vector<T> result(rowwise.size());
    for (int t = 0; t < tiling.count; ++t)
      for (int r = 0; r < tiling.size(t); ++r)
        for (int64_t i = 0; i < in; ++i)
          result[static_cast<size_t>(tiling.start(t) * in + i * tiling.size(t) + r)] =
              rowwise[static_cast<size_t>((tiling.start(t) + r) * in + i)];
    return result;
  }

  DenseCall call(std::vector<float>& y, std::vector<float>& scratch) const {
    y.assign(static_cast<size_t>(rows * out), -1);
    scratch.assign(static_cast<size_t>(scratch_floats(rows)), 0);
    return {panels.data(), dtype, in, out, tiles.data(), tiling, y.data(), out, scratch.data()};
  }
  int64_t panel_count() const { return (out + kPanel - 1) / kPanel; }
};

// A sum of n products, each rounded once when added: at most n half units of the sum of magnitudes, and the scalar set
// rounds the product as well.
double bound(int64_t n, double magnitude) { return static_cast<double>(n + 1) * 0x1p-23 * magnitude; }

std::string about(const KernelTable& table, const Problem& p, int64_t row, int64_t output) {
  return std::string(table.name) + " " + std::to_string(p.out) + "x" + std::to_string(p.in) + " rows " +
         std::to_string(p.rows) + " at row " + std::to_string(row) + " output " + std::to_string(output);
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{1, 1}, {7, 33}, {32, 130}, {33, 7}, {97, 129}, {160, 300}};

}  // namespace

TEST(dense_matches_float64_and_rows_match_one_row) {
  for (const auto* table : tables())
    for (const auto dtype : {Dtype::float16, Dtype::bfloat16})
      for (const auto& [out, in] : kShapes)
        for (int rows = 1; rows <= 30; rows += rows < 17 ? 1 : 13) {
          const Problem p(out, in, rows, dtype, table->dense.max_tile, static_cast<uint32_t>(out + in));
          std::vector<float> y, scratch, alone, alone_scratch;
          table->dense.multiply(p.call(y, scratch), 0, p.panel_count());
          for (int r = 0; r < rows; ++r) {
            DenseCall one = p.call(alone, alone_scratch);
            one.x = p.x.data() + r * in;
            one.tiles = RowTiles(1, 1);
            table->dense.multiply(one, 0, p.panel_count());
            for (int64_t o = 0; o < out; ++o) {
              double sum = 0, magnitude = 0;
              for (int64_t i = 0; i < in; ++i) {
                const double product = static_cast<double>(value_of(p.bits[static_cast<size_t>(o * in + i)], dtype)) *
                                       p.x[static_cast<size_t>(r * in + i)];
                sum += product;
                magnitude += std::fabs(product);
              }
              const float found = y[static_cast<size_t>(r * out + o)];
              CHECK(std::fabs(found - sum) <= bound(in, magnitude), about(*table, p, r, o));
              CHECK(std::memcmp(&found, &alone[static_cast<size_t>(o)], sizeof found) == 0,
                    about(*table, p, r, o) + " alone");
            }
          }
        }
}

TEST(masked_takes_the_chosen_products_only) {
  for (const auto* table : tables())
    for (const int tiers : {1, 2, 4, 16})
      for (const auto& [out, in] : kShapes)
        for (const int rows : {1, 2, 5, 13}) {
          const Dtype dtype = tiers % 4 == 0 ? Dtype::float16 : Dtype::bfloat16;
          const Problem p(out, in, rows, dtype, table->dense.max_tile, static_cast<uint32_t>(out * in));
          std::mt19937 engine(static_cast<uint32_t>(tiers + rows));
          // The tier of every weight, the masks that follow from it, and random prefixes.
          std::vector<uint8_t> tier(static_cast<size_t>(p.panel_count() * in * kPanel)),
              chosen(static_cast<size_t>(rows * in));
          for (auto& k : tier) k = static_cast<uint8_t>(engine() % static_cast<unsigned>(tiers));
          for (auto& n : chosen) n = static_cast<uint8_t>(engine() % static_cast<unsigned>(tiers + 1));
          std::vector<uint32_t> masks(static_cast<size_t>(p.panel_count() * mask_words(in, tiers)));
          for (int64_t panel = 0; panel < p.panel_count(); ++panel) {
            uint32_t* own = masks.data() + panel * mask_words(in, tiers);
            own[1] = ~0U;
            for (int64_t i = 0; i < in; ++i)
              for (int k = 0; k < tiers - 1; ++k)
                for (int j = 0; j < kPanel; ++j)
                  if (tier[static_cast<size_t>((panel * in + i) * kPanel + j)] <= k)
                    own[mask_offset(i, k + 1, tiers)] |= 1U << j;
          }
          std::vector<int32_t> offsets(chosen.size());
          for (size_t j = 0; j < chosen.size(); ++j)
            offsets[j] = mask_offset(static_cast<int64_t>(j) % in, chosen[j], tiers);
          const auto tiles = p.tiled(offsets);
          std::vector<int32_t> active;
          for (int64_t i = 0; i < in; ++i) {
            bool any = false;
            for (int r = 0; r < rows; ++r) any |= chosen[static_cast<size_t>(r * in + i)] > 0;
            if (any) active.push_back(static_cast<int32_t>(i));
          }
          std::vector<float> y, scratch, alone, alone_scratch;
          const MaskedCall call{p.call(y, scratch), tiers,         masks.data(),
                                tiles.data(),       active.data(), static_cast<int64_t>(active.size())};
          table->dense.multiply_masked(call, 0, p.panel_count());
          for (int r = 0; r < rows; ++r) {
            std::vector<int32_t> own;
            for (int64_t i = 0; i < in; ++i)
              if (chosen[static_cast<size_t>(r * in + i)] > 0) own.push_back(static_cast<int32_t>(i));
            MaskedCall one{p.call(alone, alone_scratch), tiers,      masks.data(),
                           offsets.data() + r * in,      own.data(), static_cast<int64_t>(own.size())};
            one.dense.x = p.x.data() + r * in;
            one.dense.tiles = RowTiles(1, 1);
            table->dense.multiply_masked(one, 0, p.panel_count());
            for (int64_t o = 0; o < out; ++o) {
              double sum = 0, magnitude = 0;
              for (int64_t i = 0; i < in; ++i) {
                if (tier[static_cast<size_t>((o / kPanel * in + i) * kPanel + o % kPanel)] >=
                    chosen[static_cast<size_t>(r * in + i)])
                  continue;
                const double product = static_cast<double>(value_of(p.bits[static_cast<size_t>(o * in + i)], dtype)) *
                                       p.x[static_cast<size_t>(r * in + i)];
                sum += product;
                magnitude += std::fabs(product);
              }
              const float found = y[static_cast<size_t>(r * out + o)];
              CHECK(std::fabs(found - sum) <= bound(in, magnitude), about(*table, p, r, o));
              CHECK(std::memcmp(&found, &alone[static_cast<size_t>(o)], sizeof found) == 0,
                    about(*table, p, r, o) + " alone");
            }
          }
        }
}

}  // namespace specdec::test
