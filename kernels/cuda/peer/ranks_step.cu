// A whole step of one sequence at effort 1.0 in one kernel, on one of RANKS GPUs that divide the outputs of every matrix.
// The arithmetic is that of the kernels for each phase (norm.cu, dense.cu, rotate.cu, attention.cu, attention_sum.cu), bit
// for bit. A GPU writes its columns of every row that is multiplied next into the memory of all, and a barrier over the
// grids of all GPUs takes the place of a gather.
// table (LAYERS * ENTRIES + 3 + RANKS) addresses: of each layer norms, bias, norms of heads, matrices, window; logits layer,
// last norm, embeddings; memory of every GPU. caches (LAYERS) addresses, angles (., SIZE / 2, 2), told (the state) -> scratch
// Memory: words [0] barriers of all grids, [32] of this one, [64] and [65] where both stand; from AT_MIXED on rows.
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, block = blockIdx.x;
const int rows = told[1], logits_from = told[STATE_LOGITS], capacity = told[STATE_PIECES + 4];
const bool chooses = told[STATE_SHOWS] != 0;
int position = told[0], token_turn = 0;
unsigned long long* address = reinterpret_cast<unsigned long long*>(shared_memory);
unsigned long long* counters = address + ADDRESSES;
int* state = reinterpret_cast<int*>(counters + WARPS * STAGES);  // the block's own copy, which goes on with its own tokens
int* chosen = state + STATE_SIZE;
float* adding = reinterpret_cast<float*>(state + STATE_WORDS);
float* sums = adding + 64;
float* room = sums + (ROWS == 1 ? 2 * SUMS : 0);  // of a row that is multiplied, or of attention
char* rings = reinterpret_cast<char*>(shared_memory) + RINGS_AT;
for (int i = tid; i < ADDRESSES; i += THREADS) address[i] = i < LAYERS * ENTRIES + 3 + RANKS ? (unsigned long long)table[i] : 0;
for (int i = tid; i < STATE_SIZE; i += THREADS) state[i] = told[i];
if (tid < WARPS * STAGES) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(counters + tid)) : "memory");
}
asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
BARRIER();
const bool scores = rows > logits_from;
const int last_number = 4 * LAYERS - (scores ? 0 : 1);
Ring ring(rings, counters, Feed(address, last_number));
ring.fill();
int turns = 0;

auto memory_of = [&](int rank) { return reinterpret_cast<char*>(address[LAYERS * ENTRIES + 3 + rank]); };
#define ENTRY(type, layer, entry) reinterpret_cast<const type*>(address[(layer) * ENTRIES + (entry)])
char* own = memory_of(RANK);
GridsBarrier meet(reinterpret_cast<unsigned*>(own));
float *x = scratch + AT_X, *qkv = scratch + AT_QKV, *splits = scratch + AT_SPLITS;
act_t* made = reinterpret_cast<act_t*>(scratch + AT_MADE);
unsigned* arrivals = reinterpret_cast<unsigned*>(scratch);
auto meet_all = [&] { meet.wait_all([&](int rank) { return reinterpret_cast<unsigned*>(memory_of(rank)); }); };

// Makes the row of a multiplication that has a norm: what was returned is added to the residual stream. Threads stand for
// NORM_WARPS warps of norm.cu, each for two of them where there are more than WARPS.
auto norm_row = [&](int row, const float* from, const float* returned, float* to, const float* weight, act_t* activation, int place) {
  constexpr int TIMES = (NORM_WARPS + WARPS - 1) / WARPS;
  float value[TIMES][NORM_OWN], square[TIMES];
  // All loads of a kind first: one by one each would wait for the memory.
  auto each = [&](auto use) {
#pragma unroll
    for (int n = 0; n < TIMES; ++n) {
#pragma unroll
      for (int j = 0; j < NORM_OWN; ++j) {
        const int thread = n * THREADS + tid, i = thread * NORM_OWN + j;
        use(value[n][j], i, thread < NORM_WARPS * 32 && i < HIDDEN);
      }
    }
  };
  if (from) {
    each([&](float& v, int i, bool there) { v = there ? __ldcg(from + i) : 0.0f; });
  } else {
    const weight_t* table = ENTRY(weight_t, LAYERS, 2) + (size_t)state[2 + row] * HIDDEN;
    each([&](float& v, int i, bool there) { v = there ? to_float(table[i]) : 0.0f; });
  }
  if (returned) each([&](float& v, int i, bool there) { v = there ? fmaf(__ldcg(returned + i), 1.0f, v) : 0.0f; });
  if (to) {
    each([&](float& v, int i, bool there) {
      if (there) to[i] = v;
    });
  }
#pragma unroll
  for (int n = 0; n < TIMES; ++n) {
    square[n] = 0;
#pragma unroll
    for (int j = 0; j < NORM_OWN; ++j) square[n] += value[n][j] * value[n][j];
    square[n] = lane_sum(square[n]);
  }
  BARRIER();
#pragma unroll
  for (int n = 0; n < TIMES; ++n) {
    if (tid % 32 == 0 && n * WARPS + tid / 32 < 32) adding[n * WARPS + tid / 32] = square[n];
  }
  BARRIER();
  const float total = lane_sum(tid % 32 < NORM_WARPS ? adding[tid % 32] : 0.0f);
  const float scale = 1.0f / square_root(total / HIDDEN + EPSILON);
#pragma unroll
  for (int n = 0; n < TIMES; ++n) {
#pragma unroll
    for (int j = 0; j < NORM_OWN; ++j) {
      const int thread = n * THREADS + tid, i = thread * NORM_OWN + j;
      if (thread < NORM_WARPS * 32 && i < HIDDEN_PAD) {
        put_activation(activation, place, HIDDEN_PAD, i, i < HIDDEN ? value[n][j] * scale * weight[i] : 0.0f);
      }
    }
  }
};

// The rows that a multiplication takes, from `first` on: where they lie.
int side = 0;
auto make = [&](int number, int layer, int site, int first) -> const act_t* {
  const char* other = own + (site == 1 ? AT_MIXED : AT_INNER);
  if (site == 1 || site == 3) {
#if ROWS == 1
    const int words = SPLIT * (site == 1 ? MIXED_PAD : INNER_PAD) / 8;
#pragma unroll 4
    for (int i = tid; i < words; i += THREADS) reinterpret_cast<uint4*>(room)[i] = __ldcg(reinterpret_cast<const uint4*>(other) + i);
    BARRIER();
    return reinterpret_cast<act_t*>(room);
#else
    return reinterpret_cast<const act_t*>(other);
#endif
  }
  const float* weight = site == 4 ? ENTRY(float, LAYERS, 1) : ENTRY(float, layer, site / 2);
  const float* returned = number == 0 ? nullptr : reinterpret_cast<const float*>(own + (site == 2 ? AT_OUT : AT_DOWN));
#if ROWS == 1
  // Every block makes it by itself; block 0 writes the sum to one place while all read from the other.
  norm_row(0, number == 0 ? nullptr : x + side * HIDDEN, returned, block == 0 ? x + (1 - side) * HIDDEN : nullptr, weight,
           reinterpret_cast<act_t*>(room), 0);
  side = 1 - side;
  BARRIER();
  return reinterpret_cast<act_t*>(room);
#else
  for (int row = first + block; row < rows; row += GRID) {
    float* stream = x + (size_t)row * HIDDEN;
    norm_row(row, number == 0 ? nullptr : stream, returned ? returned + (size_t)row * HIDDEN : nullptr, stream, weight, made, row - first);
  }
  meet.wait();
  return made;
#endif
};

#include "ranks_attention"

float* choices = reinterpret_cast<float*>(own + AT_CHOICES) + CHOICE_WORDS;
#pragma unroll 1
for (;; ++token_turn) {
#pragma unroll 1
for (int number = 0; number <= last_number; ++number) {
  const int site = number == 4 * LAYERS ? 4 : number % 4, layer = number / 4, first = site == 4 ? logits_from : 0;
  const act_t* activation = make(number, layer, site, first);
  const Work work(site);
  const int width = site == 1 ? MIXED_PAD : site == 3 ? INNER_PAD : HIDDEN_PAD;
  multiply_all(ring, work, width, activation, rows - first, sums, turns, [&](int, int tile, int row, int o, float value, float up) {
    const int output = tile * 16 + o;
    if (site == 0) {
      if (output < OWN_QKV) qkv[(size_t)row * OWN_QKV + output] = value;
    } else if (site == 2) {
      const int column = tile * 8 + o;
      const float inner = gated<0>(value, up);
      if (column < OWN_INNER) {
        for (int rank = 0; rank < RANKS; ++rank) {
          put_activation(reinterpret_cast<act_t*>(memory_of(rank) + AT_INNER), row, INNER_PAD, INNER_FROM + column, inner);
        }
      }
    } else if (site == 4) {
      if (output < OWN_HEAD) {
        for (int rank = 0; rank < RANKS; ++rank) {
          reinterpret_cast<float*>(memory_of(rank) + AT_LOGITS)[(size_t)row * VOCAB + HEAD_FROM + output] = value;
        }
      }
    } else if (output < OWN_HIDDEN) {
      for (int rank = 0; rank < RANKS; ++rank) {
        reinterpret_cast<float*>(memory_of(rank) + (site == 1 ? AT_OUT : AT_DOWN))[(size_t)row * HIDDEN + HIDDEN_FROM + output] = value;
      }
    }
  });
  if (site == 0) {
    meet.wait();
    attend_all(layer);
  }
  meet_all();
}
if (!chooses || !scores) break;
const bool may_go_on = token_turn < state[STATE_AHEAD];
if (may_go_on) {
  ring.feed = Feed(address, last_number);
  ring.fill();
}
const float* logits = reinterpret_cast<const float*>(own + AT_LOGITS);
#pragma unroll 1
for (int row = 0; row < rows - logits_from; ++row) {
  look_at_row(row, [&](int r, int i) {
    float value[4];
    for (int e = 0; e < 4; ++e) value[e] = i + e < VOCAB ? __ldcg(logits + (size_t)r * VOCAB + i + e) : 0.0f;
    return float4{value[0], value[1], value[2], value[3]};
  }, nullptr, scratch + AT_FOUND, nullptr, sums);
}
meet.wait();
choose_rows(rows - logits_from, scratch + AT_FOUND, chosen, choices + token_turn * (rows - logits_from) * CHOICE_WORDS);
if (!goes_on(state, rows, token_turn, chosen)) {
  if (may_go_on) ring.drop();
  break;
}
++position;
}
if (block == 0 && tid == 0) choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
meet.leave();
