// The end of dense and verify: the warps' sums meet in shared memory, by rising warp, and leave as EPILOGUE says.
SHARED float exchange[WARPS][COLUMNS][PER_BLOCK * 16 + 1];
#pragma unroll
for (int band = 0; band < BANDS; ++band) {
  if (band) BARRIER();
#pragma unroll
  for (int t = 0; t < PER_BLOCK; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = 2 * q + e % 2;
      if (column < COLUMNS) exchange[warp][column][t * 16 + g + e / 2 * 8] = sum[t][band][e];
    }
  }
  BARRIER();
#if EPILOGUE == 2
  for (int at = tid; at < PER_BLOCK * 8 * COLUMNS; at += WARPS * 32) {
    const int column = at / (PER_BLOCK * 8), o = at % (PER_BLOCK * 8), row = band * 8 + column;
    float gate = 0, up = 0;
#pragma unroll
    for (int other = 0; other < WARPS; ++other) {
      gate += exchange[other][column][o / 16 * 32 + o % 16];
      up += exchange[other][column][o / 16 * 32 + 16 + o % 16];
    }
    const int output = block * PER_BLOCK * 8 + o;
    if (row < rows && output < OUT_PADDED) put_activation(y, row, OUT_PADDED, output, gated<ACTIVATION>(gate, up));
  }
#else
  for (int at = tid; at < PER_BLOCK * 16 * COLUMNS; at += WARPS * 32) {
    const int column = at / (PER_BLOCK * 16), o = at % (PER_BLOCK * 16), row = band * 8 + column;
    float total = 0;
#pragma unroll
    for (int other = 0; other < WARPS; ++other) total += exchange[other][column][o];
    const int output = block * PER_BLOCK * 16 + o;
    if (row < rows && output < OUTPUTS) {
#if EPILOGUE == 1
      total += residual[(size_t)row * OUTPUTS + output];
#endif
      y[(size_t)row * OUTPUTS + output] = total;
    }
  }
#endif
}
