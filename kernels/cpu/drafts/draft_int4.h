// The int4 view in memory: 4-bit levels with scales, matrices that share an activation row side by side.
//
// The view's definition is specdec/weights/int4.py. One thing differs here: a group's scales are kept in 8 bits, as whole
// multiples of a step that 64 outputs share (their largest |scale| / 127), which moves a weight by 0.4 % of that scale at
// most and saves a quarter of a bit per weight.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "draft_joined.h"
#include "draft_view.h"
#include "packed.h"

namespace specdec {

// A matrix as specdec.weights.int4.Int4Matrix has it; borrowed.
struct Int4Source {
  const uint8_t* nibbles;   // [in][ceil(out / 2)]
  const uint16_t* scales;   // float16 [ceil(in / kGroup)][out]
  const float* scores;      // [in]
};

class Int4View : public DraftView {
 public:
  Int4View(const KernelTable& kernels, JoinedMatrices joined);

  const JoinedMatrices& joined() const { return joined_; }

  // Packs the matrices of one list, in its order. Each list is loaded once.
  void load(Pool& pool, size_t j, const std::vector<Int4Source>& sources);
  // The same from the exact weights, rounded here.
  void build(Pool& pool, size_t j, const std::vector<const PackedMatrix*>& exact);

  uint64_t multiply(Pool& pool, int count, const int* matrices, const DraftRows& in,
                    const DraftAfter* after = nullptr) override;
  uint64_t bytes() const override;
  bool complete() const override;

 private:
  struct Tile {
    int64_t first, width;  // outputs of the joined matrices
    uint8_t* data;         // [groups] of int4_group_bytes(width): steps, codes, rows of nibbles
  };
  struct Packed {  // one list
    int64_t in = 0, groups = 0, width = 0;
    int64_t chunks = 1;   // the chosen groups are split into so many parts, by the list's shape alone
    int64_t halves = 1;   // 2: two matrices of equal shapes, whose tiles are cut alike: tile t and tile t + half of them
    Buffer<uint8_t> data;
    std::vector<Tile> tiles;                // as many as the threads can share well
    std::vector<int64_t> starts;            // first output of each matrix
    std::vector<uint32_t> all_masks;        // of a row that takes every input
    std::vector<int64_t> all_bounds;
    std::vector<Pool::Range> shares;        // weights that each thread of the pool multiplies by such a row
    std::vector<Buffer<float>> own_scores;  // of each matrix
    Buffer<float> scores;                   // mean |w| over all the outputs
  };
  // One multiplication: matrices [first, last) of a list times rows_.
  struct Job {
    const Packed& packed;
    const DraftRows& in;
    const int* matrices;
    int first, last;
    const DraftAfter* after;
    int64_t begin, end;        // outputs
    int first_tile, tiles;     // that hold them
    int halves;                // tiles that are finished together
    float* direct;             // where sums go at once, or null
    int threads;

    int units() const { return tiles / halves; }
    int parts(int64_t chunks) const { return tiles * static_cast<int>(chunks); }
  };
  struct Rounded;
  // Inputs that a row takes, by group, and where its chunks begin.
  struct Taken {
    const uint32_t* masks;
    const int64_t* bounds;
  };

  void layout(Packed& packed, size_t j, int threads) const;
  void share_out(Packed& packed, int threads) const;
  void pack_scales(const Packed& packed, size_t j, const std::vector<Int4Source>& sources, int64_t group) const;
  void pack_rows(const Packed& packed, size_t j, const std::vector<Int4Source>& sources, int64_t group) const;
  Rounded round(Pool& pool, const PackedMatrix& exact) const;
  uint64_t multiply_outputs(Pool& pool, size_t list, const float* scores, const int* matrices, int first, int last, int count,
                            const DraftRows& in, const DraftAfter* after);
  uint64_t choose(Pool& pool, const Packed& packed, const float* scores, const DraftRows& in, int effort, int count);
  void choose_row(const Packed& packed, const float* scores, const float* x, float effort, size_t r);
  void split(const Packed& packed, const uint32_t* masks, int64_t* bounds) const;
  Job job(const Packed& packed, const int* matrices, int first, int last, int count, const DraftRows& in,
          const DraftAfter* after, int threads) const;
  void run_part(const Job& job, int part);
  void part_calls(const Job& job, int part, Int4Call* calls);
  void finish_unit(const Job& job, int unit) const;
  void finish_rows(Pool& pool, int64_t out, const DraftAfter& after) const;

  const KernelTable& kernels_;
  JoinedMatrices joined_;
  std::vector<Packed> packed_;  // by list
  // Scratch of one multiplication, by row.
  std::vector<int> rows_;
  Buffer<float> choose_scratch_, sums_;  // sums: [row][chunk][width]
  Buffer<uint32_t> masks_;
  std::vector<int64_t> bounds_;
  std::vector<Taken> taken_;
  std::unique_ptr<std::atomic<int>[]> left_;  // parts of each unit that are not done
  size_t left_room_ = 0;
};

}  // namespace specdec
