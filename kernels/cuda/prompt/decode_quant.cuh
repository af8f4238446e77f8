// Rows of many answers times quantised matrices. A block has the units of a block of the step (step_quant.cuh), and sixteen
// rows. Its warps are four groups of two, each warp with half of a tile's outputs. The units of a warp of the step are summed
// by one group; four of these warps at a time leave their sums, which all threads add in their order. What the step's blocks
// have of a tile stays apart: the consumer adds it, as in the step.
namespace specdec {

constexpr int GROUPS_HERE = 4, DEPTH = 4, BAND_ROWS = 16, SUMS_ROW = TILE + 8;

// The units of a group's warps of the step, one after the other.
struct Walk {
  int from, count, warp, unit, until;

  DEVICE Walk(int from_, int count_, int group) : from(from_), count(count_), warp(group) {
    unit = start(warp), until = start(warp + 1);
    settle();
  }
  DEVICE int start(int w) const { return from + count * w / WARPS; }
  DEVICE bool done() const { return warp >= WARPS; }
  DEVICE void next() {
    ++unit;
    settle();
  }
  DEVICE void settle() {
    while (unit >= until && warp < WARPS) {
      warp += GROUPS_HERE;
      unit = start(warp), until = start(warp + 1);
    }
  }
};

// The share of block `block` of the step: sums go to parts (slots, all_rows, TILE).
template <int F>
DEVICE void multiply_share(const Matrix& m, int block, const char* data, const ManyRows& rows, const float* scales,
                           float* parts, char* room) {
  using P = Place<F>;
  using Ask = Asking<F, BAND_ROWS>;
  constexpr int QUADS = BAND_ROWS / 4;
  const int tid = threadIdx.x, lane = tid % 32, g = lane / 4, q = lane % 4, group = tid / 64, word = tid / 32 % 2;
  const int mine = tid % 64;  // of the threads of the group
  const Packed from = packed_of<F>(m, data);
  const int begin = m.first(block), count = m.first(block + 1) - begin;
  char* ring = room + group * DEPTH * Ask::STAGE;
  float* left = reinterpret_cast<float*>(room + GROUPS_HERE * DEPTH * Ask::STAGE);  // (2 GROUPS_HERE, BAND_ROWS, SUMS_ROW)
  int* left_tile = reinterpret_cast<int*>(left + 2 * GROUPS_HERE * BAND_ROWS * SUMS_ROW);

  auto ask_weights = [&](int unit, char* to) {
    const int tile = unit / m.steps, step = unit - tile * m.steps;
    const char* heads = from.heads + (size_t)(tile * from.spans + step / P::form.span) * P::STRIDE;
#pragma unroll
    for (int at = mine; at < 128; at += 64) {
      copy16(to + Ask::turned(at), from.upper + (size_t)unit * 2048 + at * 16);
      if (P::SEEN == 4) copy16(to + 2048 + Ask::turned(at), from.rest + (size_t)unit * 2048 + at * 16);
    }
    if (P::SEEN == 2) {
      const int input = mine / 2;
      copy16(to + 2048 + (input ^ input / 4 % 4) * 32 + mine % 2 * 16, from.rest + (size_t)unit * 1024 + mine * 16);
    }
    if (P::SEEN == 1 && mine < 32) copy16(to + 2048 + mine * 16, from.rest + (size_t)unit * 512 + mine * 16);
    if (mine < Ask::OWN) copy16(to + P::OWN_AT + Ask::by_two(mine), heads + P::HEAD + step % P::form.span * 256 + mine * 16);
    if (mine < Ask::HEADS_HERE) {
      copy16(to + P::HEAD_AT + (P::form.offset ? Ask::by_four(mine) : Ask::by_two(mine)), heads + mine * 16);
    }
  };
  auto ask_rows = [&](int unit, char* to) {
    const size_t place = (size_t)(unit % m.steps) * rows.all_rows;
    copy16(to + WEIGHTS_ROOM + mine * 16, rows.words + place * (GROUP_WORDS * 4) + mine * 16);
    if (mine < BAND_ROWS) copy16(to + WEIGHTS_ROOM + Ask::WORDS_ROOM + mine * 16, rows.groups + place * 16 + mine * 16);
  };

  Walk first(begin, count, group), ahead(begin, count, group);
#pragma unroll 1
  for (int i = 0; i < DEPTH && !first.done(); ++i, first.next()) ask_weights(first.unit, ring + i * Ask::STAGE);
  after_others();  // the weights were there before
#pragma unroll 1
  for (int i = 0; i < DEPTH; ++i) {
    if (!ahead.done()) ask_rows(ahead.unit, ring + i * Ask::STAGE), ahead.next();
    end_stage();
  }
  float row_scale[QUADS], total[QUADS][4][2] = {};
#pragma unroll
  for (int band = 0; band < QUADS; ++band) row_scale[band] = scales[band * 4 + q] * (P::HIDDEN_BITS ? 0.5f : 1.0f);
  auto leave = [&](float* to, int apart) {
#pragma unroll
    for (int i = 0; i < QUADS * 8; ++i) {
      float& sum = total[i / 8][i / 2 % 4][i % 2];
      to[(i / 8 * 4 + q) * apart + (word * 4 + i / 2 % 4) * 16 + i % 2 * 8 + g] = sum;
      sum = 0;
    }
  };
  auto slot_of = [&](int tile) { return parts + (size_t)m.slot(block, tile) * rows.all_rows * TILE; };
  // What this thread adds up: eight outputs of a row of the tile `under_way`.
  const int row = tid / 16, output = tid % 16 * 8;
  float4 sums[2] = {};
  int under_way = -1, done = 0;
  auto finish = [&] {
    if (under_way < 0) return;
    float4* to = reinterpret_cast<float4*>(slot_of(under_way) + row * TILE + output);
    to[0] = sums[0], to[1] = sums[1];
  };

#pragma unroll 1
  for (int warp = group; warp < WARPS; warp += GROUPS_HERE) {
    const int low = begin + count * warp / WARPS, high = begin + count * (warp + 1) / WARPS;
    if (mine == 0) left_tile[2 * group] = left_tile[2 * group + 1] = -1;
    int pieces = 0;
#pragma unroll 1
    for (int unit = low; unit < high; ++unit, ++done) {
      asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 2) : "memory");
      asm volatile("bar.sync %0, 64;" ::"r"(group + 1) : "memory");
      if (done > 0) {
        char* to = ring + (done - 1) % DEPTH * Ask::STAGE;
        if (!ahead.done()) ask_weights(ahead.unit, to), ask_rows(ahead.unit, to), ahead.next();
        end_stage();
      }
      const char* at = ring + done % DEPTH * Ask::STAGE;
      multiply_unit<F, QUADS>(at, reinterpret_cast<const unsigned*>(at + WEIGHTS_ROOM),
                              reinterpret_cast<const Group*>(at + WEIGHTS_ROOM + Ask::WORDS_ROOM), word, row_scale, total);
      const int tile = unit / m.steps, tile_low = tile * m.steps, tile_high = tile_low + m.steps;
      if (unit + 1 < high && unit + 1 < tile_high) continue;
      if (low <= (tile_low > begin ? tile_low : begin) && high >= (tile_high < begin + count ? tile_high : begin + count)) {
        leave(slot_of(tile), TILE);  // no other warp of the block has a part of it
      } else {
        leave(left + (2 * group + pieces) * BAND_ROWS * SUMS_ROW, SUMS_ROW);
        if (mine == 0) left_tile[2 * group + pieces] = tile;
        ++pieces;
      }
    }
    BARRIER();
#pragma unroll 1
    for (int which = 0; which < 2 * GROUPS_HERE; ++which) {
      const int tile = left_tile[which];
      if (tile < 0) continue;
      const float4* value = reinterpret_cast<const float4*>(left + (which * BAND_ROWS + row) * SUMS_ROW + output);
      if (tile == under_way) {
        add(sums[0], value[0]), add(sums[1], value[1]);
      } else {
        finish();
        under_way = tile, sums[0] = value[0], sums[1] = value[1];
      }
    }
    BARRIER();
  }
  finish();
}

// Four outputs of a row of matrix `which` of the step, from sums in parts.
DEVICE float4 parts4(int which, const float* parts, int rows, int row, int output) {
  const Matrix m = segment_at(which);
  const int tile = output / TILE, first = m.block_of(tile * m.steps), last = m.block_of(tile * m.steps + m.steps - 1);
  const size_t apart = (size_t)rows * TILE;
  const float* from = parts + m.slot(first, tile) * apart + row * TILE + output % TILE;
  float4 sum = *reinterpret_cast<const float4*>(from);
  constexpr int AT_ONCE = 8;
#pragma unroll 1
  for (int block = first + 1; block <= last; block += AT_ONCE) {
    float4 more[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      from += apart;
      more[j] = block + j <= last ? *reinterpret_cast<const float4*>(from) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      if (block + j <= last) add(sum, more[j]);
    }
  }
  return sum;
}

}  // namespace specdec

// Blocks: (bands of BAND_ROWS rows, blocks of the step of all matrices). The columns of `job` are slots.
extern "C" __global__ void __launch_bounds__(256, 1) decode_multiply(const __grid_constant__ Multiplication job) {
  extern __shared__ uint4 shared_memory[];
  int which = 0, block = blockIdx.y;
  while (block >= job.matrices[which].blocks) block -= job.matrices[which++].blocks;
  const ManyMatrix& matrix = job.matrices[which];
  const Matrix m{int(matrix.tiles), int(job.steps), int(matrix.begin), int(matrix.blocks), int(matrix.column)};
  const size_t row = blockIdx.x * BAND_ROWS;
  const ManyRows rows{job.words + row * GROUP_WORDS * 4, job.groups + row * 16, int(job.all_rows)};
  with_form(int(matrix.form), [&](auto chosen) {
    multiply_share<decltype(chosen)::value>(m, int(matrix.begin) + block, matrix.data, rows, job.scales + row,
                                            job.sums + row * TILE, reinterpret_cast<char*>(shared_memory));
  });
}

// The same after matrix `site` of the step, whose sums are in parts.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_norm(float* x, const float* parts, long long site, const float* weight, unsigned* words, Group* groups,
                long long all_rows, float* scales) {
  const int row = blockIdx.x;
  norm_in_wholes(row, x, parts != nullptr, [&](int i) { return parts4(int(site), parts, int(all_rows), row, i); }, weight,
                 Inputs{words, groups, all_rows}, scales);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_gate(const float* parts, long long rows, unsigned* words, Group* groups, long long all_rows, float* scales) {
  after_others();
  const int at = blockIdx.x * THREADS + threadIdx.x, row = at / (INNER_PAD / 4), i = at % (INNER_PAD / 4) * 4;
  if (row >= rows) return;
  const float4 gate = parts4(4, parts, int(all_rows), row, i), up = parts4(5, parts, int(all_rows), row, i);
  if (i == 0) scales[row] = 1;
  Inputs{words, groups, all_rows}.put(
      row, i, float4{silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w});
}
extern "C" __global__ void __launch_bounds__(256)
    decode_turn(const float* parts, long long all_rows, const PromptRow* about, const float* angles, const float* bias,
                const float* norms, long long layer, float* queries) {
  turn_vector(about, angles, bias, norms, layer, queries,
              [&](int kind, int row, int output) { return parts4(kind, parts, int(all_rows), row, output); });
}
// Logits in parts.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_look_parts(const float* parts, long long all_rows, float* found) {
  look_at_logits([&](int row, int i) { return parts4(7, parts, int(all_rows), row, i); }, found);
}
