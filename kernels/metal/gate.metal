// The gated MLP's inner activation of one row per threadgroup, from partial products; and, for a draft that selects, the
// choice of inputs. Shazeer, 2002.05202, section 2. parts (PARTS, ROWS, COLUMNS) holds 16 gates and their 16 ups in turn,
// or all gates and, from UP_AT on, all ups. Of a mixture a row is a job: see job.metal; EACH jobs are of one row.
// parts, bias (max(1, EXPERTS), 2, WIDTH) when BIAS, chosen when EXPERTS, scores (WIDTH, TIERS), take (., 1), state
// -> activation (ROWS, ., PADDED), counts (PADDED) when COUNTS
const int tid = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
threadgroup int scratch[96];
float value[OWN];
#if EXPERTS
const bool idle = row / EACH >= state[1] || chosen[row] < 0;
const int expert = idle ? 0 : chosen[row];
#else
const bool idle = row / EACH >= state[1];
const int expert = 0;
#endif
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = 0;
  if (i < WIDTH && !idle) {
    const int column = UP_AT ? i : i / 16 * 32 + i % 16, beside = UP_AT ? i + UP_AT : column + 16;
    float gate = parts[(ulong)row * COLUMNS + column];
    float up = parts[(ulong)row * COLUMNS + beside];
    for (int p = 1; p < PARTS; ++p) {
      gate += parts[((ulong)p * ROWS + row) * COLUMNS + column];
      up += parts[((ulong)p * ROWS + row) * COLUMNS + beside];
    }
#if BIAS
    gate += bias[(ulong)expert * 2 * WIDTH + i];
    up += bias[((ulong)expert * 2 + 1) * WIDTH + i];
#endif
    value[j] = gated<ACTIVATION>(gate, up);
  }
}
#include "finish"
