// ROWS rows (1, 8 or 16; those past state[1] are not read) times a whole matrix on the tensor cores: effort 1.0.
//
// A block makes PER_BLOCK tiles of 16 outputs; its warps share the inputs at places fixed by the shape, and their sums
// meet in shared memory by rising warp. A column of a tensor-core product does not see its neighbours, so a row's bits
// do not depend on other rows. Weights are in the order of the registers: per tile and step of 32 inputs, two products
// of 32 lanes x 8 weights. Lane (g, q) holds outputs g and g + 8 and inputs 8 q .. 8 q + 7 of the step.
// weights, activation (ROWS, SPLIT, PADDED), state, residual (ROWS, OUTPUTS) when EPILOGUE == 1
// -> y (ROWS, OUTPUTS); EPILOGUE == 2: the gated MLP's of alternating tiles, an activation (ROWS, SPLIT, OUT_PADDED)
// Of a mixture, ROWS is 1, the grid's y names the job, weights are those of all experts, and y has one row for each job.
#include "tiles_begin"
float sum[PER_BLOCK][BANDS][4] = {};

for (int step = first; step < last; step += UNROLL) {
  uint4 held[UNROLL][PER_BLOCK][2];
  uint4 x[UNROLL][BANDS][SPLIT];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    const bool within = step + u < last;
#pragma unroll
    for (int t = 0; t < PER_BLOCK; ++t) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        held[u][t][j] = within ? stream16(w + ((size_t)t * STEPS + step + u) * 64 + j * 32) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
#pragma unroll
      for (int part = 0; part < SPLIT; ++part) {
        const int row = band * 8 + g;
        x[u][band][part] = within && row < rows
                               ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + part) * PADDED +
                                                                 (step + u) * 32 + q * 8)
                               : uint4{0, 0, 0, 0};
      }
    }
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    if (step + u >= last) break;
#pragma unroll
    for (int t = 0; t < PER_BLOCK; ++t) {
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const uint4 v = x[u][band][part], w0 = held[u][t][0], w1 = held[u][t][1];
          const unsigned a0[4] = {w0.x, w0.y, w0.z, w0.w}, a1[4] = {w1.x, w1.y, w1.z, w1.w};
          multiply_tile(sum[t][band], a0, v.x, v.y, weight_t());
          multiply_tile(sum[t][band], a1, v.z, v.w, weight_t());
        }
      }
    }
  }
}
#include "tiles_out"
