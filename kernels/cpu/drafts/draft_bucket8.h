// The bucket8 view in memory: 8-bit weights in buckets and tiers, matrices that share an activation row side by side.
// The view's definition is specdec/weights/bucket8.py.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "draft_joined.h"
#include "draft_view.h"
#include "packed.h"

namespace specdec {

// A matrix as specdec.weights.bucket8.Bucket8Matrix has it; borrowed.
struct Bucket8Source {
  const int8_t* values[kTiers];      // [in][buckets][kTierSize]
  const uint8_t* masks[kTiers - 1];  // [in][buckets][8]
  const float* steps;                // [in]
  const float* scores;               // [in][kTiers]
};

class Bucket8View : public DraftView {
 public:
  // Throws std::invalid_argument when a matrix has more than 65535 inputs.
  Bucket8View(const KernelTable& kernels, JoinedMatrices joined);

  const JoinedMatrices& joined() const { return joined_; }

  // Packs the matrices of one list, in its order. Each list is loaded once. Throws std::invalid_argument, with nothing
  // loaded, for a mask that does not hold kTierSize weights.
  void load(Pool& pool, size_t j, const std::vector<Bucket8Source>& sources);
  // The same from the exact weights, ranked and rounded here.
  void build(Pool& pool, size_t j, const std::vector<const PackedMatrix*>& exact);

  uint64_t multiply(Pool& pool, int count, const int* matrices, const DraftRows& in,
                    const DraftAfter* after = nullptr) override;
  uint64_t bytes() const override;
  bool complete() const override;

 private:
  struct Tile {
    int64_t first, buckets;  // of the joined matrices
    uint8_t* data;           // [in][kTiers][buckets]
  };
  struct Packed {  // one list
    int64_t in = 0, buckets = 0;
    int64_t chunks = 1;  // the passes are split into so many parts per tile
    Buffer<uint8_t> data;
    std::vector<Tile> tiles;
    std::vector<int64_t> starts;                   // first bucket of each matrix
    std::vector<Buffer<float>> steps, own_scores;  // of each matrix: [in] and [kTiers][in rounded up to kGroup]
    Buffer<float> scores;                          // over all the outputs
    bool loaded = false;
    int64_t stride() const { return (in + kGroup - 1) / kGroup * kGroup; }
  };

  void layout(Packed& packed, size_t j) const;
  void pack_bucket(const Packed& packed, int64_t input, int64_t bucket, const int8_t* levels, const uint8_t* tiers) const;
  void pack_source(const Packed& packed, size_t m, const Bucket8Source& source, int64_t buckets, int64_t input) const;
  void build_matrix(Pool& pool, Packed& packed, size_t m, const PackedMatrix& exact) const;
  void join_scores(Packed& packed, size_t j) const;
  uint64_t multiply_outputs(Pool& pool, const Packed& packed, const float* scores, const int* matrices, size_t first,
                            size_t last, int count, const DraftRows& in);
  void choose(Pool& pool, const Packed& packed, const float* scores, const DraftRows& in, size_t effort, int count);
  void split(const Packed& packed, const TierPass* passes, int64_t count, int64_t* bounds) const;
  void plan(const Packed& packed, const DraftRows& in, size_t first, size_t last, float* direct, int threads);
  uint64_t bytes_of(const Packed& packed, int64_t buckets);

  const KernelTable& kernels_;
  JoinedMatrices joined_;
  std::vector<Packed> packed_;  // by list
  // Scratch of one multiplication, by row.
  std::vector<int> rows_;
  Buffer<float> scores_, sums_;  // sums: [row][chunk][bucket][kBucket]
  Buffer<uint8_t> taken_;
  Buffer<uint16_t> lists_;
  Buffer<TierPass> passes_;
  std::vector<int64_t> counts_, bounds_;  // passes of each row, and where its chunks end
  std::vector<Bucket8Segment> segments_;
  std::vector<Bucket8Call> calls_;  // [part][row]
};

}  // namespace specdec
