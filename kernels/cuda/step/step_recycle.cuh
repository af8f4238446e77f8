// Drafts that a launch makes of its own: a tree of tokens for the next turn, from what followed the end of the text before
// and from the tokens that were likeliest after each token lately. Block 0 drafts and learns; all blocks verify.
// Sources: prompt lookup (Saxena 2023), token recycling (Luo et al. 2408.08696), SpecInfer's trees (Miao et al. 2305.09781).
// Memory, int32: a shape for each class of matches, the plan of a turn, the text, and TOP successors of every token.
namespace specdec {
#if RECYCLES

constexpr int NARROW = 4, SHAPE_ROWS = 16, PLAN_AT = 128, TEXT_AT = 192, LONGEST_MATCH = 24, ON_TRUNK = 255;
constexpr int RECYCLE_WIDTH = STATE_RECYCLE, RECYCLE_TEXT = STATE_RECYCLE + 1, RECYCLE_MEMORY = STATE_RECYCLE + 2;
constexpr int RECYCLE_RESET = STATE_RECYCLE + 4, RECYCLE_SLOTS = STATE_RECYCLE + 5, RECYCLE_LIMIT = STATE_RECYCLE + 6;
constexpr int RECYCLE_ROOM = STATE_RECYCLE + 7;

DEVICE int* recycle_memory(const int* state) {
  const unsigned low = state[RECYCLE_MEMORY], high = state[RECYCLE_MEMORY + 1];
  return reinterpret_cast<int*>((unsigned long long)high << 32 | low);
}
DEVICE int* successors_in(int* memory, const int* state) { return memory + TEXT_AT + state[RECYCLE_ROOM]; }

// Forgets what followed which token; all blocks together.
DEVICE void forget_successors(int* memory, const int* state) {
  int4* table = reinterpret_cast<int4*>(successors_in(memory, state));
  for (int at = blockIdx.x * THREADS + threadIdx.x; at < VOCAB * (TOP / 4); at += GRID * THREADS) {
    table[at] = int4{-1, -1, -1, -1};
  }
}

// The class of a match of that many tokens, which has a shape of its own.
DEVICE int match_class(int same) { return same < 4 ? same : same < 6 ? 4 : same < 9 ? 5 : 6; }

// Where the longest end of the text that occurred before continues, of several the latest: its length << 26 | place, the
// same in each lane of the first warp.
DEVICE int find_match(const int* text, int length, int* scratch) {
  const int tid = threadIdx.x, lane = tid % 32;
  int best = 0;
  for (int place = 1 + tid; place < length; place += THREADS) {
    int same = 0;
    while (same < LONGEST_MATCH && same < place && text[place - 1 - same] == text[length - 1 - same]) ++same;
    const int found = same << 26 | place;
    if (same && found > best) best = found;
  }
  best = __reduce_max_sync(EVERY_LANE, best);
  if (lane == 0) scratch[tid / 32] = best;
  BARRIER();
  return __reduce_max_sync(EVERY_LANE, lane < WARPS ? scratch[lane] : 0);
}

// Block 0: the rows of the next turn, to the plan: their number, tokens, and the row that each follows. A row of a shape is
// the row that it follows | rank << 8 | depth << 16 | 1 << 24 where it follows the trunk, or -1. On the trunk lies what
// followed the match; another row is the token of its rank among the successors of the one that it follows, those on the
// trunk left out. Rows whose token is not known go. After a match of less than two tokens half the rows do.
DEVICE void draft_rows(int* memory, const int* state, int position, int* scratch) {
  int* text = memory + TEXT_AT;
  const int length = state[RECYCLE_TEXT], match = find_match(text, length, scratch);
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x, same = match >> 26, from = match & ((1 << 26) - 1);
  const int kind = match_class(same), wide = state[RECYCLE_WIDTH], half = wide / 2 < NARROW ? NARROW : wide / 2;
  const int width = kind >= 2 || half > wide ? wide : half;
  const int word = lane > 0 && lane < width ? memory[kind * SHAPE_ROWS + lane] : -1;
  const int follows = word & 31, rank = word >> 8 & 255, depth = word < 0 ? 0 : word >> 16 & 255;
  const bool beside = word >> 24 & 1;
  const int deepest = state[RECYCLE_LIMIT] - length - 1;
  const int trunk = same && depth ? text[from + (depth - 1) % (length - from)] : -1;  // at the row's depth
  int token = lane ? -1 : text[length - 1];
#pragma unroll 1
  for (int d = 1; d < SHAPE_ROWS && __any_sync(EVERY_LANE, depth >= d); ++d) {
    const int before = __shfl_sync(EVERY_LANE, token, follows);
    if (depth != d || before < 0 || d > deepest) continue;
    if (rank == ON_TRUNK) {
      token = trunk;
      continue;
    }
    const int4* known = reinterpret_cast<const int4*>(successors_in(memory, state) + (size_t)before * TOP);
    const int4 low = known[0], high = known[1];
    const int next[TOP] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    int left = rank;
#pragma unroll
    for (int e = 0; e < TOP; ++e) {
      if (beside && next[e] == trunk) continue;
      if (left-- == 0) token = next[e];
    }
  }
  const unsigned there = __ballot_sync(EVERY_LANE, token >= 0);
  const int place = __popc(there & ((1u << lane) - 1)), parent = __shfl_sync(EVERY_LANE, place, follows);
  const int room = state[RECYCLE_SLOTS] - position, count = __popc(there), rows = count < room ? count : room;
  int* plan = memory + PLAN_AT;
  if (lane == 0) plan[0] = rows;
  if (token >= 0 && place < rows) plan[1 + place] = token, plan[1 + SHAPE_ROWS + place] = lane ? parent : -1;
}

// Takes the rows of the plan into the block's state, after a grid barrier; returns their number.
DEVICE int take_plan(const int* memory, int* state, int* parents, int position) {
  const int tid = threadIdx.x;
  const int* plan = memory + PLAN_AT;
  const int rows = __ldcg(plan);
  BARRIER();
  if (tid < rows) state[2 + tid] = __ldcg(plan + 1 + tid), parents[tid] = __ldcg(plan + 1 + SHAPE_ROWS + tid);
  BARRIER();
  if (tid < rows) {
    int depth = 0;
    for (int row = parents[tid]; row >= 0; row = parents[row]) ++depth;
    unsigned char* path = reinterpret_cast<unsigned char*>(state + STATE_PATHS + tid * PATH_WORDS);
    for (int row = tid, at = depth; at >= 0; row = parents[row], --at) path[at] = (unsigned char)row;
    state[STATE_PLACES + tid] = position + depth;
  }
  if (tid == 0) state[STATE_PIECES + 2] = state[STATE_PIECES + 3] = position;
  BARRIER();
  return rows;
}

// The path of rows whose tokens the verifier chose, from row 0 on: path[0] is their number.
DEVICE void find_path(const int* state, const int* parents, const int* chosen, int rows, int* path) {
  if (threadIdx.x == 0) {
    int count = 1, last = 0;
    path[1] = 0;
    for (int row = 1; row < rows; ++row) {
      if (parents[row] == last && state[2 + row] == chosen[last]) last = row, path[1 + count++] = row;
    }
    path[0] = count;
  }
  BARRIER();
}

// Moves keys and values of the path to slots one after the other; all blocks together.
DEVICE void keep_path(half_t* cache, int capacity, int position, const int* path) {
  constexpr int PIECES_EACH = SIZE / 4;
  const int count = path[0];
  if (path[count] == count - 1) return;
  for (int at = blockIdx.x * THREADS + threadIdx.x; at < LAYERS * 2 * KV_HEADS * PIECES_EACH; at += GRID * THREADS) {
    half_t* column = cache + (size_t)(at / PIECES_EACH) * capacity * SIZE + at % PIECES_EACH * 4;
    for (int j = 1; j < count; ++j) {
      const int row = path[1 + j];
      if (row == j) continue;
      const uint2 moved = __ldcg(reinterpret_cast<const uint2*>(column + (size_t)(position + row) * SIZE));
      *reinterpret_cast<uint2*>(column + (size_t)(position + j) * SIZE) = moved;
    }
  }
}

// Block 0: adds the turn's tokens to the text and notes the likeliest successors of every row's token; those of the path
// last, which have seen the text as it is. What the rows were goes to `out`, beside their choices. `best` holds
// 16 * TOP numbers.
DEVICE void learn_rows(int* memory, const int* state, const int* parents, const int* chosen, const int* path, int rows,
                       const uint2* tops, float* out, int* best) {
  const int tid = threadIdx.x, lane = tid % 32;
  for (int row = tid / 32; row < rows; row += WARPS) {
    uint2 top = {0, 0xffffffffu};
#pragma unroll 1
    for (int block = lane; block - lane < GRID; block += 32) {
      unsigned rank[TOP + 1];
      int token[TOP + 1];
#pragma unroll
      for (int e = 0; e < TOP; ++e) {
        const uint2 one = block < GRID ? __ldcg(tops + (size_t)(row * GRID + block) * TOP + e) : uint2{0, 0};
        rank[e] = one.x, token[e] = int(one.y);
      }
      rank[TOP] = top.x, token[TOP] = int(top.y);
      top = warp_top(rank, token);
    }
    if (lane < TOP) best[row * TOP + lane] = int(top.y);
  }
  BARRIER();
  if (tid < TOP) {
    int* table = successors_in(memory, state) + tid;
    for (int row = 0; row < rows; ++row) table[(size_t)state[2 + row] * TOP] = best[row * TOP + tid];
    for (int j = 0; j < path[0]; ++j) table[(size_t)state[2 + path[1 + j]] * TOP] = best[path[1 + j] * TOP + tid];
  }
  if (tid < rows) {
    out[tid * CHOICE_WORDS + 5] = __int_as_float(state[2 + tid]);
    out[tid * CHOICE_WORDS + 6] = __int_as_float(parents[tid]);
    out[tid * CHOICE_WORDS + 7] = __int_as_float(rows);
  }
  if (tid < path[0]) memory[TEXT_AT + state[RECYCLE_TEXT] + tid] = chosen[path[1 + tid]];
  BARRIER();
}

// Whether another turn follows: after `turn` others, unless the text has ended or there is no room for another token.
DEVICE bool drafts_on(int* state, int turn, const int* chosen, const int* path, int position) {
  const int count = path[0], length = state[RECYCLE_TEXT] + count;
  bool ended = turn >= state[STATE_AHEAD] || length >= state[RECYCLE_LIMIT] || position + count >= state[RECYCLE_SLOTS];
  for (int j = 0; j < count; ++j) {
    for (int end = 0; end < MOST_ENDS; ++end) ended = ended || state[STATE_ENDS + end] == chosen[path[1 + j]] + 1;
  }
  BARRIER();
  if (threadIdx.x == 0) state[RECYCLE_TEXT] = length;
  BARRIER();
  return !ended;
}

#endif
}  // namespace specdec
