// The embeddings of the tokens in `state` from a quantised table or logits layer, one row per threadgroup.
// data (mlx_quant.py), state -> x (ROWS, WIDTH)
const int tid = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
if (row >= state[1]) return;
const int token = state[2 + row], tile = token / 128, o = token % 128;
const int place = o % 8 * 16 + o / 16 * 2 + o % 16 / 8;  // 8 outputs share a part of the tile
typedef FORM0 F;
device const uchar* heads = data + (ulong)tile * F::HEADS * F::HEAD;
device const uchar* upper = data + (ulong)TILES * F::HEADS * F::HEAD;
device const uchar* rest = upper + (ulong)TILES * INPUTS * F::UPPER + (ulong)tile * INPUTS * F::REST;
upper += (ulong)tile * INPUTS * F::UPPER;
for (int i = tid; i < WIDTH; i += THREADS) {
  float scale[8], shift[8], weight[8];
  uint held[4];
  if (F::BITS < 16) read_factors<F>(heads, i / 32, i % 32 / 16, place / 8, scale, shift);
  read_codes<F>(upper, rest, i, place / 8, held);
  make_weights<F>(held, scale, shift, weight);
  for (int n = 0; n < 8; ++n) {
    if (n == place % 8) x[(ulong)row * WIDTH + i] = weight[n] * SCALE;
  }
}
