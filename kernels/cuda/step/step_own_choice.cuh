// The choice of a row alone in a step in one kernel: every block makes the whole row, and counts the keys of its inputs in
// histograms of its own in shared memory. So nothing is waited for but the multiplication before. Values, keys, bins and
// the order of sums are those of step_choice.cuh, where all blocks share the work of several rows.
namespace specdec {

#if TIERS && ALONE
// Keeps the row that `four(job, i)` makes, inputs i to i + 3 of it at a time, and counts their keys for the matrices `low`
// to `high` (not included): `scores` (., width), `counted` (high - low, BINS).
template <class F>
DEVICE void count_row(int padded, int width, const float* scores, int low, int high, float* values, unsigned* counted, F four) {
  const int lane = threadIdx.x % 32, jobs = padded / 128;
  for (int at = threadIdx.x * 4; at < (high - low) * BINS; at += THREADS * 4) {
    *reinterpret_cast<uint4*>(counted + at) = uint4{0, 0, 0, 0};
  }
  BARRIER();
#pragma unroll 2
  for (int job = threadIdx.x / 32; job < jobs; job += WARPS) {
    const int i = job * 128 + lane * 4;
    const float4 value = four(job, i);
    *reinterpret_cast<float4*>(values + i) = value;
    const float v[4] = {value.x, value.y, value.z, value.w};
    for (int n = low; n < high; ++n) {
      float score[4][TIERS];
      load_scores4(scores + (size_t)n * width, i, width, score);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (i + e < width) atomicAdd(counted + (n - low) * BINS + bin_of(fabsf(v[e]) * score[e][0]), 1u);
      }
    }
  }
  BARRIER();
}

// The scale of the row's norm, of the squares of its parts of 128.
DEVICE float own_scale(const float* squares) {
  float sum = 0;
#pragma unroll
  for (int job = 0; job < HIDDEN_PAD / 128; job += 32) {
    const int at = job + threadIdx.x % 32;
    sum += at < HIDDEN_PAD / 128 ? squares[at] : 0.0f;
  }
  return norm_scale(sum);
}

// The lowest bin that is taken of a histogram in shared memory. `scratch` holds 33 numbers.
DEVICE int find_own_cut(const unsigned* histogram, int wanted, int* scratch) {
  constexpr int EACH = BINS / THREADS;
  const int tid = threadIdx.x, first = BINS - (tid + 1) * EACH;
  int count[EACH], sum = 0;
#pragma unroll
  for (int j = 0; j < EACH; j += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(histogram + first + j);
    count[j] = four.x, count[j + 1] = four.y, count[j + 2] = four.z, count[j + 3] = four.w;
    sum += four.x + four.y + four.z + four.w;
  }
  int above = block_before<WARPS>(sum, scratch, tid);
  if (above < wanted && above + sum >= wanted) {
    int cut = first;
#pragma unroll
    for (int j = EACH - 1; j >= 0; --j) {
      if (above < wanted) cut = first + j;
      above += count[j];
    }
    scratch[32] = cut;
  }
  BARRIER();
  return scratch[32];
}
#endif

}  // namespace specdec
