// The int4 view in memory: 4-bit levels with scales, matrices that share an activation row side by side.
//
// The view's definition is specdec/views/int4.py. One thing differs here: a group's scales are kept in 8 bits, as whole
// multiples of a step that 64 outputs share (their largest |scale| / 127), which moves a weight by 0.4 % of that scale at
// most and saves a quarter of a bit per weight.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "draft_view.h"
#include "packed.h"

namespace specdec {

struct MatrixShape {
  int64_t out = 0, in = 0;
};

// A matrix as specdec.views.int4.Int4Matrix has it; borrowed.
struct Int4Source {
  const uint8_t* nibbles;   // [in][ceil(out / 2)]
  const uint16_t* scales;   // float16 [ceil(in / kGroup)][out]
  const float* scores;      // [in]
};

class Int4View : public DraftView {
 public:
  // joined: lists of matrix numbers that are always multiplied by the same row (q|k|v, gate|up, o, ...); together they
  // name every matrix once. Throws std::invalid_argument where that does not hold.
  Int4View(const KernelTable& kernels, std::vector<MatrixShape> shapes, const std::vector<std::vector<int>>& joined);

  const std::vector<MatrixShape>& shapes() const { return shapes_; }
  size_t joined_count() const { return joined_.size(); }
  const std::vector<int>& joined(size_t j) const { return joined_.at(j).matrices; }

  // Packs the matrices of one list, in its order. Each list is loaded once.
  void load(Pool& pool, size_t j, const std::vector<Int4Source>& sources);
  // The same from the exact weights, rounded here.
  void build(Pool& pool, size_t j, const std::vector<const PackedMatrix*>& exact);

  uint64_t multiply(Pool& pool, int count, const int* matrices, const float* x, const float* efforts,
                    float* const* y) override;
  uint64_t bytes() const override;
  bool complete() const override;

 private:
  struct Tile {
    int64_t first, width;  // outputs of the joined matrix
    uint8_t* data;         // [groups] of int4_group_bytes(width): steps, codes, rows of nibbles
  };
  struct Joined {
    std::vector<int> matrices;
    int64_t in = 0, groups = 0, width = 0;
    int64_t chunks = 1;  // the chosen groups are split into so many parts per tile
    Buffer<uint8_t> data;
    std::vector<Tile> tiles;
    Buffer<float> scores;  // mean |w| over all the outputs
    bool loaded = false;
  };
  struct Place {  // of a matrix
    int joined = -1;
    int64_t first = 0;  // its first output there
    Buffer<float> scores;
  };

  struct Rounded;
  static void layout(Joined& joined);
  Rounded round(Pool& pool, const PackedMatrix& exact) const;
  void pack_scales(const Joined& joined, const std::vector<Int4Source>& sources, int64_t group) const;
  void pack_rows(const Joined& joined, const std::vector<Int4Source>& sources, int64_t group) const;
  uint64_t choose(const Joined& joined, const float* scores, const float* x, float effort);
  void split(const Joined& joined);
  void plan(const Joined& joined, int64_t first, int64_t last, float* direct, int threads);
  void run(Pool& pool, const Joined& joined, int64_t first, int64_t last, int count, const int* matrices, float* const* y);

  const KernelTable& kernels_;
  std::vector<MatrixShape> shapes_;
  std::vector<Joined> joined_;
  std::vector<Place> places_;
  // Scratch of one multiplication.
  Buffer<float> choose_scratch_, sums_;
  Buffer<ChosenGroup> chosen_;
  Buffer<int32_t> carry_;
  std::vector<int64_t> bounds_;
  std::vector<Int4Call> calls_;
};

}  // namespace specdec
