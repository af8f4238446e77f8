// The embeddings of the tokens in `state`, one row per threadgroup, from a plain table or from the packed logits layer.
// table 16-bit, state -> x (ROWS, WIDTH)
const int tid = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
if (row >= state[1]) return;
const ulong token = state[2 + row];
for (int i = tid; i < WIDTH; i += THREADS) {
#if TIED
  const ulong place = token * PADDED + i;
#else
  const ulong place = token * WIDTH + i;
#endif
  x[(ulong)row * WIDTH + i] = to_float(table[place]) * SCALE;
}
