// What a part of a layer has returned is added to the residual stream, one row per block: PARTS partial products and
// their bias, normed when POST, times RESIDUAL. The sum, normed when NORM, is the next activation; and, for a draft that
// selects, the choice of inputs. Zhang and Sennrich, 1910.07467, equation 4.
// x (ROWS, WIDTH), parts (PARTS, ROWS, WIDTH), bias (WIDTH) when BIAS, post (WIDTH) when POST, weight (WIDTH) when NORM,
// scores (WIDTH, TIERS), take (., 1), state -> sum (ROWS, WIDTH) when PARTS, plain (ROWS, WIDTH) when PLAIN, activation
// (ROWS, ., PADDED), counts (PADDED) when COUNTS
const int tid = threadIdx.x, row = blockIdx.x;
SHARED float sums[32];
SHARED int scratch[96];
float value[OWN];
const bool idle = row >= state[1];
#if PARTS
float returned = 0;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  float added = 0;
  if (i < WIDTH && !idle) {
    added = parts[(size_t)row * WIDTH + i];
#pragma unroll
    for (int p = 1; p < PARTS; ++p) added += parts[((size_t)p * ROWS + row) * WIDTH + i];
#if BIAS
    added += bias[i];
#endif
  }
  value[j] = added;
  returned = fmaf(added, added, returned);
}
#if POST
const float shrink = 1.0f / square_root(block_sum<WARPS>(returned, sums, tid) / WIDTH + EPSILON);
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = i < WIDTH ? value[j] * shrink * post[i] : 0.0f;
}
#endif
#endif
float square = 0;
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  float v = 0;
  if (i < WIDTH && !idle) {
    v = x[(size_t)row * WIDTH + i];
#if PARTS
    v = fmaf(value[j], RESIDUAL, v);
    sum[(size_t)row * WIDTH + i] = v;
#endif
  }
  value[j] = v;
  square += v * v;
}
#if NORM
const float total = block_sum<WARPS>(square, sums, tid);
const float scale = 1.0f / square_root(total / WIDTH + EPSILON);
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = i < WIDTH ? value[j] * scale * weight[i] : 0.0f;
}
#endif
#if PLAIN
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  if (i < WIDTH) plain[(size_t)row * WIDTH + i] = value[j];
}
#endif
#include "finish"
