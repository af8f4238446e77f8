// How many tiers of each input a row takes in the exact view, one row and one of the joined matrices per threadgroup.
// activation (ROWS, ., PADDED), scores (JOINED, WIDTH, TIERS), take (., JOINED), state -> prefix (JOINED, ROWS, PADDED), or,
// when MASKED, masked: the activation with zeros for the inputs that the row does not take
const int tid = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
const int matrix = threadgroup_position_in_grid.y;
threadgroup int scratch[96];
if (row >= state[1]) return;
float value[OWN];
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = i < WIDTH ? get_activation(activation, row, PADDED, i) : 0.0f;
}
int taken[OWN];
select_tiers<WARPS, OWN, TIERS, SIZES>(value, scores + (ulong)matrix * WIDTH * TIERS, WIDTH,
                                       take[state[STATE_CHOICES + row] * JOINED + matrix], scratch, tid,
                                       taken);
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
#if MASKED
  if (i < PADDED) masked[((ulong)matrix * ROWS + row) * PADDED + i] = taken[j] ? value[j] : 0.0f;
#else
  if (i < PADDED) prefix[((ulong)matrix * ROWS + row) * PADDED + i] = half(taken[j]);
#endif
}
