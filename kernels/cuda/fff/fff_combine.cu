// Outputs of a row from the neurons that it used: by rising tree; in a tree nodes from the root down, neurons of the leaf,
// the leaf's bias. One thread has one output.
// leaves (ROWS, TREES), active (ROWS, TREES, USED), node_output (TREES, NODES, OUTPUTS), output_weight (TREES, LEAVES,
// WIDTH, OUTPUTS), output_bias -> y (ROWS, OUTPUTS)
const int row = blockIdx.y, o = blockIdx.x * THREADS + threadIdx.x;
if (o >= OUTPUTS) return;
float sum = 0;
for (int tree = 0; tree < TREES; ++tree) {
  const int leaf = leaves[row * TREES + tree];
  const size_t from = ((size_t)row * TREES + tree) * USED;
#if PATH
#pragma unroll
  for (int level = 0; level < DEPTH; ++level) {
    const size_t one = (size_t)tree * NODES + (size_t)(((leaf + LEAVES) >> (DEPTH - level)) - 1);
    sum = fmaf(active[from + level], to_float(node_output[one * OUTPUTS + o]), sum);
  }
#endif
  const size_t first = ((size_t)tree * LEAVES + leaf) * WIDTH;
#pragma unroll 8
  for (int j = 0; j < WIDTH; ++j) {
    sum = fmaf(active[from + USED - WIDTH + j], to_float(output_weight[(first + j) * OUTPUTS + o]), sum);
  }
#if BIASED
  sum += output_bias[((size_t)tree * LEAVES + leaf) * OUTPUTS + o];
#endif
}
y[(size_t)row * OUTPUTS + o] = sum;
