// bucketMul of one row: of every input the runs of four weights that `counts` takes, largest weights first.
//
// A threadgroup makes 256 outputs, 16 buckets of 16, from the inputs of its share (y of PARTS). Half a simdgroup works
// on one input, a lane on one bucket; every lane adds to sums of its own in threadgroup memory, so nothing collides. A
// record is 16 lanes x 4 values, then 16 lanes x 4 positions of 4 bits.
// records (tiles, 4 runs, PADDED, 160 bytes), activation (PADDED), counts (PADDED) -> y (PARTS, OUTPUTS)
// Of a mixture, activation and counts have a line for each job; else as int4.metal.
// Source: bucketMul, https://kolinko.github.io/effort/ ; runs, records and the order are this project's.
#include "job"
const int tid = thread_position_in_threadgroup.x, tile = threadgroup_position_in_grid.x;
const int share = threadgroup_position_in_grid.y % PARTS;
const int warp = tid / 32, lane = tid % 32, side = lane / 16, bucket = lane % 16;
constexpr int STEPS = PADDED / 32;
threadgroup float sums[WARPS][16][32];
for (int p = 0; p < 16; ++p) sums[warp][p][lane] = 0;
const int worker = share * WARPS + warp;
const int first = STEPS * worker / (PARTS * WARPS), last = STEPS * (worker + 1) / (PARTS * WARPS);
device const uchar* from = records + (ulong)expert * STRIDE + (ulong)tile * 4 * PADDED * 160;
activation += (ulong)job * PADDED;
counts += (ulong)job * PADDED;

for (int input = first * 32 + side; input < last * 32; input += 2) {
  const int count = counts[input];
  const float x = activation[input];
  for (int run = 0; run < count; ++run) {
    device const uchar* record = from + ((ulong)run * PADDED + input) * 160;
    device const weight_t* values = (device const weight_t*)(record + bucket * 8);
    const uint places = ((device const ushort*)(record + 128))[bucket];
    // The four positions of a run differ: read all, then write all.
    float held[4];
    for (int r = 0; r < 4; ++r) held[r] = sums[warp][(places >> (4 * r)) & 15][lane];
    for (int r = 0; r < 4; ++r) held[r] = fma(to_float(values[r]), x, held[r]);
    for (int r = 0; r < 4; ++r) sums[warp][(places >> (4 * r)) & 15][lane] = held[r];
  }
}
BARRIER();
for (int o = tid; o < 256; o += WARPS * 32) {
  float value = 0;
  for (int other = 0; other < WARPS; ++other) {
    value += sums[other][o % 16][o / 16];
    value += sums[other][o % 16][o / 16 + 16];
  }
  if (tile * 256 + o < OUTPUTS) y[((ulong)share * JOBS + job) * OUTPUTS + tile * 256 + o] = value;
}
