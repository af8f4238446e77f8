// The end of dense and verify: the lanes' sums meet, and leave as EPILOGUE says.
#if EPILOGUE == 2
threadgroup float exchange[32][ROWS];
for (int o = 0; o < 4; ++o) {
  for (int m = 0; m < ROWS; ++m) {
    const float total = lane_sum(sum[o][m]);
    if (lane == 0) exchange[warp * 4 + o][m] = total;
  }
}
BARRIER();
for (int at = tid; at < 16 * rows; at += WARPS * 32) {
  const int o = at % 16, row = at / 16;
  if (block * 16 + o < OUT_PADDED) {
    put_activation(y, row, OUT_PADDED, block * 16 + o, gated<ACTIVATION>(exchange[o][row], exchange[16 + o][row]));
  }
}
#else
for (int o = 0; o < 4; ++o) {
  for (int m = 0; m < ROWS; ++m) {
    float total = lane_sum(sum[o][m]);
    if (lane == 0 && m < rows && output + o < OUTPUTS) {
#if EPILOGUE == 1
      total += residual[(ulong)m * OUTPUTS + output + o];
#endif
      y[(ulong)m * OUTPUTS + output + o] = total;
    }
  }
}
#endif
