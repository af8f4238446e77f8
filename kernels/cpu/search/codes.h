// The codes of vectors for search: 4 bits a dimension in the upper plane, 4 more in the lower one.
//
// A vector x, centred and divided by the spread of each dimension, is y = (x - centre) / spread. Its codes u (0..255) say
// y_i = step * ((u_i >> 4) - 7.5 + ((u_i & 15) - 7.5) / 16), with one step for the vector; with one plane the last term is
// missing.
#pragma once

#include <cstdint>

#include "pool.h"

namespace specdec {

constexpr int64_t kSearchChunk = 8192;  // vectors of a chunk, all but the last

struct EncodeCall {
  const float* rows;     // [count][dims], finite
  const double* factors; // [count] that rows are multiplied by, or nullptr
  int64_t count, dims;
  const float *centre, *spread;  // [dims]; a spread of 0 is a dimension without codes
  int planes;                    // 1 or 2
  bool errors;                   // measure `errors`; otherwise they are 0, and the codes are the truth
  bool biases;                   // of distances: minus half the squared norm of the row, or of what the codes say
  int64_t width;                 // of the chunk: vectors, a multiple of kLineVectors
  int64_t first;                 // place of the first row in the chunk, a multiple of kLineVectors or in its line alone
  uint8_t* codes;                // [planes][dims][width / 2], zeros at the places of the rows
  float *steps, *bias, *norms, *error;  // out, [count]: step; bias; |upper code - 7.5|; |y - what the codes say|
};

// Rounds vectors to codes. Deterministic; a vector's codes depend on it alone.
void encode(Pool& pool, const EncodeCall& call);

// What the codes of a vector say of a dimension, over its step.
inline double level(const uint8_t* codes, int64_t dims, int64_t width, int planes, int64_t dim, int64_t byte, int shift) {
  const double upper = (codes[dim * (width / 2) + byte] >> shift & 15) - 7.5;
  if (planes == 1) return upper;
  return upper + ((codes[(dims + dim) * (width / 2) + byte] >> shift & 15) - 7.5) / 16;
}

}  // namespace specdec
