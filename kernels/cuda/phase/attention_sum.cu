// The splits of attention put together, one row per block; and, for a draft that selects, the choice of inputs.
// splits (ROWS, HEADS, SPLITS, SIZE + 2): weighted values, their largest score, their sum of weights.
// splits, scores (WIDTH, TIERS), take (., 1), state -> activation (ROWS, ., PADDED), counts (PADDED) when COUNTS
const int tid = threadIdx.x, row = blockIdx.x;
SHARED int scratch[96];
float value[OWN];
const bool idle = row >= state[1];
const int used = state[STATE_PLACES + row] / SPAN + 1;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = 0;
  if (i < WIDTH && !idle) {
    const float* from = splits + (size_t)(row * HEADS + i / SIZE) * SPLITS * (SIZE + 2);
    float most = from[SIZE];
    for (int s = 1; s < used; ++s) most = fmaxf(most, from[s * (SIZE + 2) + SIZE]);
    float mixed = 0, weight = 0;
    for (int s = 0; s < used; ++s) {
      const float part = exponential(from[s * (SIZE + 2) + SIZE] - most);
      mixed = fmaf(part, from[s * (SIZE + 2) + i % SIZE], mixed);
      weight = fmaf(part, from[s * (SIZE + 2) + SIZE + 1], weight);
    }
    value[j] = mixed / weight;
  }
}
#include "finish"
