// What rows of answers need beside prompts: attention of single rows over histories of their own, and the choice of tokens, so
// that the next pass can begin without the host. Both as in a step of few rows (step_attention.cuh, step_choose.cuh).
namespace specdec {

constexpr int AT_ONCE = SIZE > 64 ? 1 : 2;                      // heads that a warp takes at a time: half of its lanes each
constexpr int MOST_EACH = SIZE > 64 ? 4 : 8;                    // heads of a block, at most: its warps read keys once
constexpr int HEADS_EACH = HEADS / KV_HEADS < MOST_EACH ? HEADS / KV_HEADS : MOST_EACH;

// Two heads of `weigh` at a time. A half of the lanes has four dimensions each of keys, values and its own query, and lane a
// of it says whether position a is seen. What was added over all lanes there, with zeros of half of them, is added here over
// half of the lanes, in the same order.
DEVICE void weigh_two(const uint2 (&k)[EACH_WARP], const uint2 (&v)[EACH_WARP], const float (&q)[4], bool seen,
                      float (&mixed)[4], float& most, float& weight) {
  const int lane = threadIdx.x % 32;
  float score[EACH_WARP];
  lane_scores(k, q, score);
#pragma unroll
  for (int mask = EACH_WARP / 2; mask > 0; mask /= 2) {
#pragma unroll
    for (int a = 0; a < mask; ++a) {
      const float kept = lane & mask ? score[a + mask] : score[a], sent = lane & mask ? score[a] : score[a + mask];
      score[a] = kept + shuffle_xor(sent, mask);
    }
  }
  most = seen ? score[0] : MINUS_INFINITY;
#pragma unroll
  for (int mask = EACH_WARP / 2; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
  const float part = seen ? exponential(score[0] - most) : 0.0f;
  weight = part;
#pragma unroll
  for (int mask = EACH_WARP / 2; mask > 0; mask /= 2) weight += shuffle_xor(weight, mask);
  mix_values<1>(v, part, lane / 16 * 16, mixed);
}

struct DecodeAttention {
  alignas(16) float sides[HEADS_EACH][WARPS][SIZE];
  alignas(16) float query[HEADS_EACH][SIZE];  // and then what has become of it
  alignas(16) half_t fresh[2][SIZE];          // the newest key and value
  float most[HEADS_EACH][WARPS], weight[HEADS_EACH][WARPS];
};

// The heads of a row that are the work of this block, over a split of its history; blocks: (rows, KV_HEADS times parts of a
// group of heads, splits). Keys and values of the past are asked for before others have made the row's own: `turn(kind, head,
// place, turned)` gives four dimensions of a query, key or value (`turn_four`). Where rows of a pass follow each other in one
// history, a kernel before this one has put keys and values of all into it, and left `queries` (rows, HEADS, SIZE); rows of a
// tree have `paths` (rows, 4 PATH_WORDS).
// `leave(h, head, d, mixed, most, weight)` gets what has become of a dimension.
template <class Turn, class Leave>
DEVICE void attend_row(const PromptRow* about, const unsigned char* paths, const float* queries, long long layer,
                       long long window, DecodeAttention& m, Turn turn, Leave leave) {
  constexpr int GROUP = HEADS / KV_HEADS, LANES = 32 / AT_ONCE;
  static_assert(HEADS_EACH + 2 <= WARPS, "a warp for each query, the key and the value");
  const int chunks = gridDim.y / KV_HEADS, each = (GROUP + chunks - 1) / chunks;
  const int kv_head = blockIdx.y / chunks, begin = blockIdx.y % chunks * each;
  const int heads = GROUP - begin < each ? GROUP - begin : each, head = kv_head * GROUP + begin;
  const int split = blockIdx.z, start = split * SPAN, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int mine = lane % LANES * 4, own = lane / LANES, first = start + warp * EACH_WARP;
  if (queries) after_others();
  PromptRow of = about[blockIdx.x];  // written by a kernel that has ended
  of.place = __ldcg(&about[blockIdx.x].place), of.slot = __ldcg(&about[blockIdx.x].slot);
  const half_t* keys = of.cache + ((size_t)(2 * layer) * KV_HEADS + kv_head) * of.capacity * SIZE;
  const half_t* values = keys + (size_t)KV_HEADS * of.capacity * SIZE;
  uint2 k[EACH_WARP], v[EACH_WARP];
  // Lane a of a row of a tree finds the slot of position a.
  int slot = first + lane % EACH_WARP;
  if (paths && slot <= of.place) slot = of.slot_of(slot, paths + (size_t)blockIdx.x * (4 * PATH_WORDS));
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    const bool past = first + a < of.place + (queries != nullptr) && mine < SIZE;
    const size_t at = (size_t)(paths ? __shfl_sync(EVERY_LANE, slot, a) : first + a) * SIZE + mine;
    k[a] = past ? __ldcg(reinterpret_cast<const uint2*>(keys + at)) : uint2{0, 0};
    v[a] = past ? __ldcg(reinterpret_cast<const uint2*>(values + at)) : uint2{0, 0};
  }
  if (!queries) after_others();
  if (start > of.place) return;
  const bool newest = !queries && of.place < start + SPAN;
  if (queries) {
    const float* from = queries + ((size_t)blockIdx.x * HEADS + head) * SIZE;
    for (int where = tid; where < heads * SIZE; where += THREADS) (&m.query[0][0])[where] = from[where];
  } else if (warp < heads || (newest && warp < heads + 2)) {
    const int kind = warp < heads ? 0 : warp - heads + 1, d = lane * 4;
    float turned[4];
    turn(kind, kind ? kv_head : head + warp, of.place, turned);
    if (d < SIZE && kind == 0) {
      *reinterpret_cast<float4*>(&m.query[warp][d]) =
          float4{turned[0] * SCALE, turned[1] * SCALE, turned[2] * SCALE, turned[3] * SCALE};
    } else if (d < SIZE) {
      half_t* to = new_place(of, kind, kv_head, layer) + d;
      for (int e = 0; e < 4; ++e) {
        const half_t half = m.fresh[kind - 1][d + e] = to_half(turned[e]);
        if (begin == 0) to[e] = half;
      }
    }
  }
  BARRIER();
  if (newest && mine < SIZE) {
#pragma unroll
    for (int a = 0; a < EACH_WARP; ++a) {
      if (first + a != of.place) continue;
      k[a] = *reinterpret_cast<const uint2*>(&m.fresh[0][mine]), v[a] = *reinterpret_cast<const uint2*>(&m.fresh[1][mine]);
    }
  }
  const int at = first + (AT_ONCE == 2 ? lane % LANES : lane / 2);
  const bool seen = at <= of.place && at > of.place - window;
#pragma unroll 1
  for (int front = 0; front < heads; front += AT_ONCE) {
    const int h = front + own < heads ? front + own : front;
    float q[4], mixed[4], most, weight;
    for (int e = 0; e < 4; ++e) q[e] = mine < SIZE ? m.query[h][mine + e] : 0.0f;
    if constexpr (AT_ONCE == 2) {
      weigh_two(k, v, q, seen, mixed, most, weight);
    } else {
      weigh(k, v, q, seen, mixed, most, weight);
    }
    if (front + own >= heads) continue;
    if (mine < SIZE) *reinterpret_cast<float4*>(&m.sides[h][warp][mine]) = float4{mixed[0], mixed[1], mixed[2], mixed[3]};
    if (lane % LANES == 0) m.most[h][warp] = most, m.weight[h][warp] = weight;
  }
  BARRIER();
  for (int where = tid; where < heads * SIZE; where += THREADS) {
    const int h = where / SIZE, d = where % SIZE;
    float most, mixed, weight;
    join(m.most[h], m.weight[h], &m.sides[h][0][d], most, mixed, weight);
    leave(h, head + h, d, mixed, most, weight);
  }
}

// Leaves what has become of a dimension of a head in splits (rows, HEADS, splits, SLOT).
DEVICE void leave_split(float* all, int head, int d, long long splits, float mixed, float most, float weight) {
  float* to = all + (((size_t)blockIdx.x * HEADS + head) * splits + blockIdx.z) * SLOT;
  to[d] = mixed;
  if (d == 0) to[SIZE] = most, to[SIZE + 1] = weight;
}

}  // namespace specdec

#ifndef DECODES  // quantised models have a kernel of their own: decode_quant.cuh
// sums (rows, columns) as for prompt_turn -> splits
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    decode_attend(const float* sums, long long columns, const PromptRow* about, const float* angles, const float* bias,
                  const float* norms, long long layer, const float* queries, const unsigned char* paths, long long window,
                  long long splits, float* out) {
  __shared__ DecodeAttention memory;
  attend_row(
      about, paths, queries, layer, window, memory,
      [&](int kind, int head, int place, float (&turned)[4]) {
        turn_four(kind, head, blockIdx.x, place, angles, bias, norms, [&](int, int row, int output) {
          const int column = output + (kind == 0 ? 0 : kind == 1 ? TURN_KEYS : TURN_VALUES);
          return *reinterpret_cast<const float4*>(sums + row * columns + column);
        }, turned);
      },
      [&](int, int head, int d, float mixed, float most, float weight) {
        leave_split(out, head, d, splits, mixed, most, weight);
      });
}
#endif

namespace specdec {

// Looks at a row's logits as the blocks of a step would; blocks: (GRID, rows). `four(row, i)` gives those of token i and the
// three after it.
template <class F>
DEVICE void look_at_logits(F four_of, float* found) {
  __shared__ float scratch[WARPS * CHOICE_WORDS];
  const int tid = threadIdx.x, row = blockIdx.y;
  after_others();
  float* to = found + (size_t)(row * GRID + blockIdx.x) * CHOICE_WORDS;
  Choice choice = Choice::none();
  if (blockIdx.x * THREADS * 4 >= VOCAB) {  // nothing to look at
    if (tid == 0) put_choice(to, choice);
    return;
  }
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
  if (tid == 0) put_choice(to, choice);
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
  of.token = choice.token, ++of.place, ++of.slot, ++of.turn;
}
