// The end of a turn of a launch that drafts for itself, and the rows of the next one: step_recycle.cuh.
#if RECYCLES
if (recycled) {
  float* turn_choices = choices + token_turn * ROWS * CHOICE_WORDS;
  int* best = reinterpret_cast<int*>(room);
  bool goes;
  if (state[RECYCLE_MODE] == SURVEYS) {
    if (block == 0) gather_tops(rows, tops, best), show_tops(rows, best, turn_choices);
    goes = surveys_on(state, token_turn);
  } else {
    choose_rows(rows, found, chosen, turn_choices);
    find_path(state, parents, chosen, rows, path);
    keep_path(const_cast<half_t*>(cache), capacity, position, path);
    if (block == 0) {
      gather_tops(rows, tops, best);
      learn_rows(recycled, state, parents, chosen, path, rows, best, turn_choices);
    }
    goes = drafts_on(state, token_turn, chosen, path, position);
    position += path[0];
  }
  if (!goes) break;
  if (block == 0) plan_rows(recycled, state, position, token_turn + 1, numbers);
  grid_barrier.wait();
  rows = take_plan(recycled, state, parents, position);
  continue;
}
#endif
