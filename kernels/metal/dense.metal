// ROWS rows (1, 8 or 16; those past state[1] are not read) times a whole matrix: effort 1.0.
//
// A simdgroup makes four outputs, a threadgroup 32. A lane takes four inputs of every 128, adds them up by rising input
// for each row by itself, and the lanes' sums meet in an order that the lanes fix: a row's bits do not depend on
// other rows. Weights are rows, (outputs, PADDED).
// weights, activation (ROWS, 1, PADDED), state, residual (ROWS, OUTPUTS) when EPILOGUE == 1
// -> y (ROWS, OUTPUTS); EPILOGUE == 2: the gated MLP's of 16 gates and 16 ups in turn, (ROWS, 1, OUT_PADDED)
// Of a mixture, ROWS is 1, the grid's y names the job, weights are those of all experts, and y has one row for each job.
#include "job"
const int tid = thread_position_in_threadgroup.x, block = threadgroup_position_in_grid.x;
const int warp = tid / 32, lane = tid % 32, output = block * 32 + warp * 4;
const int rows = ROWS == 1 ? 1 : state[1];
float sum[4][ROWS];
for (int o = 0; o < 4; ++o) {
  for (int m = 0; m < ROWS; ++m) sum[o][m] = 0;
}
device const weight_t* w = weights + (ulong)expert * STRIDE + (ulong)output * PADDED;
activation += (ulong)(BY_JOB ? job : job / USED) * PADDED;
y += (ulong)job * OUT_STRIDE;
for (int at = lane * 4; at < PADDED; at += 128) {
  float held[4][4];
  for (int o = 0; o < 4; ++o) load4(w + (ulong)o * PADDED + at, held[o]);
  for (int m = 0; m < ROWS; ++m) {
    if (m < rows) {
      float x[4];
      load4(activation + (ulong)m * PADDED + at, x);
      for (int o = 0; o < 4; ++o) {
        for (int j = 0; j < 4; ++j) sum[o][m] = fma(held[o][j], x[j], sum[o][m]);
      }
    }
  }
}
#include "tiles_out"
