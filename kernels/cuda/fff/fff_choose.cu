// The leaf that a row reaches in each tree, and the activations of the neurons that it uses on the way.
//
// A block has one row and one tree. Scores of STEP levels are computed together, a node by a warp, and then the path is
// followed: reading a level's weights takes as long as reading those of STEP levels, which do not wait for each other.
// x (ROWS, PADDED), node_weight (TREES, NODES, PADDED), node_bias, hidden_weight (TREES, LEAVES, WIDTH, PADDED),
// hidden_bias -> leaves (ROWS, TREES), active (ROWS, TREES, USED): of nodes, if they add to the output, then of the leaf
const int tid = threadIdx.x, tree = blockIdx.x, row = blockIdx.y;
const int warp = tid / 32, lane = tid % 32;
SHARED float found[1 << STEP];
const float* values = x + (size_t)row * PADDED;
float* to = active + ((size_t)row * TREES + tree) * USED;
int node = 0;
for (int level = 0; level < DEPTH; level += STEP) {
  const int levels = DEPTH - level < STEP ? DEPTH - level : STEP;
  for (int place = 1 + warp; place < (1 << levels); place += WARPS) {
    int down = 0;
    while ((place >> down) > 1) ++down;
    const size_t one = (size_t)tree * NODES + (size_t)(((node + 1) << down) - 1 + place - (1 << down));
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
  const size_t one = ((size_t)tree * LEAVES + leaf) * WIDTH + j;
  const float value = warp_dot<PADDED>(values, hidden_weight + one * PADDED, lane) + hidden_bias[one];
  if (lane == 0) to[USED - WIDTH + j] = activated<ACTIVATION>(value);
}
