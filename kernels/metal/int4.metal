// One row times a matrix of 4-bit weights with a scale per 32 inputs and output; inputs whose activation is 0 are not
// read, which is how a draft leaves inputs out.
//
// A threadgroup makes 256 outputs from the inputs of its share (y of PARTS), its simdgroups a group of 32 inputs at a
// time, a lane 8 outputs; the simdgroups' sums meet in threadgroup memory, by rising simdgroup.
// q4 (tiles, PADDED, 128 bytes), scales (PADDED / 32, tiles * 256), activation (PADDED) -> y (PARTS, OUTPUTS)
// Of a mixture the grid's y is job * PARTS + share, weights are those of all experts -> y (PARTS, JOBS, OUTPUTS)
#include "job"
const int tid = thread_position_in_threadgroup.x, tile = threadgroup_position_in_grid.x;
const int share = threadgroup_position_in_grid.y % PARTS;
const int warp = tid / 32, lane = tid % 32;
constexpr int STEPS = PADDED / 32, TILES = (OUTPUTS + 255) / 256;
q4 += (ulong)expert * STRIDE;
scales += (ulong)expert * (STRIDE / 16);
activation += (ulong)(BY_JOB ? job : job / USED) * PADDED;
const int first = STEPS * share / PARTS, last = STEPS * (share + 1) / PARTS;
device const uint* from = (device const uint*)(q4) + (ulong)tile * PADDED * 32 + lane;
float total[8] = {0, 0, 0, 0, 0, 0, 0, 0};

for (int group = first + warp; group < last; group += WARPS) {
  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  for (int i = group * 32; i < group * 32 + 32; ++i) {
    const float x = activation[i];
    if (x == 0) continue;
    const uint word = from[(ulong)i * 32];
    for (int n = 0; n < 8; ++n) sum[n] = fma(x, float(int((word >> (4 * n)) & 15u) - 8), sum[n]);
  }
  device const half* scale = scales + (ulong)group * (TILES * 256) + tile * 256 + lane * 8;
  for (int n = 0; n < 8; ++n) total[n] = fma(float(scale[n]), sum[n], total[n]);
}
threadgroup float exchange[WARPS][256];
for (int n = 0; n < 8; ++n) exchange[warp][lane * 8 + n] = total[n];
BARRIER();
for (int o = tid; o < 256; o += WARPS * 32) {
  float value = 0;
  for (int other = 0; other < WARPS; ++other) value += exchange[other][o];
  if (tile * 256 + o < OUTPUTS) y[((ulong)share * JOBS + job) * OUTPUTS + tile * 256 + o] = value;
}
