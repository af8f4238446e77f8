// Turns that draft by themselves (step_recycle.cuh) as kernels before and after those of a pass: `tree_begin` drafts the rows,
// `tree_look` and `tree_end` choose tokens, keep the path and learn. They share `state`, whose words a step would have in
// shared memory; behind it is the progress of the turns. Rows that only fill a graph have a spare cache.
namespace specdec {

constexpr int TURN = STATE_SIZE, KEPT = STATE_SIZE + 1, GOES = STATE_SIZE + 2;  // turns that have ended, rows that the last kept
constexpr int POSITION = STATE_PIECES + 2, CAPACITY = STATE_PIECES + 4, CACHE = STATE_PIECES + 5;
constexpr int CHAINLESS = 0x7fffffff;  // root of a row that is not in a tree

DEVICE half_t* cache_in(const int* state) { return address_in<half_t>(state + CACHE); }

}  // namespace specdec

// Forgets other texts; GRID blocks.
extern "C" __global__ void __launch_bounds__(THREADS) tree_forget(const int* state) {
  forget_successors(recycle_memory(state), state);
}

// The rows of the next turn, or of none once the text has ended; one block. about (rows).
extern "C" __global__ void __launch_bounds__(THREADS)
    tree_begin(int* state, PromptRow* about, long long rows, half_t* spare, long long spare_capacity) {
  __shared__ int scratch[WARPS], parents[MOST_TREE];
  const int tid = threadIdx.x;
  after_others();
  const int position = state[POSITION] + state[KEPT];
  const bool goes = state[GOES];
  int* memory = recycle_memory(state);
  BARRIER();
  int count = 0;
  if (goes) {
    draft_rows(memory, state, position, scratch);
    BARRIER();
    count = take_plan(memory, state, parents, position);
  }
  if (tid < rows) {
    PromptRow row{0, 0, int(spare_capacity), 0, spare, 0, CHAINLESS};
    if (tid < count) {
      row = {state[2 + tid], state[STATE_PLACES + tid], state[CAPACITY], 0, cache_in(state), position + tid, position};
    }
    about[tid] = row;
  }
  if (tid == 0) state[1] = count;
}

// Looks at the logits of the turn's rows as the blocks of a step do; blocks: (GRID, rows).
extern "C" __global__ void __launch_bounds__(THREADS)
    tree_look(const int* state, const float* parts, long long all_rows, float* found, uint2* tops) {
  __shared__ __align__(16) float scratch[WARPS * (CHOICE_WORDS + 2 * TOP)];
  after_others();
  if (int(blockIdx.y) >= state[1]) return;
  look_at_row(
      blockIdx.y, [&](int row, int i) { return parts4(7, parts, int(all_rows), row, i); }, nullptr, found, tops, scratch);
}

// The end of a turn. `shown` (turns, 1 + width, CHOICE_WORDS): before the rows, whether another turn follows.
extern "C" __global__ void __launch_bounds__(THREADS)
    tree_end(int* state, const float* found, const uint2* tops, long long width, float* shown) {
  __shared__ int chosen[MOST_TREE], parents[MOST_TREE], path[1 + MOST_TREE], best[MOST_TREE * TOP];
  const int tid = threadIdx.x;
  after_others();
  const int rows = state[1], position = state[POSITION];
  if (rows == 0) return;
  int* memory = recycle_memory(state);
  if (tid < rows) parents[tid] = memory[PLAN_AT + 1 + MOST_TREE + tid];
  float* out = shown;
  if (blockIdx.x == 0) out += (state[TURN] * (1 + width) + 1) * CHOICE_WORDS;
  choose_rows(rows, found, chosen, out);
  find_path(state, parents, chosen, rows, path);
  keep_path(cache_in(state), state[CAPACITY], position, path);
  if (blockIdx.x > 0) return;
  const int turn = state[TURN];
  gather_tops(rows, tops, best);
  learn_rows(memory, state, parents, chosen, path, rows, best, out);
  const bool goes = drafts_on(state, turn, chosen, path, position);
  if (tid == 0) {
    state[TURN] = turn + 1, state[KEPT] = path[0], state[GOES] = goes;
    out[-CHOICE_WORDS] = __int_as_float(goes);
  }
}
