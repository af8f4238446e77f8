// Many rows times a 16-bit matrix on the tensor cores. Every output is summed as in a step of few rows (step_dense.cuh): the
// same products in the same order, new sums where a block or a warp of that step begins, and these added in the same
// order. So a prompt has the bits that its tokens have one by one. A warp has 16 outputs of MANY rows: a column of a
// product does not see its neighbours.
namespace specdec {

constexpr int MANY = 64, STAGE_UNITS = 2, PROMPT_STAGES = 4;
constexpr int UNIT_BYTES = MANY * 64 * SPLIT;  // of the rows: 32 inputs
constexpr int ROWS_STAGE = STAGE_UNITS * UNIT_BYTES;
constexpr int WARP_TOTALS = MANY * 16;  // floats

// Where sums end in a tile of a matrix: 1 after the last unit of a warp of the step, 2 after the last one of a block.
DEVICE void find_ends(const Matrix& m, int tile, unsigned char* ends) {
  for (int step = threadIdx.x % 32; step < m.steps; step += 32) {
    const int unit = tile * m.steps + step, block = m.block_of(unit);
    const int from = m.first(block), count = m.first(block + 1) - from;
    const int warp = ((unit - from + 1) * WARPS - 1) / count;
    const bool last = step + 1 == m.steps || unit + 1 == from + count;
    ends[step] = last ? 2 : unit + 1 == from + count * (warp + 1) / WARPS ? 1 : 0;
  }
}

// Asks for the inputs of a stage: (units, parts, rows, 64 bytes).
DEVICE void issue_rows(const act_t* activation, int width, int stage, char* to) {
  constexpr int EACH = STAGE_UNITS * 4;  // 16 bytes at a time of a row's part
  for (int at = threadIdx.x; at < MANY * SPLIT * EACH; at += blockDim.x) {
    const int piece = at % EACH, line = at / EACH;
    copy16(to + ((piece / 4 * SPLIT + line % SPLIT) * MANY + line / SPLIT) * 64 + piece % 4 * 16,
           activation + (size_t)line * width + stage * STAGE_UNITS * 32 + piece * 8);
  }
}

}  // namespace specdec

// activation (rows, SPLIT, steps * 32) -> sums (rows, tiles * 16); a block has MANY rows and a tile for each warp.
extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS, 2)
    prompt_multiply(long long tiles, long long steps, const uint4* weights, const act_t* activation, float* sums) {
  extern __shared__ uint4 shared_memory[];
  const Matrix m{int(tiles), int(steps)};
  char* ring = reinterpret_cast<char*>(shared_memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warps = blockDim.x / 32;
  float* totals = reinterpret_cast<float*>(ring + PROMPT_STAGES * ROWS_STAGE);
  float* total = totals + warp * WARP_TOTALS + lane;
  unsigned char* ends = reinterpret_cast<unsigned char*>(totals + warps * WARP_TOTALS) + warp * m.steps;
  const int row = blockIdx.x * MANY, own = blockIdx.y * warps + warp, width = m.steps * 32;
  const int tile = own < m.tiles ? own : m.tiles - 1, stages = m.steps / STAGE_UNITS;
  activation += (size_t)row * SPLIT * width;
#pragma unroll
  for (int stage = 0; stage < PROMPT_STAGES - 1; ++stage) {
    if (stage < stages) issue_rows(activation, width, stage, ring + stage * ROWS_STAGE);
    end_stage();
  }
  const uint4* from = weights + (size_t)tile * m.steps * 64 + lane;
  uint4 held[STAGE_UNITS][2];  // of this stage, then of the next one
#pragma unroll
  for (int u = 0; u < STAGE_UNITS; ++u) held[u][0] = __ldg(from + u * 64), held[u][1] = __ldg(from + u * 64 + 32);
  find_ends(m, tile, ends);
  WARP_BARRIER();
  float sum[MANY / 8][4] = {}, of_block[MANY / 8][4] = {};
  bool begun = false;

#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    asm volatile("cp.async.wait_group %0;" ::"n"(PROMPT_STAGES - 2) : "memory");
    BARRIER();
    if (stage + PROMPT_STAGES - 1 < stages) {
      issue_rows(activation, width, stage + PROMPT_STAGES - 1, ring + (stage + PROMPT_STAGES - 1) % PROMPT_STAGES * ROWS_STAGE);
    }
    end_stage();
    if (stage + 1 < stages) from += STAGE_UNITS * 64;
    const char* rows = ring + stage % PROMPT_STAGES * ROWS_STAGE + lane * 16;
#pragma unroll
    for (int u = 0; u < STAGE_UNITS; ++u) {
      const unsigned a0[4] = {held[u][0].x, held[u][0].y, held[u][0].z, held[u][0].w};
      const unsigned a1[4] = {held[u][1].x, held[u][1].y, held[u][1].z, held[u][1].w};
#pragma unroll
      for (int band = 0; band < MANY / 8; ++band) {
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const uint4 v = *reinterpret_cast<const uint4*>(rows + ((u * SPLIT + part) * MANY + band * 8) * 64);
          multiply_tile(sum[band], a0, v.x, v.y, weight_t());
          multiply_tile(sum[band], a1, v.z, v.w, weight_t());
        }
      }
      held[u][0] = __ldg(from + u * 64), held[u][1] = __ldg(from + u * 64 + 32);
      const int end = ends[stage * STAGE_UNITS + u];
      if (end == 0) continue;
#pragma unroll
      for (int band = 0; band < MANY / 8; ++band) {
#pragma unroll
        for (int e = 0; e < 4; ++e) of_block[band][e] += sum[band][e], sum[band][e] = 0;
      }
      if (end == 1) continue;
#pragma unroll
      for (int at = 0; at < MANY / 2; ++at) {
        float& block_sum = of_block[at / 4][at % 4];
        total[at * 32] = begun ? total[at * 32] + block_sum : block_sum;
        block_sum = 0;
      }
      begun = true;
    }
  }
  if (own >= m.tiles) return;
  const size_t columns = (size_t)m.tiles * 16;
#pragma unroll
  for (int at = 0; at < MANY / 2; ++at) {
    const int line = row + at / 4 * 8 + 2 * q + at % 2;
    sums[line * columns + tile * 16 + g + at % 4 / 2 * 8] = total[at * 32];
  }
}
