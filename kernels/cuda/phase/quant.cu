// ROWS rows (1, 8 or 16; those past state[1] are not read) times up to three quantised matrices side by side.
//
// A block makes 128 outputs of one matrix from the inputs of its share (y of PARTS), its warps a group of 32 inputs at a
// time, each for a band of at most 8 rows: of 16 rows the second band finds what the first has read in the cache. The
// warps' sums meet in shared memory, by rising warp.
// data0, data1, data2 (mlx_quant.py), activation (CHOSEN ? matrices : 1, ROWS, PADDED), state -> y (PARTS, ROWS, COLUMNS)
// Of a mixture, ROWS is 1, the grid's y is job * PARTS + share, data are those of all experts -> y (PARTS, JOBS, COLUMNS)
#include "job"
const int tid = threadIdx.x, share = blockIdx.y % PARTS;
const int warp = tid / 32 % WARPS, band = tid / 32 / WARPS, lane = tid % 32;
constexpr int BANDS = ROWS > 8 ? 2 : 1;
const int all_rows = ROWS == 1 ? 1 : state[1], rows = all_rows - band * 8;
const int first = GROUPS * share / PARTS + warp, last = GROUPS * (share + 1) / PARTS;
const float* x = activation + ((size_t)(BY_JOB ? job : job / USED) + band * 8) * PADDED;
float sum[BAND][8] = {};
int tile = blockIdx.x, column = 0, outputs = OUTPUTS0;
if (tile < TILES0) {
  quant_tile<FORM0>(data0 + (size_t)expert * STRIDE0, TILES0, tile, x, rows, first, last, lane, sum);
}
#if MATRICES > 1
else if (tile < TILES0 + TILES1) {
  tile -= TILES0, column = OUTPUTS0, outputs = OUTPUTS1;
  quant_tile<FORM1>(data1 + (size_t)expert * STRIDE1, TILES1, tile, x + (CHOSEN ? ROWS * JOBS * PADDED : 0), rows, first, last, lane, sum);
}
#endif
#if MATRICES > 2
else {
  tile -= TILES0 + TILES1, column = OUTPUTS0 + OUTPUTS1, outputs = OUTPUTS2;
  quant_tile<FORM2>(data2 + (size_t)expert * STRIDE2, TILES2, tile, x + (CHOSEN ? 2 * ROWS * JOBS * PADDED : 0), rows, first, last, lane, sum);
}
#endif
SHARED float exchange[BANDS][2 * WARPS][128];
const int place = lane % 16 * 8, half_warp = warp * 2 + lane / 16;
#pragma unroll
for (int m = 0; m < BAND; ++m) {
  if (m >= all_rows) break;
#pragma unroll
  for (int n = 0; n < 8; ++n) exchange[band][half_warp][place + n] = sum[m][n];
  BARRIER();
  if (tid < BANDS * 128) {
    const int o = tid % 128, row = tid / 128 * 8 + m;
    float value = 0;
#pragma unroll
    for (int other = 0; other < 2 * WARPS; ++other) value += exchange[tid / 128][other][o % 8 * 16 + o / 16 * 2 + o % 16 / 8];
    if (row < all_rows && tile * 128 + o < outputs) {
      y[(((size_t)share * JOBS + job) * ROWS + row) * COLUMNS + column + tile * 128 + o] = value;
    }
  }
  BARRIER();
}
