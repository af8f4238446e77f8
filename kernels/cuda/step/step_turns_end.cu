// The end of a turn of a launch that drafts for itself, and the rows of the next one: step_recycle.cuh.
#if RECYCLES
if (recycled) {
  float* turn_choices = choices + token_turn * ROWS * CHOICE_WORDS;
  choose_rows(rows, found, chosen, turn_choices);
  find_path(state, parents, chosen, rows, path);
  keep_path(const_cast<half_t*>(cache), capacity, position, path);
  if (block == 0) learn_rows(recycled, state, parents, chosen, path, rows, tops, turn_choices, reinterpret_cast<int*>(room));
  const bool goes = drafts_on(state, token_turn, chosen, path, position);
  position += path[0];
  if (!goes) break;
  if (block == 0) draft_rows(recycled, state, position, numbers);
  grid_barrier.wait();
  rows = take_plan(recycled, state, parents, position);
  continue;
}
#endif
