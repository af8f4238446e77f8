// The end of every kernel that makes one row of activations: select where a draft does, and store.
#if TIERS
int taken[OWN];
select_tiers<WARPS, OWN, TIERS, SIZES>(value, scores, WIDTH, take[state[STATE_CHOICES + row]], scratch, tid, taken);
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  if (taken[j] == 0) value[j] = 0;
#if COUNTS
  int count = 0;  // runs of four weights, COUNTS tells how many make up each tier
#pragma unroll
  for (int k = 0; k < TIERS; ++k) count += k < taken[j] ? ((SIZES >> (8 * k)) & 255) / 4 : 0;
  if (i < PADDED) counts[i] = (unsigned char)(count);
#endif
}
#endif
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  if (i < PADDED) put_activation(activation, row, PADDED, i, value[j]);
}
