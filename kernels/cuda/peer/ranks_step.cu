// A whole step of one sequence at effort 1.0 in one kernel, on one of RANKS GPUs that divide the outputs of every matrix.
// The arithmetic is that of the kernels for each phase (norm.cu, dense.cu, rotate.cu, attention.cu, attention_sum.cu), bit
// for bit. A GPU writes its columns of every row that is multiplied next into the memory of all. Of a single row every value
// has a number beside it, by which those who wait know that it has come; of several rows a barrier over the grids of all
// GPUs says so. Numbers count layers. There are two places for the rows of a layer in turn: before a GPU sends anything of
// attention, all of its blocks have read the rows of the layer before, and who sends more has read what it sent.
// table (LAYERS * ENTRIES + 3 + RANKS) addresses: of each layer norms, bias, norms of heads, matrices, window; logits layer,
// last norm, embeddings; memory of every GPU. caches (LAYERS) addresses, angles (., SIZE / 2, 2), told (the state) -> scratch
// Memory: words [0] barriers of all grids, [32] of this one, [64] and [65] where both stand, [66] the last number; from
// AT_MIXED on rows.
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

// Words with a number: where those of this layer begin in the memory of a GPU, by what they are.
constexpr int STREAM_BYTES = 8 * HIDDEN, MIXED_BYTES = 4 * SPLIT * MIXED_PAD, INNER_BYTES = 4 * SPLIT * INNER_PAD;
auto words_of = [&](int rank, int at, int nbytes) { return memory_of(rank) + at + (meet.number & 1) * size_t(nbytes); };
// An output of the residual stream to all GPUs.
auto send_stream = [&](bool down, int row, int output, float value) {
  for (int rank = 0; rank < RANKS; ++rank) {
#if ROWS == 1
    put_word(words_of(rank, down ? AT_DOWN_WORDS : AT_OUT_WORDS, STREAM_BYTES) + (size_t)output * 8, bits_of(value), meet.number);
#else
    reinterpret_cast<float*>(memory_of(rank) + (down ? AT_DOWN : AT_OUT))[(size_t)row * HIDDEN + output] = value;
#endif
  }
};
// Activations of the columns of two lanes side by side, the first of which is even: in each part one word.
auto send_pair = [&](bool there, int at, int nbytes, int column, float value) {
  act_t own_parts[SPLIT];
  put_activation(own_parts, 0, 1, 0, value);
  unsigned words[SPLIT];
#pragma unroll
  for (int part = 0; part < SPLIT; ++part) {
    const unsigned mine = *reinterpret_cast<const unsigned short*>(own_parts + part);
    words[part] = mine | unsigned(__shfl_xor_sync(EVERY_LANE, int(mine), 1)) << 16;
  }
  if (!there || column % 2) return;
  for (int rank = 0; rank < RANKS; ++rank) {
    char* to = words_of(rank, at, nbytes) + (size_t)column * 4 * SPLIT;
#if SPLIT == 1
    put_word(to, words[0], meet.number);
#else
    put_record(to, words[0], words[1], meet.number);
#endif
  }
};

// Makes the row of a multiplication that has a norm: what was returned is added to the residual stream. Threads stand for
// NORM_WARPS warps of norm.cu, each for two of them where there are more than WARPS.
constexpr int TIMES = (NORM_WARPS + WARPS - 1) / WARPS;
using Part = float[TIMES][NORM_OWN];
auto each_of = [&](Part& values, auto use) {
#pragma unroll
  for (int n = 0; n < TIMES; ++n) {
#pragma unroll
    for (int j = 0; j < NORM_OWN; ++j) {
      const int thread = n * THREADS + tid, i = thread * NORM_OWN + j;
      use(values[n][j], i, thread < NORM_WARPS * 32 && i < HIDDEN);
    }
  }
};
auto add_returned = [&](Part& stream, int row, bool down) {
#if ROWS == 1
  constexpr int BESIDE = NORM_OWN % 2 ? 1 : 2, EACH = NORM_OWN / BESIDE;  // values of a record, records of a thread in turn
  const char* from = words_of(RANK, down ? AT_DOWN_WORDS : AT_OUT_WORDS, STREAM_BYTES) + tid * NORM_OWN * 8;
  auto offset = [](int k) { return (k / EACH * THREADS * NORM_OWN + k % EACH * BESIDE) * 8; };
  unsigned missing = 0;
#pragma unroll
  for (int k = 0; k < TIMES * EACH; ++k) {
    const int thread = k / EACH * THREADS + tid, i = thread * NORM_OWN + k % EACH * BESIDE;
    missing |= thread < NORM_WARPS * 32 && i < HIDDEN ? 1u << k : 0u;
  }
#if NORM_OWN % 2
  unsigned found[TIMES * EACH];
  wait_words(found, from, offset, missing, meet.number);
#else
  uint2 found[TIMES * EACH];
  wait_records(found, from, offset, missing, meet.number);
#endif
#pragma unroll
  for (int n = 0; n < TIMES; ++n) {
#pragma unroll
    for (int j = 0; j < NORM_OWN; ++j) {
      const int k = n * EACH + j / BESIDE;
#if NORM_OWN % 2
      const unsigned word = found[k];
#else
      const unsigned word = j % 2 ? found[k].y : found[k].x;
#endif
      stream[n][j] = missing >> k & 1 ? fmaf(__int_as_float(word), 1.0f, stream[n][j]) : 0.0f;
    }
  }
#else
  const float* from = reinterpret_cast<const float*>(own + (down ? AT_DOWN : AT_OUT)) + (size_t)row * HIDDEN;
  each_of(stream, [&](float& v, int i, bool there) { v = there ? fmaf(__ldcg(from + i), 1.0f, v) : 0.0f; });
#endif
};
auto norm_row = [&](Part& stream, auto weight_of, act_t* activation, int place) {
  float square[TIMES];
#pragma unroll
  for (int n = 0; n < TIMES; ++n) {
    square[n] = 0;
#pragma unroll
    for (int j = 0; j < NORM_OWN; ++j) square[n] += stream[n][j] * stream[n][j];
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
        put_activation(activation, place, HIDDEN_PAD, i, i < HIDDEN ? stream[n][j] * scale * weight_of(n, j, i) : 0.0f);
      }
    }
  }
};

// The rows that a multiplication takes, from `first` on: where they lie.
[[maybe_unused]] Part stream;  // of a single row, which every block makes by itself
auto make = [&](int number, int layer, int site, int first) -> const act_t* {
  if (site == 1 || site == 3) {
#if ROWS == 1
    constexpr int EACH = 4;
    const int width = site == 1 ? MIXED_PAD : INNER_PAD, used = site == 1 ? MIXED : INNER, all = width * SPLIT / 4;
    const char* from = site == 1 ? words_of(RANK, AT_MIXED_WORDS, MIXED_BYTES) : words_of(RANK, AT_INNER_WORDS, INNER_BYTES);
#pragma unroll 1
    for (int begin = tid; begin - tid < all; begin += EACH * THREADS) {
      uint2 both[EACH];
      unsigned missing = 0;
#pragma unroll
      for (int k = 0; k < EACH; ++k) missing |= (begin + k * THREADS) * 4 < used * SPLIT ? 1u << k : 0u;
      wait_records(both, from + (size_t)begin * 16, [](int k) { return k * THREADS * 16; }, missing, meet.number);
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        const int at = begin + k * THREADS;
        if (at >= all) break;
        if (!(missing >> k & 1)) both[k] = uint2{0, 0};
#if SPLIT == 1
        reinterpret_cast<uint2*>(room)[at] = both[k];
#else
        reinterpret_cast<unsigned*>(room)[at] = both[k].x;
        reinterpret_cast<unsigned*>(room)[width / 2 + at] = both[k].y;
#endif
      }
    }
    BARRIER();
    return reinterpret_cast<act_t*>(room);
#else
    return reinterpret_cast<const act_t*>(own + (site == 1 ? AT_MIXED : AT_INNER));
#endif
  }
  const float* weights = site == 4 ? ENTRY(float, LAYERS, 1) : ENTRY(float, layer, site / 2);
  auto begin = [&](Part& values, int row) {
    const weight_t* table = ENTRY(weight_t, LAYERS, 2) + (size_t)state[2 + row] * HIDDEN;
    each_of(values, [&](float& v, int i, bool there) { v = there ? to_float(table[i]) : 0.0f; });
  };
#if ROWS == 1
  Part weight;  // on its way before the row is
  each_of(weight, [&](float& v, int i, bool there) { v = there ? weights[i] : 0.0f; });
  if (number == 0) begin(stream, 0);
  else add_returned(stream, 0, site != 2);
  norm_row(stream, [&](int n, int j, int) { return weight[n][j]; }, reinterpret_cast<act_t*>(room), 0);
  BARRIER();
  return reinterpret_cast<act_t*>(room);
#else
  for (int row = first + block; row < rows; row += GRID) {
    float* kept = x + (size_t)row * HIDDEN;
    Part values;
    if (number == 0) {
      begin(values, row);
    } else {
      each_of(values, [&](float& v, int i, bool there) { v = there ? __ldcg(kept + i) : 0.0f; });
      add_returned(values, row, site != 2);
    }
    each_of(values, [&](float& v, int i, bool there) {
      if (there) kept[i] = v;
    });
    norm_row(values, [&](int, int, int i) { return weights[i]; }, made, row - first);
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
  if (site == 0) ask_for_history(layer);
  const act_t* activation = make(number, layer, site, first);
  if (site == 0) {
    ++meet.number;
#if ROWS == 1
    meet.arrive();
#endif
  }
  const Work work(site);
  const int width = site == 1 ? MIXED_PAD : site == 3 ? INNER_PAD : HIDDEN_PAD;
  multiply_all(ring, work, width, activation, rows - first, sums, turns, [&](bool there, int tile, int row, int o, float value, float up) {
    const int output = tile * 16 + o;
    if (site == 0) {
      if (!there || output >= OWN_QKV) return;
#if ROWS == 1
      put_word(words_of(RANK, AT_QKV_WORDS, 8 * OWN_QKV) + (size_t)output * 8, bits_of(value), meet.number);
#else
      qkv[(size_t)row * OWN_QKV + output] = value;
#endif
    } else if (site == 2) {
      const int column = tile * 8 + o;
      const float inner = gated<0>(value, up);
#if ROWS == 1
      send_pair(there && column < OWN_INNER, AT_INNER_WORDS, INNER_BYTES, INNER_FROM + column, inner);
#else
      if (!there || column >= OWN_INNER) return;
      for (int rank = 0; rank < RANKS; ++rank) {
        put_activation(reinterpret_cast<act_t*>(memory_of(rank) + AT_INNER), row, INNER_PAD, INNER_FROM + column, inner);
      }
#endif
    } else if (site == 4) {
      if (!there || output >= OWN_HEAD) return;
      for (int rank = 0; rank < RANKS; ++rank) {
        reinterpret_cast<float*>(memory_of(rank) + AT_LOGITS)[(size_t)row * VOCAB + HEAD_FROM + output] = value;
      }
    } else if (there && output < OWN_HIDDEN) {
      send_stream(site == 3, row, HIDDEN_FROM + output, value);
    }
  });
  if (site == 0) {
    if (ROWS > 1) meet.wait();
    attend_all(layer);
  }
  if (ROWS > 1 || site == 4) meet_all();
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
if (!choose_and_go_on(state, rows, rows - logits_from, token_turn, scratch + AT_FOUND, chosen, choices)) {
  if (may_go_on) ring.drop();
  break;
}
++position;
}
if (block == 0 && tid == 0) choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
meet.leave();
