// The experts of one row per block: the USED largest of its EXPERTS logits, of equal ones those with the lower number;
// in the order of their numbers, with their weights: shares of the softmax over all experts when ROUTER is 1, else of that
// over the chosen ones, which is the same as the former divided by their sum. Jiang et al. 2401.04088, section 2.1.
// With KEEPS a row keeps the fewest of them, largest weights first, whose squared weights sum to the share `keep` of the sum of
// all chosen ones (docs/arithmetic.md, Mixtures).
// plain (ROWS, WIDTH), table (EXPERTS, WIDTH), bias (EXPERTS) when BIAS, keep (., 1) when KEEPS, state -> chosen (ROWS, USED),
// -1 for experts that are not kept and rows that are not in use, shares (ROWS, USED), kept (ROWS): how many there are
const int tid = threadIdx.x, row = blockIdx.x;
const int warp = tid / 32, lane = tid % 32;
SHARED float logits[EXPERTS];
SHARED float powers[EXPERTS];
SHARED int taken[EXPERTS];  // 1: chosen, 2: kept
SHARED int count[1];
if (row >= state[1]) {
  for (int at = tid; at < USED; at += WARPS * 32) {
    chosen[row * USED + at] = -1;
    shares[row * USED + at] = 0;
  }
  if (tid == 0) kept[row] = USED;
  return;
}
for (int expert = warp; expert < EXPERTS; expert += WARPS) {
  float sum = 0;
  for (int i = lane; i < WIDTH; i += 32) sum = fmaf(plain[(size_t)row * WIDTH + i], table[(size_t)expert * WIDTH + i], sum);
  sum = lane_sum(sum);
#if BIAS
  sum += bias[expert];
#endif
  if (lane == 0) logits[expert] = sum;
}
BARRIER();
float most = logits[0];
for (int n = 1; n < EXPERTS; ++n) most = fmaxf(most, logits[n]);
for (int n = tid; n < EXPERTS; n += WARPS * 32) {
  int larger = 0;
  for (int other = 0; other < EXPERTS; ++other) {
    larger += logits[other] > logits[n] || (logits[other] == logits[n] && other < n) ? 1 : 0;
  }
  taken[n] = larger < USED ? KEEPS ? 1 : 2 : 0;
  powers[n] = exponential(logits[n] - most);
}
BARRIER();
if (tid == 0) {
  count[0] = USED;
#if KEEPS
  float all = 0, sum = 0;
  for (int n = 0; n < EXPERTS; ++n) all += taken[n] ? powers[n] * powers[n] : 0.0f;
  const float wanted = keep[state[STATE_CHOICES + row]] * all;
  for (count[0] = 0; count[0] < USED && (count[0] == 0 || sum < wanted); ++count[0]) {
    int best = -1;
    for (int n = 0; n < EXPERTS; ++n) best = taken[n] == 1 && (best < 0 || logits[n] > logits[best]) ? n : best;
    taken[best] = 2;
    sum += powers[best] * powers[best];
  }
#endif
  kept[row] = count[0];
}
BARRIER();
float total = 0;
for (int n = 0; n < EXPERTS; ++n) total += ROUTER == 1 || taken[n] ? powers[n] : 0.0f;
for (int n = tid; n < EXPERTS; n += WARPS * 32) {
  int slot = 0;
  for (int before = 0; before < n; ++before) slot += taken[before] ? 1 : 0;
  if (taken[n] && slot < USED) {
    chosen[row * USED + slot] = taken[n] == 2 ? n : -1;
    shares[row * USED + slot] = taken[n] == 2 ? powers[n] / total : 0.0f;
  }
}
