// The splits of attention put together, one row per threadgroup, with a sink per head and a gate where there are any; and,
// for a draft that selects, the choice of inputs.
// splits (ROWS, HEADS, SPLITS, SIZE + 2): weighted values, their largest score, their sum of weights.
// splits, sinks (HEADS) when SINKS, gates (GATES, ROWS, WIDTH) when GATES, scores (WIDTH, TIERS), take (., 1), state
// -> activation (ROWS, ., PADDED), counts (PADDED) when COUNTS
const int tid = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
threadgroup int scratch[96];
float value[OWN];
const bool idle = row >= state[1];
const int place = state[STATE_PLACES + row], used = place / SPAN + 1;
const int before = place - WINDOW + 1 > 0 ? (place - WINDOW + 1) / SPAN : 0;  // splits that the window does not reach
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = 0;
  if (i < WIDTH && !idle) {
    device const float* from = splits + (ulong)(row * HEADS + i / SIZE) * SPLITS * (SIZE + 2);
    float most = from[before * (SIZE + 2) + SIZE];
    for (int s = before + 1; s < used; ++s) most = max(most, from[s * (SIZE + 2) + SIZE]);
#if SINKS
    most = max(most, sinks[i / SIZE]);
#endif
    float mixed = 0, weight = 0;
    for (int s = before; s < used; ++s) {
      const float part = exponential(from[s * (SIZE + 2) + SIZE] - most);
      mixed = fma(part, from[s * (SIZE + 2) + i % SIZE], mixed);
      weight = fma(part, from[s * (SIZE + 2) + SIZE + 1], weight);
    }
#if SINKS
    weight += exponential(sinks[i / SIZE] - most);
#endif
    value[j] = mixed / weight;
#if GATES
    float gate = gates[(ulong)row * WIDTH + i];
    for (int p = 1; p < GATES; ++p) gate += gates[((ulong)p * ROWS + row) * WIDTH + i];
    value[j] *= 1.0f / (1.0f + exponential(-gate));
#endif
  }
}
#include "finish"
