// The rows of activations of many tokens: embeddings, norms, what attention has mixed, and what a gate lets through. Each is
// computed as in a step of few rows (step_rows.cuh, step_exact.cu); only the sums are there already.
namespace specdec {

// Products that are finished: (rows, columns).
struct Finished {
  long long columns;
};
DEVICE float4 sum4(const Finished& m, const float* sums, int row, int output) {
  return *reinterpret_cast<const float4*>(sums + row * m.columns + output);
}

}  // namespace specdec

extern "C" __global__ void __launch_bounds__(THREADS) prompt_embed(const PromptRow* about, const weight_t* table, float* x) {
  after_others();
  embed_row(table, about[blockIdx.x].token, x + (size_t)blockIdx.x * HIDDEN);
}

// RMS norm of x plus a product, unless `sums` is null; a block has a row, that of its number unless `which` says another.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_norm(float* x, const float* sums, long long columns, const float* weight, const int* which, act_t* activation) {
  after_others();
  __shared__ float scratch[64];
  float value[OWN<HIDDEN_PAD>];
  const int row = which ? which[blockIdx.x] : blockIdx.x;
  float* from = x + (size_t)row * HIDDEN;
  norm_row<HIDDEN, HIDDEN_PAD>(Finished{columns}, from, sums, row, sums ? from : nullptr, weight, scratch, value);
#pragma unroll
  for (int j = 0; j < OWN<HIDDEN_PAD>; j += 4) {
    const int i = threadIdx.x * OWN<HIDDEN_PAD> + j;
    if (i < HIDDEN_PAD) put4(activation, blockIdx.x, HIDDEN_PAD, i, float4{value[j], value[j + 1], value[j + 2], value[j + 3]});
  }
}

// What attention has made of each row, of all its splits.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_mix(const float* attended, const PromptRow* about, long long splits, long long rows, act_t* activation) {
  after_others();
  const int at = blockIdx.x * THREADS + threadIdx.x, row = at / (MIXED_PAD / 4), i = at % (MIXED_PAD / 4) * 4;
  if (row >= rows) return;
  const int used = about[row].place / SPAN + 1;
  put4(activation, row, MIXED_PAD, i, i < MIXED ? mixed4(attended, row, i, used, int(splits)) : float4{0, 0, 0, 0});
}

// silu(gate) * up of each row.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_gate(const float* sums, long long columns, long long rows, act_t* activation) {
  after_others();
  const int at = blockIdx.x * THREADS + threadIdx.x, row = at / (INNER_PAD / 4), i = at % (INNER_PAD / 4) * 4;
  if (row < rows) put4(activation, row, INNER_PAD, i, gated4(Finished{columns}, sums, row, i));
}
