// Many rows times a 16-bit matrix on the tensor cores. Every output is summed as in a step of few rows (step_dense.cuh): the
// same products in the same order, new sums where a block or a warp of that step begins, and these added in the same
// order. So a prompt has the bits that its tokens have one by one: a column of a product does not see its neighbours.
namespace specdec {

constexpr int MANY = 64, STAGE_UNITS = 2;  // rows of a block, units of a stage; a unit is 32 inputs
constexpr int ROWS_STAGE = STAGE_UNITS * MANY * 64 * SPLIT, TILE_STAGE = STAGE_UNITS * 1024;  // bytes

// Where sums end in a tile of a matrix: 1 after the last unit of a warp of the step, 2 after the last one of a block.
DEVICE void find_ends(const Matrix& m, int tile, unsigned char* ends, int from_step, int stride) {
  for (int step = from_step; step < m.steps; step += stride) {
    const int unit = tile * m.steps + step, block = m.block_of(unit);
    const int from = m.first(block), count = m.first(block + 1) - from;
    const int warp = ((unit - from + 1) * WARPS - 1) / count;
    const bool last = step + 1 == m.steps || unit + 1 == from + count;
    ends[step] = last ? 2 : unit + 1 == from + count * (warp + 1) / WARPS ? 1 : 0;
  }
}

// A block has TILES tiles and MANY rows; a warp has a tile and MANY / HALVES rows.
template <int TILES, int HALVES, int RING>
DEVICE void multiply_many(const Matrix& m, const uint4* weights, const act_t* activation, float* sums, uint4* room) {
  constexpr int WARPS_HERE = TILES * HALVES, THREADS_HERE = WARPS_HERE * 32, OWN_ROWS = MANY / HALVES, BANDS_HERE = OWN_ROWS / 8;
  constexpr int STAGE = ROWS_STAGE + TILES * TILE_STAGE, ROW_PIECES = STAGE_UNITS * 4;
  char* ring = reinterpret_cast<char*>(room);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, q = lane % 4;
  const int place = warp % TILES, front = warp / TILES * OWN_ROWS;
  float* total = reinterpret_cast<float*>(ring + RING * STAGE) + warp * OWN_ROWS * 16 + lane;
  unsigned char* ends = reinterpret_cast<unsigned char*>(ring + RING * STAGE + TILES * MANY * 64) + place * m.steps;
  const int row = blockIdx.x * MANY, first_tile = blockIdx.y * TILES, width = m.steps * 32, stages = m.steps / STAGE_UNITS;
  activation += (size_t)row * SPLIT * width;
  // Rows as (units, parts, rows, 64 bytes), weights as (tiles, units, 1024 bytes).
  auto ask_rows = [&](int stage) {
    char* to = ring + stage % RING * STAGE;
#pragma unroll
    for (int at = tid; at < MANY * SPLIT * ROW_PIECES; at += THREADS_HERE) {
      const int piece = at % ROW_PIECES, line = at / ROW_PIECES;
      copy16(to + ((piece / 4 * SPLIT + line % SPLIT) * MANY + line / SPLIT) * 64 + piece % 4 * 16,
             activation + (size_t)line * width + stage * STAGE_UNITS * 32 + piece * 8);
    }
  };
  auto ask_weights = [&](int stage) {
    char* to = ring + stage % RING * STAGE + ROWS_STAGE;
#pragma unroll
    for (int at = tid; at < TILES * TILE_STAGE / 16; at += THREADS_HERE) {
      const int which = at / (TILE_STAGE / 16), tile = first_tile + which < m.tiles ? first_tile + which : m.tiles - 1;
      copy16(to + at * 16, weights + ((size_t)tile * m.steps + stage * STAGE_UNITS) * 64 + at % (TILE_STAGE / 16));
    }
  };
  auto ask = [&](int stage) {
    if (stage < stages) ask_rows(stage), ask_weights(stage);
    end_stage();
  };
#pragma unroll
  for (int stage = 0; stage < RING - 1; ++stage) {
    if (stage < stages) ask_weights(stage);
  }
  const int own = first_tile + place, tile = own < m.tiles ? own : m.tiles - 1;
  find_ends(m, tile, ends, warp / TILES * 32 + lane, HALVES * 32);
  after_others();  // the weights were there before
#pragma unroll
  for (int stage = 0; stage < RING - 1; ++stage) {
    if (stage < stages) ask_rows(stage);
    end_stage();
  }
  float sum[BANDS_HERE][4] = {}, of_block[BANDS_HERE][4] = {};
  bool begun = false;

#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    asm volatile("cp.async.wait_group %0;" ::"n"(RING - 2) : "memory");
    BARRIER();
    ask(stage + RING - 1);
    const char* here = ring + stage % RING * STAGE + lane * 16;
    const char *rows = here + front * 64, *held = here + ROWS_STAGE + place * TILE_STAGE;
#pragma unroll
    for (int u = 0; u < STAGE_UNITS; ++u) {
      const uint4 low = *reinterpret_cast<const uint4*>(held + u * 1024), high = *reinterpret_cast<const uint4*>(held + u * 1024 + 512);
      const unsigned a0[4] = {low.x, low.y, low.z, low.w}, a1[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int band = 0; band < BANDS_HERE; ++band) {
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const uint4 v = *reinterpret_cast<const uint4*>(rows + ((u * SPLIT + part) * MANY + band * 8) * 64);
          multiply_tile(sum[band], a0, v.x, v.y, weight_t());
          multiply_tile(sum[band], a1, v.z, v.w, weight_t());
        }
      }
      const int end = ends[stage * STAGE_UNITS + u];
      if (end == 0) continue;
#pragma unroll
      for (int band = 0; band < BANDS_HERE; ++band) {
#pragma unroll
        for (int e = 0; e < 4; ++e) of_block[band][e] += sum[band][e], sum[band][e] = 0;
      }
      if (end == 1) continue;
#pragma unroll
      for (int at = 0; at < BANDS_HERE * 4; ++at) {
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
  for (int at = 0; at < BANDS_HERE * 4; ++at) {
    const int line = row + front + at / 4 * 8 + 2 * q + at % 2;
    sums[line * columns + tile * 16 + g + at % 4 / 2 * 8] = total[at * 32];
  }
}

}  // namespace specdec

// activation (rows, SPLIT, steps * 32) -> sums (rows, tiles * 16). For matrices of many outputs, and of few.
extern "C" __global__ void __launch_bounds__(256, 2)
    prompt_multiply(long long tiles, long long steps, const uint4* weights, const act_t* activation, float* sums) {
  extern __shared__ uint4 shared_memory[];
  multiply_many<8, 1, 3>(Matrix{int(tiles), int(steps)}, weights, activation, sums, shared_memory);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    prompt_multiply_few(long long tiles, long long steps, const uint4* weights, const act_t* activation, float* sums) {
  extern __shared__ uint4 shared_memory[];
  multiply_many<4, 2, 4>(Matrix{int(tiles), int(steps)}, weights, activation, sums, shared_memory);
}
