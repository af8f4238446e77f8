// The leaf that a row reaches in each tree, and the activations of the neurons that it uses on the way.
//
// A threadgroup has one row and one tree. Scores of STEP levels are computed together, a node by a simdgroup, and then the
// path is followed: reading a level's weights takes as long as reading those of STEP levels, which do not wait for each
// other.
// x (ROWS, PADDED), node_weight (TREES, NODES, PADDED), node_bias, hidden_weight (TREES, LEAVES, WIDTH, PADDED),
// hidden_bias -> leaves (ROWS, TREES), active (ROWS, TREES, USED): of nodes, if they add to the output, then of the leaf
const int tid = thread_position_in_threadgroup.x;
const int tree = threadgroup_position_in_grid.x, row = threadgroup_position_in_grid.y;
const int warp = tid / 32, lane = tid % 32;
threadgroup float found[1 << STEP];
device const float* values = x + (ulong)row * PADDED;
device float* to = active + ((ulong)row * TREES + tree) * USED;
int node = 0;
for (int level = 0; level < DEPTH; level += STEP) {
  const int levels = DEPTH - level < STEP ? DEPTH - level : STEP;
  for (int place = 1 + warp; place < (1 << levels); place += WARPS) {
    int down = 0;
    while ((place >> down) > 1) ++down;
    const ulong one = (ulong)tree * NODES + (ulong)(((node + 1) << down) - 1 + place - (1 << down));
    const float score = warp_dot<PADDED>(values, node_weight + one * PADDED, lane) + node_bias[one];
    if (lane == 0) found[place] = score;
  }
  BARRIER();
  int place = 1;
  for (int j = 0; j < levels; ++j) {
    const float score = found[place];
#if PATH
    if (tid == 0) to[level + j] = activated<ACTIVATION>(score);
#endif
    place = 2 * place + (score >= 0 ? 1 : 0);
    node = 2 * node + 1 + (score >= 0 ? 1 : 0);
  }
  BARRIER();
}
const int leaf = node - NODES;
if (tid == 0) leaves[row * TREES + tree] = leaf;
for (int j = warp; j < WIDTH; j += WARPS) {
  const ulong one = ((ulong)tree * LEAVES + leaf) * WIDTH + j;
  const float value = warp_dot<PADDED>(values, hidden_weight + one * PADDED, lane) + hidden_bias[one];
  if (lane == 0) to[USED - WIDTH + j] = activated<ACTIVATION>(value);
}
