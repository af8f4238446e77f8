// Outputs of a row from the neurons that it used: by rising tree; in a tree nodes from the root down, neurons of the leaf,
// the leaf's bias. One thread has one output.
// leaves (ROWS, TREES), active (ROWS, TREES, USED), node_output (TREES, NODES, OUTPUTS), output_weight (TREES, LEAVES,
// WIDTH, OUTPUTS), output_bias -> y (ROWS, OUTPUTS)
const int row = threadgroup_position_in_grid.y;
const int o = threadgroup_position_in_grid.x * THREADS + thread_position_in_threadgroup.x;
if (o >= OUTPUTS) return;
float sum = 0;
for (int tree = 0; tree < TREES; ++tree) {
  const int leaf = leaves[row * TREES + tree];
  const ulong from = ((ulong)row * TREES + tree) * USED;  // small arrays lie in another address space: no pointers
#if PATH
  for (int level = 0; level < DEPTH; ++level) {
    const ulong one = (ulong)tree * NODES + (ulong)(((leaf + LEAVES) >> (DEPTH - level)) - 1);
    sum = fma(active[from + level], to_float(node_output[one * OUTPUTS + o]), sum);
  }
#endif
  const ulong first = ((ulong)tree * LEAVES + leaf) * WIDTH;
  for (int j = 0; j < WIDTH; ++j) {
    sum = fma(active[from + USED - WIDTH + j], to_float(output_weight[(first + j) * OUTPUTS + o]), sum);
  }
#if BIASED
  sum += output_bias[((ulong)tree * LEAVES + leaf) * OUTPUTS + o];
#endif
}
y[(ulong)row * OUTPUTS + o] = sum;
