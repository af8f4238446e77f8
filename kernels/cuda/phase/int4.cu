// One row times a matrix of 4-bit weights with a scale per 32 inputs and output; inputs whose activation is 0 are not
// read, which is how a draft leaves inputs out.
//
// A block makes 128 outputs from the inputs of its share (blockIdx.y of PARTS), its warps a step of 128 inputs at a
// time. Lane (g, q) reads of input 8 q + e the 16 nibbles of outputs g, g + 8, ...; column c of the tensor-core product
// takes the inputs of group c of the step alone, so that the groups' sums stay apart until they are scaled.
// q4 (tiles, PADDED, 64 bytes), scales (tiles, steps, 2, 8 g, 4 groups, 4 tiles of 16, 2), activation (PADDED)
// -> y (PARTS, OUTPUTS)
// Of a mixture the grid's y is job * PARTS + share, weights are those of all experts -> y (PARTS, JOBS, OUTPUTS)
#include "job"
const int tid = threadIdx.x, tile = blockIdx.x, share = blockIdx.y % PARTS;
const int warp = tid / 32, lane = tid % 32, g = lane / 4, q = lane % 4;
constexpr int STEPS = PADDED / 128, ahead = GROUPS_AHEAD;
const int first = STEPS * share / PARTS, last = STEPS * (share + 1) / PARTS;
activation += (size_t)(BY_JOB ? job : job / USED) * PADDED;
scales += (size_t)expert * (STRIDE / 16);
const unsigned char* from = q4 + (size_t)expert * STRIDE + (size_t)tile * PADDED * 64 + g * 8;
float total[8][2] = {};

for (int step = first + warp; step < last; step += WARPS) {
  float sum[8][4] = {};
#pragma unroll ahead
  for (int group = 0; group < 4; ++group) {
    const int base = step * 128 + group * 32 + q * 8;
    const uint4 x = *reinterpret_cast<const uint4*>(activation + base);
    const unsigned pairs[4] = {x.x, x.y, x.z, x.w};
    uint2 held[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const bool taken = (pairs[e / 2] >> (16 * (e % 2))) & 0x7fffu;
      held[e] = taken ? stream8(from + (size_t)(base + e) * 64) : uint2{0, 0};
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const unsigned x0 = g == group ? pairs[2 * j] : 0u, x1 = g == group ? pairs[2 * j + 1] : 0u;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        // Sixteen bits of each of two inputs side by side: nibble n of both is a float16 pair once the exponent of 1024
        // is put in front of it.
        const int e = 4 * j;
        const unsigned select = word % 2 ? 0x7632u : 0x5410u;
        const unsigned low = word < 2 ? __byte_perm(held[e].x, held[e + 1].x, select)
                                      : __byte_perm(held[e].y, held[e + 1].y, select);
        const unsigned high = word < 2 ? __byte_perm(held[e + 2].x, held[e + 3].x, select)
                                       : __byte_perm(held[e + 2].y, held[e + 3].y, select);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          unsigned a[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const unsigned bits = (((r < 2 ? low : high) >> (8 * half + 4 * (r % 2))) & 0x000f000fu) | 0x64006400u;
            const __half2 value = __hsub2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(1032.0f));
            a[r] = *reinterpret_cast<const unsigned*>(&value);
          }
          multiply_tile(sum[word * 2 + half], a, x0, x1, __half());
        }
      }
    }
  }
  // Columns 2 q and 2 q + 1 are groups of this step where they are below 4.
  if (q < 2) {
    const unsigned* scale = reinterpret_cast<const unsigned*>(scales) + ((size_t)tile * STEPS + step) * 256 + (g * 4 + 2 * q) * 4;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const unsigned bits[2] = {scale[t / 4 * 128 + t % 4], scale[t / 4 * 128 + t % 4 + 4]};
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const float2 halves = __half22float2(*reinterpret_cast<const __half2*>(&bits[group]));
        total[t][0] = fmaf(halves.x, sum[t][group], total[t][0]);
        total[t][1] = fmaf(halves.y, sum[t][2 + group], total[t][1]);
      }
    }
  }
}
SHARED float exchange[WARPS][128];
#pragma unroll
for (int t = 0; t < 8; ++t) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float both = total[t][half] + shuffle_xor(total[t][half], 1);
    if (q == 0) exchange[warp][t * 16 + half * 8 + g] = both;
  }
}
BARRIER();
if (tid < 128) {
  float value = 0;
#pragma unroll
  for (int other = 0; other < WARPS; ++other) value += exchange[other][tid];
  if (tile * 128 + tid < OUTPUTS) y[((size_t)share * JOBS + job) * OUTPUTS + tile * 128 + tid] = value;
}
