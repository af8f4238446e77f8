// The first rows of a launch that drafts for itself, as the bodies of whole steps share it: step_recycle.cuh.
#if RECYCLES
// A launch that drafts has the rows of its first turn from there as well.
int *recycled = state[RECYCLE_WIDTH] ? recycle_memory(state) : nullptr, *parents = chosen + MOST_TREE;
int* path = parents + MOST_TREE;
uint2* tops = recycled ? reinterpret_cast<uint2*>(scratch + AT_TOPS) : nullptr;
if (recycled) {
  if (state[RECYCLE_MODE] == BEGINS) {
    forget_successors(recycled, state);
    grid_barrier.wait();
  }
  if (block == 0) plan_rows(recycled, state, position, 0, numbers);
  grid_barrier.wait();
  rows = take_plan(recycled, state, parents, position);
}
#else
constexpr uint2* tops = nullptr;
#endif
