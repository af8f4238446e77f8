// A whole step in the exact view in one kernel: the phases are kernels of their own elsewhere (norm.cu, dense.cu,
// verify.cu, select.cu, attention.cu, gate.cu), with a barrier over the grid between them.
// table (LAYERS * ENTRIES + 3) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of weights to take), state, sync, logits_out (., VOCAB),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, block = blockIdx.x;
const int position = state[0], rows = state[1], logits_from = state[STATE_LOGITS];
const int capacity = cache_shape[3], splits = capacity / SPAN, used = (position + rows - 1) / SPAN + 1;
unsigned* arrived = const_cast<unsigned*>(sync);
float* logits = const_cast<float*>(logits_out);
unsigned long long* address = reinterpret_cast<unsigned long long*>(shared_memory);
float* scratch_sums = reinterpret_cast<float*>(address + ADDRESSES);
int* scratch_counts = reinterpret_cast<int*>(scratch_sums + 32);
float* meeting = scratch_sums + 160;
char* ring = reinterpret_cast<char*>(meeting + RING_AT);
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(meeting);
for (int i = tid; i < ADDRESSES; i += THREADS) address[i] = (unsigned long long)table[i];
float *x = scratch + AT_X, *other_x = x + ROWS * HIDDEN, *products = scratch + AT_PARTS;
float *attended = scratch + AT_SPLITS;
act_t* activation = reinterpret_cast<act_t*>(scratch + AT_ACTIVATION);
__half* prefix = reinterpret_cast<__half*>(scratch + AT_PREFIX);
BARRIER();
#define POINTER(type, layer, entry) reinterpret_cast<const type*>(address[(layer) * ENTRIES + (entry)])
#define LAST(type, entry) reinterpret_cast<const type*>(address[LAYERS * ENTRIES + (entry)])

using Qkv = Exact<QKV_SIZE, HIDDEN_PAD>;
using Out = Exact<HIDDEN, MIXED_PAD>;
using GateUp = Exact<2 * INNER_PAD, HIDDEN_PAD>;
using Down = Exact<HIDDEN, INNER_PAD>;
using Head = Exact<VOCAB, HIDDEN_PAD>;

// Rounds a row's activations, stores them, and chooses tiers; a block for every row and joined matrix.
auto leave = [&](auto& value, auto padded, int row, int matrix, int width, const float* scores, int wanted) {
  constexpr int PADDED = decltype(padded)::PADDED, EACH = OWN<PADDED>;
#pragma unroll
  for (int j = 0; j < EACH; j += 4) {
    const int i = tid * EACH + j;
    if (matrix == 0 && i < PADDED) {
      put4(activation, row, PADDED, i, float4{value[j], value[j + 1], value[j + 2], value[j + 3]});
    }
  }
#if TIERS
#pragma unroll
  for (int j = 0; j < EACH; ++j) value[j] = rounded(value[j], weight_t());
  int taken[EACH];
  select_tiers<WARPS, EACH, TIERS, SIZES, SLACK>(value, scores + (size_t)matrix * width * TIERS, width, wanted, scratch_counts,
                                          tid, taken);
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int i = tid * EACH + j;
    if (i < PADDED) prefix[((size_t)matrix * ROWS + row) * PADDED + i] = __int2half_rn(taken[j]);
  }
#endif
};

// Norm of every row, after adding a product to it.
auto norm_rows = [&](auto product, const float* parts, const float* weight, auto joined, const float* scores,
                     const int* takes) {
  constexpr int JOINED = TIERS ? decltype(joined)::COUNT : 1;
  for (int job = block; job < rows * JOINED; job += GRID) {
    const int row = job / JOINED, matrix = job % JOINED;
    float value[OWN<HIDDEN_PAD>];
    norm_row<decltype(product), HIDDEN, HIDDEN_PAD>(x + row * HIDDEN, parts, row,
                                                    parts && matrix == 0 ? other_x + row * HIDDEN : nullptr, weight,
                                                    scratch_sums, value);
    leave(value, Width<HIDDEN_PAD>(), row, matrix, HIDDEN, scores, TIERS ? takes[matrix] : 0);
  }
  if (parts) {
    float* kept = x;
    x = other_x, other_x = kept;
  }
};

fill<Qkv>(POINTER(void, 0, 4), POINTER(void, 0, 8), ring);
if (block < rows) embed_row(LAST(weight_t, 2), state[2 + block], x + block * HIDDEN);
meet(arrived);
for (int layer = 0; layer < LAYERS; ++layer) {
  const int* takes = take + layer * 7;
  norm_rows(Down(), layer ? products : nullptr, POINTER(float, layer, 0), Joined<3>(), POINTER(float, layer, 12), takes);
  meet(arrived);
  multiply_exact<Qkv, 3>(POINTER(void, layer, 4), POINTER(void, layer, 8), activation, prefix, rows, products, meeting, ring);
  fill<Out>(POINTER(void, layer, 5), POINTER(void, layer, 9), ring);
  meet(arrived);
  for (int item = block; item < (rows + TOGETHER - 1) / TOGETHER * HEADS * used; item += GRID) {
    attend<Qkv>(item, used, splits, products, const_cast<half_t*>(cache) + (size_t)layer * 2 * KV_HEADS * capacity * SIZE,
                capacity, angles, POINTER(float, layer, 2), POINTER(float, layer, 3), int(address[layer * ENTRIES + 16]),
                position, rows, attended, memory);
  }
  meet(arrived);
#if TIERS
  for (int row = block; row < rows; row += GRID) {
    constexpr int EACH = OWN<MIXED_PAD>;
    float value[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
      const int i = tid * EACH + j;
      const float4 four = i < MIXED ? mixed4(attended, row, i, (position + row) / SPAN + 1, splits) : float4{0, 0, 0, 0};
      value[j] = four.x, value[j + 1] = four.y, value[j + 2] = four.z, value[j + 3] = four.w;
    }
    leave(value, Width<MIXED_PAD>(), row, 0, MIXED, POINTER(float, layer, 13), takes[3]);
  }
#else
  for (int at = block * THREADS + tid; at < rows * (MIXED_PAD / 4); at += GRID * THREADS) {
    const int row = at / (MIXED_PAD / 4), i = at % (MIXED_PAD / 4) * 4;
    put4(activation, row, MIXED_PAD, i,
         i < MIXED ? mixed4(attended, row, i, (position + row) / SPAN + 1, splits) : float4{0, 0, 0, 0});
  }
#endif
  meet(arrived);
  multiply_exact<Out, 1>(POINTER(void, layer, 5), POINTER(void, layer, 9), activation, prefix, rows, products, meeting, ring);
  fill<GateUp>(POINTER(void, layer, 6), POINTER(void, layer, 10), ring);
  meet(arrived);
  norm_rows(Out(), products, POINTER(float, layer, 1), Joined<2>(), POINTER(float, layer, 14), takes + 4);
  meet(arrived);
  multiply_exact<GateUp, 2>(POINTER(void, layer, 6), POINTER(void, layer, 10), activation, prefix, rows, products,
                            meeting, ring);
  fill<Down>(POINTER(void, layer, 7), POINTER(void, layer, 11), ring);
  meet(arrived);
#if TIERS
  for (int row = block; row < rows; row += GRID) {
    constexpr int EACH = OWN<INNER_PAD>;
    float value[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
      const int i = tid * EACH + j;
      const float4 four = i < INNER_PAD ? gated4<GateUp>(products, row, i) : float4{0, 0, 0, 0};
      value[j] = four.x, value[j + 1] = four.y, value[j + 2] = four.z, value[j + 3] = four.w;
    }
    leave(value, Width<INNER_PAD>(), row, 0, INNER, POINTER(float, layer, 15), takes[6]);
  }
#else
  for (int at = block * THREADS + tid; at < rows * (INNER_PAD / 4); at += GRID * THREADS) {
    const int row = at / (INNER_PAD / 4), i = at % (INNER_PAD / 4) * 4;
    put4(activation, row, INNER_PAD, i, gated4<GateUp>(products, row, i));
  }
#endif
  meet(arrived);
  multiply_exact<Down, 1>(POINTER(void, layer, 7), POINTER(void, layer, 11), activation, prefix, rows, products, meeting, ring);
  if (layer + 1 < LAYERS) {
    fill<Qkv>(POINTER(void, layer + 1, 4), POINTER(void, layer + 1, 8), ring);
  } else if (logits_from < rows) {
    fill<Head>(LAST(void, 0), LAST(void, 3), ring);
  }
  meet(arrived);
}
if (logits_from < rows) {
  // The rows that are wanted, moved to the front.
  const int wanted = rows - logits_from;
  for (int row = block; row < wanted; row += GRID) {
    float value[OWN<HIDDEN_PAD>];
    norm_row<Down, HIDDEN, HIDDEN_PAD>(x + (logits_from + row) * HIDDEN, products, logits_from + row, nullptr,
                                       LAST(float, 1), scratch_sums, value);
    leave(value, Width<HIDDEN_PAD>(), row, 0, HIDDEN, LAST(float, 4), TIERS ? take[LAYERS * 7] : 0);
  }
  meet(arrived);
  multiply_exact<Head, 1>(LAST(void, 0), LAST(void, 3), activation, prefix, wanted, products, meeting, ring);
  meet(arrived);
  for (int at = block * THREADS + tid; at < wanted * ((VOCAB + 3) / 4); at += GRID * THREADS) {
    const int row = at / ((VOCAB + 3) / 4), i = at % ((VOCAB + 3) / 4) * 4;
    const float4 four = sum4<Head>(products, row, i);
    const float value[4] = {four.x, four.y, four.z, four.w};
    for (int e = 0; e < 4; ++e) {
      if (i + e < VOCAB) logits[(size_t)row * VOCAB + i + e] = value[e];
    }
  }
}
if (block == 0 && tid == 0) done[0] = 0;
