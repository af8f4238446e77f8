// How many tiers of each input a row takes, one row and one of the joined matrices per block: all that does not choose
// as it makes the row. Of a mixture a row is a job, see job.cu: EACH jobs are of one row, each with its expert's matrices.
// activation (ROWS, ., PADDED), (ROWS / EACH, ., PADDED) unless BY_JOB, chosen and kept when EXPERTS, scores (max(1, EXPERTS) * JOINED,
// WIDTH, TIERS), take (., max(1, EXPERTS) * JOINED), state -> prefix (JOINED, ROWS, PADDED), or, when MASKED, masked: the
// activation with zeros for the inputs that the row does not take; counts (ROWS, PADDED) when COUNTS
const int tid = threadIdx.x, row = blockIdx.x;
const int source = row / EACH;
SHARED int scratch[96];
if (source >= state[1]) return;
#if EXPERTS
if (chosen[row] < 0) return;
const int matrix = chosen[row] * JOINED + blockIdx.y, line = EXPERTS * JOINED;
#else
const int matrix = blockIdx.y, line = JOINED;
#endif
const size_t out = ((size_t)blockIdx.y * ROWS + row) * PADDED;
float value[OWN];
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  value[j] = i < WIDTH ? get_activation(activation, BY_JOB ? row : source, PADDED, i) : 0.0f;
}
int taken[OWN];
int wanted = take[state[STATE_CHOICES + source] * line + matrix];
#if EXPERTS  // what the experts that are not kept would have taken
wanted = (wanted * EACH + kept[source] - 1) / kept[source];
#endif
select_tiers<WARPS, OWN, TIERS, SIZES>(value, scores + (size_t)matrix * WIDTH * TIERS, WIDTH,
                                       wanted, scratch, tid, taken);
#pragma unroll
for (int j = 0; j < OWN; ++j) {
  const int i = tid * OWN + j;
  if (i >= PADDED) continue;
#if MASKED
  masked[out + i] = taken[j] ? value[j] : 0.0f;
#else
  prefix[out + i] = __int2half_rn(taken[j]);
#endif
#if COUNTS
  int count = 0;  // runs of four weights, COUNTS tells how many make up each tier
#pragma unroll
  for (int k = 0; k < TIERS; ++k) count += k < taken[j] ? ((SIZES >> (8 * k)) & 255) / 4 : 0;
  counts[out + i] = (unsigned char)(count);
#endif
}
