// The embeddings of the tokens in `state`, one row per block, from a plain table or from the packed logits layer.
// table 16-bit, state -> x (ROWS, WIDTH)
const int tid = threadIdx.x, row = blockIdx.x;
if (row >= state[1]) return;
const size_t token = state[2 + row];
for (int i = tid; i < WIDTH; i += THREADS) {
#if TIED
  // The order of dense.cu: tiles of 16 outputs, steps of 32 inputs, and in a step the registers of each lane.
  const size_t step = (token / 16) * (PADDED / 32) + i / 32;
  const int k = i % 32, o = token % 16;
  const int lane = o % 8 * 4 + k / 8;
  const size_t place = step * 512 + (k / 4 % 2) * 256 + lane * 8 + (k / 2 % 2) * 4 + o / 8 * 2 + k % 2;
#else
  const size_t place = token * WIDTH + i;
#endif
  x[(size_t)row * WIDTH + i] = to_float(table[place]) * SCALE;
}
