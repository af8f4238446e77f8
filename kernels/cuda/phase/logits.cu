// Logits from the partial products of the logits layer, scaled; with a softcap when SOFTCAP (Gemma 2, 2408.00118, section 2).
// parts (PARTS, ROWS, WIDTH), state -> y (ROWS, WIDTH)
const int i = blockIdx.x * THREADS + threadIdx.x;
const int row = blockIdx.y;
if (i >= WIDTH || row >= state[1]) return;
float value = parts[(size_t)row * WIDTH + i];
#pragma unroll
for (int p = 1; p < PARTS; ++p) value += parts[((size_t)p * ROWS + row) * WIDTH + i];
value *= SCALE;
#if SOFTCAP
value = CAP * hyperbolic(value / CAP);
#endif
y[(size_t)row * WIDTH + i] = value;
