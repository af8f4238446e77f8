// What rows of answers need beside prompts: attention of single rows over histories of their own, and the choice of tokens, so
// that the next pass can begin without the host. Both as in a step of few rows (step_attention.cuh, step_choose.cuh).
namespace specdec {

constexpr int HEADS_EACH = HEADS / KV_HEADS < 4 ? HEADS / KV_HEADS : 4;  // of a block, at most: its warps read keys once

}  // namespace specdec

// queries (rows, HEADS, SIZE) -> splits (rows, HEADS, splits, SLOT); blocks: (rows, KV_HEADS times parts of a group of heads, splits)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    decode_attend(const float* queries, const PromptRow* about, long long layer, long long window, long long splits,
                  float* out) {
  __shared__ float sides[HEADS_EACH][WARPS][SIZE], most_of[HEADS_EACH][WARPS], weight_of[HEADS_EACH][WARPS];
  constexpr int GROUP = HEADS / KV_HEADS;
  after_others();
  const PromptRow of = about[blockIdx.x];
  const int chunks = gridDim.y / KV_HEADS, each = (GROUP + chunks - 1) / chunks;
  const int kv_head = blockIdx.y / chunks, begin = blockIdx.y % chunks * each;
  const int heads = GROUP - begin < each ? GROUP - begin : each, head = kv_head * GROUP + begin;
  const int split = blockIdx.z, start = split * SPAN, tid = threadIdx.x, warp = tid / 32, lane = tid % 32, mine = lane * 4;
  if (start > of.place) return;
  const int first = start + warp * EACH_WARP, at = first + lane / 2;
  const half_t* keys = of.cache + ((size_t)(2 * layer) * KV_HEADS + kv_head) * of.capacity * SIZE;
  const half_t* values = keys + (size_t)KV_HEADS * of.capacity * SIZE;
  uint2 k[EACH_WARP], v[EACH_WARP];
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    const bool past = first + a <= of.place && mine < SIZE;
    const size_t place = (size_t)(first + a) * SIZE + mine;
    k[a] = past ? *reinterpret_cast<const uint2*>(keys + place) : uint2{0, 0};
    v[a] = past ? *reinterpret_cast<const uint2*>(values + place) : uint2{0, 0};
  }
#pragma unroll 1
  for (int h = 0; h < heads; ++h) {
    const float4 four = mine < SIZE ? load_float4(queries + ((size_t)blockIdx.x * HEADS + head + h) * SIZE + mine) : float4{0, 0, 0, 0};
    const float q[4] = {four.x, four.y, four.z, four.w};
    float mixed[4], most, weight;
    weigh(k, v, q, at <= of.place && at > of.place - window, mixed, most, weight);
    for (int e = 0; e < 4; ++e) {
      if (mine < SIZE) sides[h][warp][mine + e] = mixed[e];
    }
    if (lane == 0) most_of[h][warp] = most, weight_of[h][warp] = weight;
  }
  BARRIER();
  for (int place = tid; place < heads * SIZE; place += THREADS) {
    const int h = place / SIZE, d = place % SIZE;
    float most, mixed, weight;
    join(most_of[h], weight_of[h], &sides[h][0][d], most, mixed, weight);
    float* to = out + (((size_t)blockIdx.x * HEADS + head + h) * splits + split) * SLOT;
    to[d] = mixed;
    if (d == 0) to[SIZE] = most, to[SIZE + 1] = weight;
  }
}

namespace specdec {

// Looks at a row's logits as the blocks of a step would; blocks: (GRID, rows). `four(row, i)` gives those of token i and the
// three after it.
template <class F>
DEVICE void look_at_logits(F four_of, float* found) {
  __shared__ float scratch[WARPS * CHOICE_WORDS];
  const int tid = threadIdx.x, row = blockIdx.y;
  after_others();
  Choice choice = Choice::none();
#pragma unroll 1
  for (int i = (blockIdx.x * THREADS + tid) * 4; i < VOCAB; i += GRID * THREADS * 4) {
    const float4 four = four_of(row, i);
    const float value[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e < VOCAB) choice = together(choice, Choice::of(value[e], i + e));
    }
  }
  choice = lane_choice(choice);
  if (tid % 32 == 0) put_choice(scratch + tid / 32 * CHOICE_WORDS, choice);
  BARRIER();
  if (tid >= 32) return;
  choice = lane_choice(tid < WARPS ? read_choice(scratch + tid * CHOICE_WORDS) : Choice::none());
  if (tid == 0) put_choice(found + (size_t)(row * GRID + blockIdx.x) * CHOICE_WORDS, choice);
}

}  // namespace specdec

// logits (rows, columns)
extern "C" __global__ void __launch_bounds__(THREADS) decode_look(const float* logits, long long columns, float* found) {
  look_at_logits([&](int row, int i) { return load_float4(logits + row * columns + i); }, found);
}

// Chooses the token of every row, a block each, and moves the row on to it. choices (turns, rows, CHOICE_WORDS): a row counts
// its turns.
extern "C" __global__ void __launch_bounds__(32) decode_choose(const float* found, PromptRow* about, float* choices) {
  const int row = blockIdx.x, rows = gridDim.x;
  after_others();
  Choice choice = Choice::none();
  for (int block = threadIdx.x; block < GRID; block += 32) {
    choice = together(choice, get_choice(found + (size_t)(row * GRID + block) * CHOICE_WORDS));
  }
  choice = lane_choice(choice);
  if (threadIdx.x > 0) return;
  PromptRow& of = about[row];
  put_choice(choices + (size_t)(of.turn * rows + row) * CHOICE_WORDS, choice);
  of.token = choice.token, ++of.place, ++of.turn;
}
