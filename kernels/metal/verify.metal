// ROWS rows times a matrix in the exact view, each row with its own choice of tiers; weights are read once.
//
// As dense.metal, with two bits for each weight that name its tier: a product of a tier that the row does not take is
// one with 0, so the order of those that take part is fixed by the shape.
// weights, planes (outputs, PADDED / 4), activation (ROWS, 1, PADDED), prefix (JOINED, ROWS, PADDED), state,
// residual (ROWS, OUTPUTS) when EPILOGUE == 1 -> y (ROWS, OUTPUTS); of a mixture, as dense.metal
#include "job"
const int tid = thread_position_in_threadgroup.x, block = threadgroup_position_in_grid.x;
const int warp = tid / 32, lane = tid % 32, output = block * 32 + warp * 4, tile = output / 16;
const int rows = ROWS == 1 ? 1 : state[1];
const int matrix = JOINED == 1 ? 0 : JOINED == 2 ? tile % 2 : (tile >= SECOND_TILE) + (tile >= THIRD_TILE);
float sum[4][ROWS];
for (int o = 0; o < 4; ++o) {
  for (int m = 0; m < ROWS; ++m) sum[o][m] = 0;
}
device const weight_t* w = weights + (ulong)expert * STRIDE + (ulong)output * PADDED;
device const uchar* plane = planes + (ulong)expert * (STRIDE / 4) + (ulong)output * (PADDED / 4);
activation += (ulong)(BY_JOB ? job : job / USED) * PADDED;
y += (ulong)job * OUT_STRIDE;
for (int at = lane * 4; at < PADDED; at += 128) {
  float held[4][4];
  uint tiers[4];
  for (int o = 0; o < 4; ++o) {
    load4(w + (ulong)o * PADDED + at, held[o]);
    tiers[o] = plane[(ulong)o * (PADDED / 4) + at / 4];
  }
  for (int m = 0; m < ROWS; ++m) {
    if (m < rows) {
      float x[4], taken[4];
      load4(activation + (ulong)m * PADDED + at, x);
      load4(prefix + ((ulong)(matrix * ROWS + m) * JOBS + job) * PADDED + at, taken);
      for (int o = 0; o < 4; ++o) {
        for (int j = 0; j < 4; ++j) {
          const float tier = float((tiers[o] >> (2 * j)) & 3u);
          sum[o][m] = fma(held[o][j], tier < taken[j] ? x[j] : 0.0f, sum[o][m]);
        }
      }
    }
  }
}
#include "tiles_out"
