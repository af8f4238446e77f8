// The functions that draft views need from each instruction set, and the data that passes between them.
#pragma once

#include <cstdint>

namespace specdec {

enum class Dtype : int;

// Rows that one call of a draft kernel takes at most.
constexpr int kDraftRows = 16;
// Inputs that share a scale per output in the int4 view; also the unit in which chosen inputs are listed.
constexpr int kGroup = 32;

// Which inputs take part, for an activation row x: those of largest |x_i| * scores_i.
struct ChooseCall {
  const float* x;         // `in` floats, readable up to a multiple of kGroup
  const float* scores;    // the same, zeros past `in`
  int64_t in;
  float effort;           // share of the inputs to take, in (0, 1]
  float* scratch;         // in rounded up to kGroup
  uint32_t* masks;        // out: bit j of masks[g] is input g * kGroup + j
  int64_t target = 0;     // unless 0: exactly so many inputs, as kernels/reference/selection.py says
};

// The inputs chosen from one group, with their activations in 8 bits, in quads.
struct alignas(32) ChosenGroup {
  uint8_t index[kGroup];  // place within the group, ascending; the last quad is filled up with the last one
  int8_t value[kGroup];   // activation / step, rounded; 0 where a quad is filled up
  float step;             // largest |activation| chosen / 127
  int32_t sum;            // of the values
  int32_t count, quads;   // chosen inputs, and groups of four of them
};

// Part of a matrix in the int4 view: some outputs and all inputs. Layout of the data in draft_int4.h.
struct Int4Tile {
  const uint8_t* data;
  int64_t width;          // outputs, a multiple of kInt4Block / 2
};

struct Int4Call {
  Int4Tile tile;
  const float* x;                 // readable up to a multiple of kGroup
  const uint32_t* masks;          // of the chosen inputs
  int64_t first, last;            // groups to multiply
  int64_t first_out, last_out;    // outputs of the tile to multiply, multiples of kInt4Block or the tile's end
  float* sums;                    // out: one for each output of the tile
  const Int4Call* next;           // what this thread is likely to multiply afterwards, or nullptr: fetched ahead
  bool cold;                      // nothing has fetched the first group ahead
};

// Outputs whose weights of one input are 64 consecutive bytes (the last block of a tile may be half as wide).
constexpr int kInt4Block = 128;

// Bytes in front of a group's rows: a step for every 64 outputs, filled up to a line; then a scale code per output.
constexpr int64_t int4_steps_bytes(int64_t width) { return (width / 16 + 63) / 64 * 64; }
constexpr int64_t int4_group_bytes(int64_t width) { return int4_steps_bytes(width) + width + kGroup * (width / 2); }

// Rounds the weights of up to kGroup inputs and a panel's outputs (32) to 4 bits.
struct Int4BuildCall {
  const uint16_t* weights;  // [inputs][32], or nullptr for ...
  Dtype dtype;
  const float* values;      // ... these
  int64_t inputs;
  uint8_t* levels;          // out: [inputs][32], 8 added
  float* scales;            // out: [32], each a float16
  double* magnitudes;       // one for each input: the |w| of the result are added
};

// The bucket8 view: buckets of outputs, tiers of a bucket, weights of a tier.
constexpr int kBucket = 64, kTiers = 4, kTierSize = 16;
// A tier of a bucket is 8 bytes of mask and 16 of weights; the last tier has no mask, it holds what no other does.
constexpr int kTierBytes = 8 + kTierSize, kInputBytes = kTiers * kTierBytes - 8;

// Inputs that take equally many tiers, in quads.
struct TierPass {
  uint16_t input[kGroup];  // the last quad is filled up with the last one
  int32_t count, quads, tiers;
};

// Which tiers of which inputs take part: those of largest |x_i| * scores_ki. Four tiers of equal size.
struct ChooseTiersCall {
  const float* x;         // as in ChooseCall
  const float* scores;    // [kTiers][in rounded up to kGroup], zeros past `in`
  int64_t in;             // at most 65535
  float effort;
  float* scratch;         // as scores
  uint8_t* taken;         // [in]
  uint16_t* lists;        // [kTiers + 2][in rounded up to kGroup, and kGroup more]
  TierPass* passes;       // out; room for passes_for(in)
};
constexpr int64_t tier_passes_for(int64_t in) { return in / 16 + kTiers + 2; }

// Part of a matrix in the bucket8 view: some buckets and all inputs: [in][kTiers][buckets].
struct Bucket8Tile {
  const uint8_t* data;
  int64_t buckets;
};

// Buckets of a tile that belong to one matrix.
struct Bucket8Segment {
  int64_t first, last;
  const float* steps;     // the matrix's step for each input
};

struct Bucket8Call {
  Bucket8Tile tile;
  const float* x;
  const TierPass* passes;
  int64_t first, last;                 // passes to multiply
  const Bucket8Segment* segments;
  int segment_count;
  int64_t first_bucket, last_bucket;   // that the segments span
  float* sums;                         // out: one for each output of the tile
  const Bucket8Call* next;             // as in Int4Call
  bool cold;
};

// Rows of the logits layer in 8 bits, times rows of activations in whole numbers of at most kHeadPeak.
constexpr int kHeadPeak = 8191;
constexpr int64_t kHeadSpan = 2048;  // inputs whose products, 127 * kHeadPeak at most, add up within 32 bits
constexpr int64_t kHeadAhead = 4;    // rows that are fetched ahead
struct HeadCall {
  const int8_t* codes;   // [rows][stride], zeros past the inputs; kHeadAhead rows behind the last may be fetched, not read
  const float* scales;   // of each row
  int64_t stride;        // inputs rounded up to 64
  int rows;              // of activations
  const int16_t* x;      // [rows][stride]
  const float* steps;    // of each row of them
  float* y;              // y[r * y_stride + o]
  int64_t y_stride;
};

struct DraftKernels {
  // Deterministic; the share taken is within 0.002 (or one input) of the effort, where no target is given. Returns how
  // many inputs were chosen.
  int64_t (*choose)(const ChooseCall&);
  // The same, by tiers. Returns how many passes the chosen tiers make.
  int64_t (*choose_tiers)(const ChooseTiersCall&);
  // Activations of chosen inputs of one group in 8 bits.
  void (*quantise)(const float* x, uint32_t mask, ChosenGroup* group);
  // One call a row, at most kDraftRows, all of the same tile and outputs. Rows share what they read, never results.
  void (*int4)(const Int4Call* calls, int rows);
  void (*int4_build)(const Int4BuildCall&);
  void (*bucket8)(const Bucket8Call&);
  // The tier of each of kBucket weights, from their magnitudes (bits without the sign).
  void (*bucket8_rank)(const uint16_t* magnitudes, uint8_t* tiers);
  // y[o] = sum over `chunks` of sums[c * stride + o], ascending.
  void (*add_up)(const float* sums, int64_t chunks, int64_t stride, int64_t count, float* y);
  // Outputs [first, last).
  void (*head_rows)(const HeadCall&, int64_t first, int64_t last);
};

}  // namespace specdec
