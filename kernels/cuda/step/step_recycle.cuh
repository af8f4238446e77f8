// Drafts that a launch makes of its own: a tree of tokens for the next turn, from what followed the end of the text before
// and from the tokens that are likely after each token. Block 0 drafts and learns; all blocks verify.
// Sources: prompt lookup (Saxena 2023), token recycling (Luo et al. 2408.08696), SpecInfer's trees (Miao et al. 2305.09781),
// grown by the likeliest row (EAGLE-2, Li et al. 2406.16858).
// Memory, int32: chances by match and by rank, the plan of a turn, the text, TOP successors of every token, and those that
// a text begins with.
namespace specdec {
#if RECYCLES

constexpr int MOST_TREE = 16, PLAN_AT = 64, TEXT_AT = 128, LONGEST_MATCH = 24, RANKS_AT = 32, SECOND_AT = 40;
constexpr int RECYCLE_WIDTH = STATE_RECYCLE, RECYCLE_TEXT = STATE_RECYCLE + 1, RECYCLE_MEMORY = STATE_RECYCLE + 2;
constexpr int RECYCLE_MODE = STATE_RECYCLE + 4, RECYCLE_SLOTS = STATE_RECYCLE + 5, RECYCLE_LIMIT = STATE_RECYCLE + 6;
constexpr int RECYCLE_ROOM = STATE_RECYCLE + 7;
constexpr int BEGINS = 1, SURVEYS = 2;  // modes: successors are those that a text begins with; a survey of tokens
constexpr int CHANCE_BITS = 10, CERTAIN = 1 << 20;  // chances are in parts of 1 << CHANCE_BITS, those of rows of CERTAIN

DEVICE int* recycle_memory(const int* state) { return address_in<int>(state + RECYCLE_MEMORY); }
DEVICE int* successors_in(int* memory, const int* state) { return memory + TEXT_AT + state[RECYCLE_ROOM]; }

// Forgets what followed which token in other texts; all blocks together.
DEVICE void forget_successors(int* memory, const int* state) {
  int4* table = reinterpret_cast<int4*>(successors_in(memory, state));
  constexpr int PIECES_OF_ALL = VOCAB * (TOP / 4);
  for (int at = blockIdx.x * THREADS + threadIdx.x; at < PIECES_OF_ALL; at += GRID * THREADS) {
    table[at] = table[PIECES_OF_ALL + at];
  }
}

// Where the longest end of the text that occurred before continues, of several the latest, and of those that `besides`
// followed none: its length << 26 | place, 0 for none, the same in each lane of every warp.
DEVICE int find_match(const int* text, int length, int besides, int* scratch) {
  const int tid = threadIdx.x, lane = tid % 32;
  int best = 0;
  for (int place = 1 + tid; place < length; place += THREADS) {
    int same = 0;
    while (same < LONGEST_MATCH && same < place && text[place - 1 - same] == text[length - 1 - same]) ++same;
    const int found = same << 26 | place;
    if (same && found > best && text[place] != besides) best = found;
  }
  best = __reduce_max_sync(EVERY_LANE, best);
  if (lane == 0) scratch[tid / 32] = best;
  BARRIER();
  best = __reduce_max_sync(EVERY_LANE, lane < WARPS ? scratch[lane] : 0);
  BARRIER();
  return best;
}

constexpr int PLACE = (1 << 26) - 1, NONE = -1;

// A row of a tree that grows, in a lane of its own, and what may follow it: what followed its match in the text, what
// followed a second match, and successors of its token; each until a row has taken it.
struct TreeRow {
  int token = NONE, parent = NONE, chance = 0, depth = 0, match = 0;  // a match is its length << 26 | where it goes on
  int trunk = NONE, trunk_chance = 0, other = NONE, other_chance = 0, left = 1 << CHANCE_BITS;
  int next[TOP] = {NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE};
  static_assert(TOP == 8, "successors of a token are two pieces of 16 bytes");

  DEVICE void follow(const int* text, int its_match, int its_chance) {
    match = its_match;
    if (match >> 26) trunk = text[match & PLACE], trunk_chance = its_chance, left -= its_chance;
  }
  DEVICE void follow_second(const int* text, int second, int its_chance) {
    other = text[second & PLACE], other_chance = its_chance * left >> CHANCE_BITS, left -= other_chance;
  }
  // A turn's weights have driven the table out of the L2 cache: what may be needed soon is asked for before it is.
  DEVICE void take_successors(const int4* table) {
    const int4 low = table[(size_t)token * 2], high = table[(size_t)token * 2 + 1];
    const int all[TOP] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int e = 0; e < TOP; ++e) {
      if (e < TOP / 2 && all[e] >= 0) ahead(table + (size_t)all[e] * 2);
      next[e] = all[e] == trunk || all[e] == other ? NONE : all[e];
    }
  }
  // The likeliest that is left: its chance, -1 for none, its token, and the match that goes on with it. A lane has the
  // chance of a rank.
  DEVICE int offer(int by_rank, int second, int& offered, int& goes_on) const {
    int rank = TOP;
    offered = NONE, goes_on = 0;
#pragma unroll
    for (int e = TOP - 1; e >= 0; --e) {
      if (next[e] >= 0) rank = e, offered = next[e];
    }
    const int of_rank = __shfl_sync(EVERY_LANE, by_rank, rank % TOP);
    int value = rank < TOP ? of_rank * left >> CHANCE_BITS : -1;
    if (other >= 0 && other_chance >= value) value = other_chance, offered = other, goes_on = second;
    if (trunk >= 0 && trunk_chance >= value) value = trunk_chance, offered = trunk, goes_on = match;
    return value;
  }
  DEVICE void give(int offered) {
    if (offered == trunk) trunk = NONE;
    if (offered == other) other = NONE;
#pragma unroll
    for (int e = 0; e < TOP; ++e) next[e] = next[e] == offered ? NONE : next[e];
  }
};

// Block 0: the rows of the next turn, to the plan: their number, tokens, and the row that each follows. Each lane offers the
// likeliest token after its row, and the likeliest of all becomes the next row.
DEVICE void draft_rows(int* memory, const int* state, int position, int* scratch) {
  const int* text = memory + TEXT_AT;
  const int length = state[RECYCLE_TEXT], first = find_match(text, length, NONE, scratch);
  const int from = first & PLACE, second = first ? find_match(text, length, text[from], scratch) : 0;
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x, room = state[RECYCLE_SLOTS] - position, wide = state[RECYCLE_WIDTH];
  const int most = wide < room ? wide : room, deepest = state[RECYCLE_LIMIT] - length - 1;
  const int by_match = memory[lane < LONGEST_MATCH ? lane : LONGEST_MATCH], by_rank = memory[RANKS_AT + lane % TOP];
  const int4* table = reinterpret_cast<const int4*>(successors_in(memory, state));
  if (first && lane < MOST_TREE) ahead(table + (size_t)text[from + lane % (length - from)] * 2);
  const int second_chance = __shfl_sync(EVERY_LANE, by_match, second >> 26) * memory[SECOND_AT] >> CHANCE_BITS;
  TreeRow row;
  int rows = 0, token = text[length - 1], parent = NONE, chance = CERTAIN, match = first, depth = 0;  // of the new row
#pragma unroll 1
  for (;;) {
    int same = match >> 26, place = match & PLACE;
    if (same && place >= length) place = from + (place - from) % (length - from);
    same = same < LONGEST_MATCH ? same : LONGEST_MATCH;
    const int its_chance = __shfl_sync(EVERY_LANE, by_match, same);
    if (lane == rows) {
      row.token = token, row.parent = parent, row.chance = chance, row.depth = depth;
      row.follow(text, same << 26 | place, its_chance);
      if (rows == 0 && second) row.follow_second(text, second, second_chance);
      row.take_successors(table);
    }
    if (++rows >= most) break;
    int offered, goes_on;
    const int value = row.offer(by_rank, second, offered, goes_on);
    const bool offers = lane < rows && value >= 0 && row.depth < deepest;
    const unsigned key = offers ? (unsigned(row.chance * value >> CHANCE_BITS) << 5 | (31 - lane)) + 1 : 0;
    const unsigned best = __reduce_max_sync(EVERY_LANE, key);
    if (best == 0) break;
    parent = 31 - int((best - 1) & 31), chance = int((best - 1) >> 5);
    token = __shfl_sync(EVERY_LANE, offered, parent), depth = __shfl_sync(EVERY_LANE, row.depth, parent) + 1;
    match = __shfl_sync(EVERY_LANE, goes_on, parent);
    if (match) match += (1 << 26) + 1;
    if (lane == parent) row.give(offered);
  }
  int* plan = memory + PLAN_AT;
  if (lane == 0) plan[0] = rows;
  if (lane < rows) plan[1 + lane] = row.token, plan[1 + MOST_TREE + lane] = row.parent;
}

// Block 0: the rows of a turn of a survey, to the plan: the pending token, and after it tokens of the text side by side.
DEVICE void list_rows(int* memory, const int* state, int turn) {
  const int lane = threadIdx.x, each = state[RECYCLE_WIDTH] - 1, begin = turn * each;
  const int left = state[RECYCLE_TEXT] - begin, rows = 1 + (left < each ? left : each);
  int* plan = memory + PLAN_AT;
  if (lane == 0) plan[0] = rows;
  if (lane < rows) plan[1 + lane] = lane ? memory[TEXT_AT + begin + lane - 1] : state[2];
  if (lane < rows) plan[1 + MOST_TREE + lane] = lane ? 0 : -1;
}

DEVICE void plan_rows(int* memory, const int* state, int position, int turn, int* scratch) {
  if (state[RECYCLE_MODE] == SURVEYS) {
    list_rows(memory, state, turn);
  } else {
    draft_rows(memory, state, position, scratch);
  }
}

// Takes the rows of the plan into the block's state, after a grid barrier; returns their number.
DEVICE int take_plan(const int* memory, int* state, int* parents, int position) {
  const int tid = threadIdx.x;
  const int* plan = memory + PLAN_AT;
  const int rows = __ldcg(plan);
  BARRIER();
  if (tid < rows) state[2 + tid] = __ldcg(plan + 1 + tid), parents[tid] = __ldcg(plan + 1 + MOST_TREE + tid);
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

// Block 0: the likeliest tokens of every row, of all that the blocks found. `best` holds MOST_TREE * TOP numbers.
DEVICE void gather_tops(int rows, const uint2* tops, int* best) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < rows; row += WARPS) {
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
}

// Block 0: adds the turn's tokens to the text and notes the likeliest successors of every row's token; those of the path
// last, which have seen the text as it is. What the rows were goes to `out`, beside their choices.
DEVICE void learn_rows(int* memory, const int* state, const int* parents, const int* chosen, const int* path, int rows,
                       const int* best, float* out) {
  const int tid = threadIdx.x;
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

// Block 0: what a survey has found, in place of choices: the likeliest tokens of every row.
DEVICE void show_tops(int rows, const int* best, float* out) {
  static_assert(CHOICE_WORDS == TOP, "a row's likeliest tokens take the place of its choice");
  for (int at = threadIdx.x; at < rows * TOP; at += THREADS) out[at] = __int_as_float(best[at]);
}
DEVICE bool surveys_on(const int* state, int turn) {
  return turn < state[STATE_AHEAD] && (turn + 1) * (state[RECYCLE_WIDTH] - 1) < state[RECYCLE_TEXT];
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
