// The embeddings of the tokens in `state` from a quantised table or logits layer, one row per block.
// data (mlx_quant.py), state -> x (ROWS, WIDTH)
const int tid = threadIdx.x, row = blockIdx.x;
if (row >= state[1]) return;
const int token = state[2 + row], tile = token / 128, o = token % 128;
const int place = o % 8 * 16 + o / 16 * 2 + o % 16 / 8;  // 8 outputs share a part of the tile
using F = FORM0;
const unsigned char* heads = data + (size_t)tile * F::HEADS * F::HEAD;
const unsigned char* upper = data + (size_t)TILES * F::HEADS * F::HEAD;
const unsigned char* rest = upper + (size_t)TILES * INPUTS * F::UPPER + (size_t)tile * INPUTS * F::REST;
upper += (size_t)tile * INPUTS * F::UPPER;
for (int i = tid; i < WIDTH; i += THREADS) {
  float scale[8], shift[8], weight[8];
  unsigned held[4];
  if (F::BITS < 16) read_factors<F>(heads, i / 32, i % 32 / 16, place / 8, scale, shift);
  read_codes<F>(upper, rest, i, place / 8, held);
  make_weights<F>(held, scale, shift, weight);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if (n == place % 8) x[(size_t)row * WIDTH + i] = weight[n] * SCALE;
  }
}
