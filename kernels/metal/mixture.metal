// What the experts of each row have returned, times their shares, added up by rising expert; and what a shared MLP has.
// down (PARTS, ROWS * USED, WIDTH), bias (EXPERTS, WIDTH) when BIAS, chosen and shares (ROWS, USED), shared (SHARED_PARTS, ROWS,
// WIDTH) when SHARED_PARTS, shared_bias (WIDTH) when SHARED_BIAS, state -> y (1, ROWS, WIDTH)
const int i = threadgroup_position_in_grid.x * THREADS + thread_position_in_threadgroup.x;
const int row = threadgroup_position_in_grid.y;
if (i >= WIDTH || row >= state[1]) return;
float total = 0;
for (int slot = 0; slot < USED; ++slot) {
  const int job = row * USED + slot;
  if (chosen[job] < 0) continue;
  float value = down[(ulong)job * WIDTH + i];
  for (int p = 1; p < PARTS; ++p) value += down[((ulong)p * ROWS * USED + job) * WIDTH + i];
#if BIAS
  value += bias[(ulong)chosen[job] * WIDTH + i];
#endif
  total = fma(shares[job], value, total);
}
#if SHARED_PARTS
float value = shared[(ulong)row * WIDTH + i];
for (int p = 1; p < SHARED_PARTS; ++p) value += shared[((ulong)p * ROWS + row) * WIDTH + i];
#if SHARED_BIAS
value += shared_bias[i];
#endif
total += value;
#endif
y[(ulong)row * WIDTH + i] = total;
