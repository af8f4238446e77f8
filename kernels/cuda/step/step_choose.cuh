// The likeliest token of every row of a step, and the shape of its distribution, so that logits need not leave the GPU and
// a launch can go on with its own tokens. Every block looks at its part of the logits; after a grid barrier each block adds
// up what all of them found, in the order of blocks.
namespace specdec {

// What is known of the logits looked at so far.
struct Choice {
  float most, second;  // the two largest
  float weight;        // sum of exp(logit - most)
  float moment;        // sum of exp(logit - most) * (logit - most)
  int token;           // of the largest, the first of equal ones; NaN counts as largest. -1: nothing was looked at

  DEVICE static Choice none() { return Choice{MINUS_INFINITY, MINUS_INFINITY, 0.0f, 0.0f, -1}; }
  DEVICE static Choice of(float logit, int token) { return Choice{logit, MINUS_INFINITY, 1.0f, 0.0f, token}; }
};

DEVICE bool comes_before(const Choice& a, const Choice& b) {
  if (a.token < 0 || b.token < 0) return b.token < 0;
  const bool a_wrong = a.most != a.most, b_wrong = b.most != b.most;
  if (a_wrong != b_wrong) return a_wrong;
  return a_wrong || a.most == b.most ? a.token < b.token : a.most > b.most;
}

DEVICE Choice together(const Choice& a, const Choice& b) {
  const bool first = comes_before(a, b);
  Choice kept = first ? a : b;
  const Choice other = first ? b : a;
  if (other.token < 0) return kept;
  kept.second = fmaxf(kept.second, other.most);
  const float distance = other.most - kept.most, share = exponential(distance);
  if (share > 0) {
    kept.weight = fmaf(share, other.weight, kept.weight);
    kept.moment = fmaf(share, fmaf(distance, other.weight, other.moment), kept.moment);
  }
  return kept;
}

DEVICE Choice other_lane(const Choice& value, int mask) {
  return Choice{shuffle_xor(value.most, mask), shuffle_xor(value.second, mask), shuffle_xor(value.weight, mask),
                shuffle_xor(value.moment, mask), __shfl_xor_sync(EVERY_LANE, value.token, mask)};
}
// Of all lanes together, the same in each.
DEVICE Choice lane_choice(Choice value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) value = together(value, other_lane(value, mask));
  return value;
}

DEVICE void put_choice(float* to, const Choice& choice) {
  *reinterpret_cast<float4*>(to) = float4{choice.most, choice.second, choice.weight, choice.moment};
  to[4] = __int_as_float(choice.token);
}
// From what other blocks wrote, and from shared memory.
DEVICE Choice get_choice(const float* from) {
  const float4 four = load_float4(from);
  return Choice{four.x, four.y, four.z, four.w, __float_as_int(__ldcg(from + 4))};
}
DEVICE Choice read_choice(const float* from) {
  return Choice{from[0], from[1], from[2], from[3], __float_as_int(from[4])};
}

#if RECYCLES
// The likeliest tokens of rows, for drafts: `step_recycle.cuh`. A candidate is a rank and a token.
constexpr int TOP = SUCCESSORS;

// A number that is larger the larger the logit, and equal for equal ones; above 0, and NaN is the largest.
DEVICE unsigned rank_of(float logit) {
  const unsigned bits = bits_of(__fadd_rn(logit, 0.0f));
  return logit != logit ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Lane j gets the candidate that is number j of those of all lanes: by rank, of equal ones by the lower token. Rank 0 is
// none. Takes the candidates away.
template <int COUNT>
DEVICE uint2 warp_top(unsigned (&rank)[COUNT], int (&token)[COUNT]) {
  const int lane = threadIdx.x % 32;
  uint2 mine = {0, 0xffffffffu};
#pragma unroll 1
  for (int j = 0; j < TOP; ++j) {
    unsigned most = 0, first = 0xffffffffu;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) most = rank[c] > most ? rank[c] : most;
    most = __reduce_max_sync(EVERY_LANE, most);
    if (most == 0) break;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) first = rank[c] == most && unsigned(token[c]) < first ? unsigned(token[c]) : first;
    first = __reduce_min_sync(EVERY_LANE, first);
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
      if (rank[c] == most && unsigned(token[c]) == first) rank[c] = 0;
    }
    if (lane == j) mine = uint2{most, first};
  }
  return mine;
}
#endif

// The block's part of a row's logits: `four` gives those of token 4 i and the three after it. Where they are wanted they
// go to `logits`, the row's choice so far to `found`, and its likeliest tokens so far to `tops`. `scratch` holds
// WARPS * (CHOICE_WORDS + 2 * TOP) floats.
template <class F>
DEVICE void look_at_row(int row, F four, float* logits, float* found, [[maybe_unused]] uint2* tops, float* scratch) {
  const int tid = threadIdx.x;
  Choice choice = Choice::none();
#if RECYCLES
  const int lane = tid % 32;
  uint2 top = {0, 0xffffffffu};
#endif
#pragma unroll 1
  for (int start = blockIdx.x * THREADS * 4; start < VOCAB; start += GRID * THREADS * 4) {
    const int i = start + tid * 4;
    const float4 v = i < VOCAB ? four(row, i) : float4{0, 0, 0, 0};
    const float value[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e >= VOCAB) break;
      if (logits) logits[(size_t)row * VOCAB + i + e] = value[e];
      if (found) choice = together(choice, Choice::of(value[e], i + e));
    }
#if RECYCLES
    if (tops) {
      unsigned rank[5];
      int token[5];
#pragma unroll
      for (int e = 0; e < 4; ++e) rank[e] = i + e < VOCAB ? rank_of(value[e]) : 0, token[e] = i + e;
      rank[4] = top.x, token[4] = int(top.y);
      top = warp_top(rank, token);
    }
#endif
  }
  if (!found) return;
  choice = lane_choice(choice);
  if (tid % 32 == 0) put_choice(scratch + tid / 32 * CHOICE_WORDS, choice);
#if RECYCLES
  uint2* held = reinterpret_cast<uint2*>(scratch + WARPS * CHOICE_WORDS);
  if (tops && lane < TOP) held[tid / 32 * TOP + lane] = top;
#endif
  BARRIER();
  if (tid < 32) {
    choice = lane_choice(tid < WARPS ? read_choice(scratch + tid * CHOICE_WORDS) : Choice::none());
    if (tid == 0) put_choice(found + (size_t)(row * GRID + blockIdx.x) * CHOICE_WORDS, choice);
  }
#if RECYCLES
  if (tops && tid / 32 == 1) {
    constexpr int EACH = (WARPS * TOP + 31) / 32;
    unsigned rank[EACH];
    int token[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const uint2 one = e * 32 + lane < WARPS * TOP ? held[e * 32 + lane] : uint2{0, 0};
      rank[e] = one.x, token[e] = int(one.y);
    }
    top = warp_top(rank, token);
    if (lane < TOP) tops[(size_t)(row * GRID + blockIdx.x) * TOP + lane] = top;
  }
#endif
  BARRIER();
}

// What all blocks found, after a grid barrier: a warp for each row. Tokens go to `chosen`, in shared memory, and with
// `margins` what they are ahead of the next ones by; block 0 writes the choices to `out`.
DEVICE void choose_rows(int rows, const float* found, int* chosen, float* out, float* margins = nullptr) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < rows; row += WARPS) {
    Choice choice = Choice::none();
    for (int block = lane; block < GRID; block += 32) {
      choice = together(choice, get_choice(found + (size_t)(row * GRID + block) * CHOICE_WORDS));
    }
    choice = lane_choice(choice);
    if (lane == 0) {
      chosen[row] = choice.token;
      if (margins) margins[row] = choice.most - choice.second;
      if (blockIdx.x == 0) put_choice(out + row * CHOICE_WORDS, choice);
    }
  }
  BARRIER();
}

// Whether a launch that may go on does: after `turn` tokens of every row, unless each row has come to an end, or, with
// `margins`, to a choice that is too close. Then every row goes on with its own token, one place further.
DEVICE bool goes_on(int* state, int rows, int turn, const int* chosen, const float* margins = nullptr) {
  if (turn >= state[STATE_AHEAD]) return false;
  bool all_ended = true;
  for (int row = 0; row < rows; ++row) {
    bool ended = margins && margins[row] < __int_as_float(state[STATE_MARGIN]);
    for (int end = 0; end < MOST_ENDS; ++end) ended = ended || state[STATE_ENDS + end] == chosen[row] + 1;
    all_ended = all_ended && ended;
  }
  BARRIER();
  if (all_ended) return false;
  for (int row = threadIdx.x; row < rows; row += THREADS) {
    state[2 + row] = chosen[row];
    ++state[STATE_PLACES + row];
    ++state[STATE_PIECES + row * PIECE_SIZE + 2];  // where its keys and values go, and its root
    ++state[STATE_PIECES + row * PIECE_SIZE + 3];
  }
  if (threadIdx.x == 0) ++state[0];
  BARRIER();
  return true;
}

// The end of turn `turn` of a launch: chooses the tokens of the last `count` of its rows, and whether it goes on with them.
DEVICE bool choose_and_go_on(int* state, int rows, int count, int turn, const float* found, int* chosen, float* choices,
                             float* margins = nullptr) {
  choose_rows(count, found, chosen, choices + turn * count * CHOICE_WORDS, margins);
  return goes_on(state, rows, turn, chosen, margins);
}

}  // namespace specdec
