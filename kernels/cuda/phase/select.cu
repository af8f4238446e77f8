// How many tiers of each input a row takes in the exact view, one row and one of the joined matrices per block.
// activation (ROWS, ., PADDED), scores (JOINED, WIDTH, TIERS), take (., JOINED), state -> prefix (JOINED, ROWS, PADDED), or,
// when MASKED, masked: the activation with zeros for the inputs that the row does not take
const int tid = threadIdx.x, row = blockIdx.x, matrix = blockIdx.y;
SHARED int scratch[96];
if (row >= state[1]) return;
float value[OWN];
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = i < WIDTH ? get_activation(activation, row, PADDED, i) : 0.0f;
}
int taken[OWN];
select_tiers<WARPS, OWN, TIERS, SIZES>(value, scores + (size_t)matrix * WIDTH * TIERS, WIDTH,
                                       take[state[STATE_CHOICES + row] * JOINED + matrix], scratch, tid,
                                       taken);
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
#if MASKED
  if (i < PADDED) masked[((size_t)matrix * ROWS + row) * PADDED + i] = taken[j] ? value[j] : 0.0f;
#else
  if (i < PADDED) prefix[((size_t)matrix * ROWS + row) * PADDED + i] = __int2half_rn(taken[j]);
#endif
}
