// bucketMul of one row: of every input the runs of four weights that `counts` takes, largest weights first.
//
// A block makes 256 outputs, 16 buckets of 16, from the inputs of its share (blockIdx.y of PARTS). Half a warp works on
// one input, a lane on one bucket; every lane adds to sums of its own in shared memory, so nothing collides. A record
// is 16 lanes x 4 values, then 16 lanes x 4 positions of 4 bits.
// records (tiles, 4 runs, PADDED, 160 bytes), activation (PADDED), counts (PADDED) -> y (PARTS, OUTPUTS)
// Of a mixture, activation and counts have a line for each job; else as int4.cu.
// Source: bucketMul, https://kolinko.github.io/effort/ ; runs, records and the order are this project's.
#include "job"
const int tid = threadIdx.x, tile = blockIdx.x, share = blockIdx.y % PARTS;
const int warp = tid / 32, lane = tid % 32, side = lane / 16, bucket = lane % 16;
constexpr int STEPS = PADDED / 32;
SHARED float sums[WARPS][16][32];
SHARED unsigned short list[WARPS][128];
#pragma unroll
for (int p = 0; p < 16; ++p) sums[warp][p][lane] = 0;
const int worker = share * WARPS + warp;
const int first = STEPS * worker / (PARTS * WARPS), last = STEPS * (worker + 1) / (PARTS * WARPS);
activation += (size_t)job * PADDED;
counts += (size_t)job * PADDED;
const unsigned char* from = records + (size_t)expert * STRIDE + (size_t)tile * 4 * PADDED * 160;

for (int step = first; step < last; ++step) {
  const float mine = to_float(activation[step * 32 + lane]);
  const int count = counts[step * 32 + lane];
  int length = 0;
  WARP_BARRIER();
#pragma unroll
  for (int run = 0; run < 4; ++run) {
    const unsigned taken = __ballot_sync(EVERY_LANE, count > run);
    if (count > run) list[warp][length + __popc(taken & ((1u << lane) - 1))] = (unsigned short)(run * 32 + lane);
    length += __popc(taken);
  }
  WARP_BARRIER();
  for (int at = 0; at < length; at += 2 * AHEAD) {
    uint2 values[AHEAD];
    unsigned places[AHEAD];
    float x[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const int entry = at + 2 * a + side;
      const bool real = entry < length;
      const int run = real ? list[warp][entry] / 32 : 0, input = real ? list[warp][entry] % 32 : 0;
      const unsigned char* record = from + ((size_t)run * PADDED + step * 32 + input) * 160;
      x[a] = __shfl_sync(EVERY_LANE, mine, input);
      x[a] = real ? x[a] : 0.0f;
      values[a] = real ? stream8(record + bucket * 8) : uint2{0, 0};
      places[a] = real ? *reinterpret_cast<const unsigned short*>(record + 128 + bucket * 2) : 0x3210u;
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      // The four positions of a run differ: read all, then write all.
      float held[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) held[r] = sums[warp][(places[a] >> (4 * r)) & 15][lane];
      const weight_t* pair = reinterpret_cast<const weight_t*>(&values[a]);
#pragma unroll
      for (int r = 0; r < 4; ++r) held[r] = fmaf(to_float(pair[r]), x[a], held[r]);
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[warp][(places[a] >> (4 * r)) & 15][lane] = held[r];
    }
  }
}
BARRIER();
for (int o = tid; o < 256; o += WARPS * 32) {
  float value = 0;
#pragma unroll
  for (int other = 0; other < WARPS; ++other) {
    value += sums[other][o % 16][o / 16];
    value += sums[other][o % 16][o / 16 + 16];
  }
  if (tile * 256 + o < OUTPUTS) y[((size_t)share * JOBS + job) * OUTPUTS + tile * 256 + o] = value;
}
