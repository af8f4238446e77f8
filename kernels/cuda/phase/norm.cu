// RMS norm of one row per block, after adding the PARTS partial products that a draft's multiplication left behind; and,
// for a draft that selects, the choice of inputs. Zhang and Sennrich, 1910.07467, equation 4.
// x (ROWS, WIDTH), parts (PARTS, ROWS, WIDTH), weight (WIDTH), scores (WIDTH, TIERS), take (., 1), state
// -> sum (ROWS, WIDTH) when PARTS, activation (ROWS, ., PADDED), counts (PADDED) when COUNTS
const int tid = threadIdx.x, row = blockIdx.x;
SHARED float sums[32];
SHARED int scratch[96];
float value[OWN];
float square = 0;
const bool idle = row >= state[1];
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  float v = 0;
  if (i < WIDTH && !idle) {
    v = x[(size_t)row * WIDTH + i];
#if PARTS
    float added = parts[(size_t)row * WIDTH + i];
#pragma unroll
    for (int p = 1; p < PARTS; ++p) added += parts[((size_t)p * ROWS + row) * WIDTH + i];
    v += added;
    sum[(size_t)row * WIDTH + i] = v;
#endif
  }
  value[j] = v;
  square += v * v;
}
const float total = block_sum<WARPS>(square, sums, tid);
const float scale = 1.0f / square_root(total / WIDTH + EPSILON);
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = i < WIDTH ? value[j] * scale * weight[i] : 0.0f;
}
#include "finish"
