// Logits from the partial products of the logits layer, scaled; with a softcap when SOFTCAP (Gemma 2, 2408.00118, section 2).
// parts (PARTS, ROWS, WIDTH), state -> y (ROWS, WIDTH)
const int i = threadgroup_position_in_grid.x * THREADS + thread_position_in_threadgroup.x;
const int row = threadgroup_position_in_grid.y;
if (i >= WIDTH || row >= state[1]) return;
float value = parts[(ulong)row * WIDTH + i];
for (int p = 1; p < PARTS; ++p) value += parts[((ulong)p * ROWS + row) * WIDTH + i];
value *= SCALE;
#if SOFTCAP
value = CAP * hyperbolic(value / CAP);
#endif
y[(ulong)row * WIDTH + i] = value;
