// A whole step of one row in a draft view in one kernel. Every block makes the activation of the whole row for itself, in
// shared memory, and chooses tiers for itself: cheaper than another barrier. The phases are those of norm.cu, gate.cu,
// attention.cu and int4.cu or bucket.cu.
// table (LAYERS * ENTRIES + 5) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of weights to take), state, sync, logits_out (1, VOCAB),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, block = blockIdx.x;
const int position = state[0];
const int capacity = cache_shape[3], splits = capacity / SPAN, used = position / SPAN + 1;
unsigned* arrived = const_cast<unsigned*>(sync);
float* logits = const_cast<float*>(logits_out);
unsigned long long* address = reinterpret_cast<unsigned long long*>(shared_memory);
float* scratch_sums = reinterpret_cast<float*>(address + ADDRESSES);
int* scratch_counts = reinterpret_cast<int*>(scratch_sums + 32);
__half* activation = reinterpret_cast<__half*>(scratch_sums + 160);
unsigned char* counts = reinterpret_cast<unsigned char*>(activation + WIDEST);
float* meeting = reinterpret_cast<float*>(counts + (COUNTS ? WIDEST : 0));
float* own = meeting + MEETING;  // bucketMul's sums
char* ring = reinterpret_cast<char*>(meeting + RING_AT);
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(meeting);
for (int i = tid; i < ADDRESSES; i += THREADS) address[i] = (unsigned long long)table[i];
float *x = scratch + AT_X, *other_x = x + HIDDEN, *products = scratch + AT_PARTS, *hidden = scratch + AT_HIDDEN;
float *attended = scratch + AT_SPLITS;
BARRIER();
#define POINTER(type, layer, entry) reinterpret_cast<const type*>(address[(layer) * ENTRIES + (entry)])
#define LAST(type, entry) reinterpret_cast<const type*>(address[LAYERS * ENTRIES + (entry)])

using Qkv = Draft<QKV_SIZE, HIDDEN_PAD>;
using Out = Draft<HIDDEN, MIXED_PAD>;
using GateUp = Draft<2 * INNER_PAD, HIDDEN_PAD>;
using Down = Draft<HIDDEN, INNER_PAD>;
using Head = Draft<VOCAB, HIDDEN_PAD>;

// Chooses tiers, and leaves the row in shared memory, 0 where an input is not taken at all.
auto leave = [&](auto& value, auto padded, int width, const float* scores, int wanted) {
  constexpr int PADDED = decltype(padded)::PADDED, EACH = OWN<PADDED>;
#if TIERS
  int taken[EACH];
  select_tiers<WARPS, EACH, TIERS, SIZES, SLACK>(value, scores, width, wanted, scratch_counts, tid, taken);
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int i = tid * EACH + j;
    if (taken[j] == 0) value[j] = 0;
#if COUNTS
    int count = 0;  // runs of four weights
#pragma unroll
    for (int k = 0; k < TIERS; ++k) count += k < taken[j] ? ((SIZES >> (8 * k)) & 255) / 4 : 0;
    if (i < PADDED) counts[i] = (unsigned char)count;
#endif
  }
#endif
#pragma unroll
  for (int j = 0; j < EACH; j += 4) {
    const int i = tid * EACH + j;
    if (i < PADDED) put4(activation, 0, PADDED, i, float4{value[j], value[j + 1], value[j + 2], value[j + 3]});
  }
  BARRIER();
};

// Norm of the row, after adding a product to it; the first block keeps the sum.
auto norm = [&](auto product, const float* parts, const float* weight, const float* scores, int wanted) {
  float value[OWN<HIDDEN_PAD>];
  norm_row<decltype(product), HIDDEN, HIDDEN_PAD>(x, parts, 0, parts && block == 0 ? other_x : nullptr, weight,
                                                  scratch_sums, value);
  leave(value, Width<HIDDEN_PAD>(), HIDDEN, scores, wanted);
  if (parts) {
    float* kept = x;
    x = other_x, other_x = kept;
  }
};

fill<Qkv>(POINTER(void, 0, 4), POINTER(void, 0, 8), ring);
if (block == 0) embed_row(LAST(weight_t, 2), state[2], x);
meet(arrived);
for (int layer = 0; layer < LAYERS; ++layer) {
  const int* takes = take + layer * 4;
  norm(Down(), layer ? products : nullptr, POINTER(float, layer, 0), POINTER(float, layer, 12), TIERS ? takes[0] : 0);
  multiply_draft<Qkv>(POINTER(void, layer, 4), POINTER(void, layer, 8), activation, counts, products + OTHER_PARTS,
                      meeting, own, ring);
  fill<Out>(POINTER(void, layer, 5), POINTER(void, layer, 9), ring);
  meet(arrived);
  for (int item = block; item < HEADS * used; item += GRID) {
    attend<Qkv>(item, used, splits, products + OTHER_PARTS,
                const_cast<half_t*>(cache) + (size_t)layer * 2 * KV_HEADS * capacity * SIZE, capacity, angles,
                POINTER(float, layer, 2), POINTER(float, layer, 3), int(address[layer * ENTRIES + 16]), position, 1,
                attended, memory);
  }
  meet(arrived);
  {
    constexpr int EACH = OWN<MIXED_PAD>;
    float value[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
      const int i = tid * EACH + j;
      const float4 four = i < MIXED ? mixed4(attended, 0, i, used, splits) : float4{0, 0, 0, 0};
      value[j] = four.x, value[j + 1] = four.y, value[j + 2] = four.z, value[j + 3] = four.w;
    }
    leave(value, Width<MIXED_PAD>(), MIXED, POINTER(float, layer, 13), TIERS ? takes[1] : 0);
  }
  multiply_draft<Out>(POINTER(void, layer, 5), POINTER(void, layer, 9), activation, counts, products, meeting, own, ring);
  fill<GateUp>(POINTER(void, layer, 6), POINTER(void, layer, 10), ring);
  meet(arrived);
  norm(Out(), products, POINTER(float, layer, 1), POINTER(float, layer, 14), TIERS ? takes[2] : 0);
  multiply_draft<GateUp>(POINTER(void, layer, 6), POINTER(void, layer, 10), activation, counts, products + OTHER_PARTS,
                         meeting, own, ring);
  fill<Down>(POINTER(void, layer, 7), POINTER(void, layer, 11), ring);
  meet(arrived);
  for (int at = block * THREADS + tid; at < INNER_PAD / 4; at += GRID * THREADS) {
    *reinterpret_cast<float4*>(hidden + at * 4) = gated4<GateUp>(products + OTHER_PARTS, 0, at * 4);
  }
  meet(arrived);
  {
    constexpr int EACH = OWN<INNER_PAD>;
    float value[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j += 4) {
      const int i = tid * EACH + j;
      const float4 four = i < INNER_PAD ? load_float4(hidden + i) : float4{0, 0, 0, 0};
      value[j] = four.x, value[j + 1] = four.y, value[j + 2] = four.z, value[j + 3] = four.w;
    }
    leave(value, Width<INNER_PAD>(), INNER, POINTER(float, layer, 15), TIERS ? takes[3] : 0);
  }
  multiply_draft<Down>(POINTER(void, layer, 7), POINTER(void, layer, 11), activation, counts, products, meeting, own, ring);
  if (layer + 1 < LAYERS) {
    fill<Qkv>(POINTER(void, layer + 1, 4), POINTER(void, layer + 1, 8), ring);
  } else {
    fill<Head>(LAST(void, 0), LAST(void, 3), ring);
  }
  meet(arrived);
}
norm(Down(), products, LAST(float, 1), LAST(float, 4), TIERS ? take[LAYERS * 4] : 0);
multiply_draft<Head>(LAST(void, 0), LAST(void, 3), activation, counts, products + OTHER_PARTS, meeting, own, ring);
meet(arrived);
for (int at = block * THREADS + tid; at < (VOCAB + 3) / 4; at += GRID * THREADS) {
  const float4 four = sum4<Head>(products + OTHER_PARTS, 0, at * 4);
  const float value[4] = {four.x, four.y, four.z, four.w};
  for (int e = 0; e < 4; ++e) {
    if (at * 4 + e < VOCAB) logits[at * 4 + e] = value[e];
  }
}
if (block == 0 && tid == 0) done[0] = 0;
