// What the experts of each row have returned, times their shares, added up by rising expert; and what a shared MLP has.
// down (PARTS, ROWS * USED, WIDTH), bias (EXPERTS, WIDTH) when BIAS, chosen and shares (ROWS, USED), shared (SHARED_PARTS, ROWS,
// WIDTH) when SHARED_PARTS, shared_bias (WIDTH) when SHARED_BIAS, state -> y (1, ROWS, WIDTH)
const int i = blockIdx.x * THREADS + threadIdx.x;
const int row = blockIdx.y;
if (i >= WIDTH || row >= state[1]) return;
float total = 0;
for (int slot = 0; slot < USED; ++slot) {
  const int job = row * USED + slot;
  if (chosen[job] < 0) continue;
  float value = down[(size_t)job * WIDTH + i];
#pragma unroll
  for (int p = 1; p < PARTS; ++p) value += down[((size_t)p * ROWS * USED + job) * WIDTH + i];
#if BIAS
  value += bias[(size_t)chosen[job] * WIDTH + i];
#endif
  total = fmaf(shares[job], value, total);
}
#if SHARED_PARTS
float value = shared[(size_t)row * WIDTH + i];
#pragma unroll
for (int p = 1; p < SHARED_PARTS; ++p) value += shared[((size_t)p * ROWS + row) * WIDTH + i];
#if SHARED_BIAS
value += shared_bias[i];
#endif
total += value;
#endif
y[(size_t)row * WIDTH + i] = total;
