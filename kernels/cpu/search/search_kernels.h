// The functions that vector search needs from each instruction set.
//
// Vectors lie in chunks. A chunk stores 4-bit codes by run: run r holds one nibble of one dimension for each of its
// vectors, so that dimensions that are not selected are not read.
#pragma once

#include <cstdint>

namespace specdec {

constexpr int kLine = 64;           // bytes
constexpr int kLineVectors = 128;   // vectors of a line of a run: one in each nibble
constexpr int kQuad = 4;            // runs that are multiplied together
constexpr int kScanQuads = 8;       // quads that share a step

// Byte of a line that holds vector u (0..63, and 64 + u in its upper nibble). In this order four runs, interleaved byte
// by byte within 128-bit lanes, come out by rising vector.
constexpr int line_byte(int u) { return 16 * (u % 16 / 4) + 4 * (u / 16) + u % 4; }

// sums[v] = sum over groups, ascending, of steps[g] * (sum over the runs of group g of weight * nibble), the inner sum
// in integers. Each product and each sum of floats is rounded on its own, so every instruction set gives equal bits.
struct ScanCall {
  const uint8_t* codes;    // run r at codes + r * width / 2
  int64_t width;           // vectors, a multiple of kLineVectors
  const int32_t* runs;     // [quads * kQuad]; filled up with any run of weight 0
  const int8_t* weights;   // [quads * kQuad]
  const float* steps;      // [ceil(quads / kScanQuads)]
  int64_t quads;           // at least 1
  float* sums;             // out: [width]
};

// Sums of a chunk become scores, in place: (sum - base) * step + bias, each operation rounded on its own.
struct FinishCall {
  float* sums;
  const float* steps;   // of each vector
  const float* biases;  // -inf: no vector
  float base;
  int64_t count;
};

// How far a score may be from the truth: step * (fixed + spread * norm) + weight * error + rounding * (|score| + |bias|).
struct BoundsCall {
  const float* scores;
  const float *steps, *biases, *norms, *errors;
  float fixed, spread, weight, rounding;
  int64_t count;
  float *lower, *upper;  // out
};

struct SearchKernels {
  void (*scan)(const ScanCall&);
  void (*finish)(const FinishCall&);
  void (*bounds)(const BoundsCall&);
  // Dot product, or squared distance, in double precision and in an order that every instruction set has.
  double (*exact_float)(const float* x, const double* q, int64_t n, bool distance);
  double (*exact_half)(const uint16_t* x, const double* q, int64_t n, bool distance);
  // Collects numbers of scores that are at least `floor`, ascending, from `first` on, until `count` is reached or there
  // may be no room for more. Returns how many; *next is where to go on. `room` is at least 16.
  int64_t (*above)(const float* scores, int64_t first, int64_t count, float floor, int32_t* found, int64_t room,
                   int64_t* next);
};

}  // namespace specdec
