// Rows of many answers times quantised matrices. A block has the units of a block of the step (step_quant.cuh), and 8 or 16
// rows. Its warps are groups of two, each warp with half of a tile's outputs. The units of a warp of the step are summed by
// one group. The sums of warps that share a tile meet in shared memory, where all threads add them in their order. What the
// step's blocks have of a tile stays apart: the consumer adds it, as in the step.
namespace specdec {

constexpr int SUMS_ROW = TILE + 8;

// Waits for all but the newest COUNT stages that this thread has asked for, and for the other warp of a group.
template <int COUNT>
DEVICE void wait_stages() {
  asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
}
DEVICE void wait_group(int group) { asm volatile("bar.sync %0, 64;" ::"r"(group + 1) : "memory"); }

// Where a group of warps is among its units: those of the step's warps `group`, group + GROUPS, and so on.
template <int GROUPS>
struct Walk {
  int from, count, steps;
  float inverse;  // of steps
  int warp, unit, until, tile, step;

  DEVICE Walk(const Matrix& m, int from_, int count_, int group)
      : from(from_), count(count_), steps(m.steps), inverse(1.0f / m.steps), warp(group) {
    settle();
  }
  DEVICE int start(int w) const { return from + count * w / WARPS; }
  DEVICE bool done() const { return warp >= WARPS; }
  DEVICE void next() {
    if (++unit < until) {
      if (++step == steps) ++tile, step = 0;
    } else {
      warp += GROUPS;
      settle();
    }
  }
  // The tile of a unit, without a division.
  DEVICE int tile_of(int which) const {
    const int near = int(float(which) * inverse), left = which - near * steps;
    return left < 0 ? near - 1 : left < steps ? near : near + 1;
  }

 private:
  DEVICE void settle() {
#pragma unroll 1
    while (!done() && (unit = start(warp), until = start(warp + 1), unit >= until)) warp += GROUPS;
    tile = tile_of(unit), step = unit - tile * steps;
  }
};

// Asks for units and their rows, as a thread of a group does: its pieces lie at the same places in every unit.
template <int F, int BAND>
struct Pieces {
  using P = Place<F>;
  using Ask = Asking<F, BAND>;
  static constexpr int THREADS_HERE = 64;
  const char *upper, *rest, *own, *head, *words, *groups;
  int mine, spans, row_words, row_groups;  // rows in bytes, of a step
  int upper_at[2], rest_at, own_at, head_at;

  DEVICE Pieces(const Packed& from, const ManyRows& rows)
      : upper(from.upper), rest(from.rest), mine(threadIdx.x % THREADS_HERE), spans(from.spans) {
    upper += mine * 16, rest += mine * 16;
    own = from.heads + P::HEAD + mine * 16, head = from.heads + mine * 16;
    words = rows.words + mine * 16, groups = rows.groups + mine * 16;
    row_words = rows.all_rows * (GROUP_WORDS * 4), row_groups = rows.all_rows * 16;
    upper_at[0] = Ask::turned(mine), upper_at[1] = Ask::turned(mine + THREADS_HERE);
    const int input = mine / 2;
    rest_at = 2048 + (P::SEEN == 2 ? (input ^ input / 4 % 4) * 32 + mine % 2 * 16 : mine * 16);
    own_at = P::OWN_AT + Ask::by_two(mine), head_at = P::HEAD_AT + (P::form.offset ? Ask::by_four(mine) : Ask::by_two(mine));
  }
  DEVICE void weights_of(int unit, int tile, int step, char* to) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      copy16(to + upper_at[i], upper + (size_t)unit * 2048 + i * (THREADS_HERE * 16));
      if (P::SEEN == 4) copy16(to + 2048 + upper_at[i], rest + (size_t)unit * 2048 + i * (THREADS_HERE * 16));
    }
    if (P::SEEN == 2 || (P::SEEN == 1 && mine < 32)) copy16(to + rest_at, rest + (size_t)unit * (P::SEEN * 512));
    const size_t at = (size_t)(tile * spans + step / P::form.span) * P::STRIDE;
    if (mine < Ask::OWN) copy16(to + own_at, own + at + step % P::form.span * 256);
    if (mine < Ask::HEADS_HERE) copy16(to + head_at, head + at);
  }
  DEVICE void rows_of(int step, char* to) const {
    to += WEIGHTS_ROOM + mine * 16;
#pragma unroll
    for (int at = 0; at < BAND * 4; at += THREADS_HERE) {
      if (at + mine < BAND * 4) copy16(to + at * 16, words + (size_t)step * row_words + at * 16);
    }
    if (mine < BAND) copy16(to + Ask::WORDS_ROOM, groups + (size_t)step * row_groups);
  }
};

// The share of block `block` of the step: sums go to parts (slots, all_rows, TILE). Every form of blocks has machine code of
// its own, and what does not fit the instruction cache is read again in every layer: so little is unrolled here.
template <int F, int BAND, int GROUPS, int DEPTH, int SLOTS>
DEVICE void multiply_share(const Matrix& m, int block, const char* data, const ManyRows& rows, const float* scales,
                           float* parts, char* room) {
  using P = Place<F>;
  using Ask = Asking<F, BAND>;
  constexpr int QUADS = BAND / 4, EACH = BAND * (TILE / 4) / (GROUPS * 64), ROWS_APART = GROUPS * 2;
  const int tid = threadIdx.x, lane = tid % 32, g = lane / 4, q = lane % 4, group = tid / 64, word = tid / 32 % 2;
  const int begin = m.first(block), count = m.first(block + 1) - begin, end = begin + count;
  char* ring = room + group * DEPTH * Ask::STAGE;
  float* left = reinterpret_cast<float*>(room + GROUPS * DEPTH * Ask::STAGE);  // (SLOTS, BAND, SUMS_ROW)
  int2* left_tile = reinterpret_cast<int2*>(left + SLOTS * BAND * SUMS_ROW);  // of a warp: the tile that ends, the other one

  const Pieces<F, BAND> pieces(packed_of<F>(m, data), rows);
  Walk<GROUPS> ahead(m, begin, count, group);
  // Sums of a tile's end have a slot of their own; so many warps of the step take their turn that all find one.
  const int block_tile = ahead.tile_of(begin), tiles = count > 0 ? ahead.tile_of(end - 1) - block_tile + 1 : 0;
  int turn = WARPS;
#pragma unroll 1
  while (turn > GROUPS && turn + (tiles < turn ? tiles : turn) > SLOTS) turn /= 2;
  const bool by_tile = tiles < turn;
  // Weights of the first units are asked for before others have made their rows, and then these.
  const Walk<GROUPS> begins = ahead;
#pragma unroll 1
  for (int number = 0; number < 2 * DEPTH; ++number) {
    const bool asks_rows = number >= DEPTH;
    if (number == DEPTH) {
      after_others();
      ahead = begins;
    }
    char* to = ring + (asks_rows ? number - DEPTH : number) * Ask::STAGE;
    if (!ahead.done()) {
      if (asks_rows) {
        pieces.rows_of(ahead.step, to);
      } else {
        pieces.weights_of(ahead.unit, ahead.tile, ahead.step, to);
      }
      ahead.next();
    }
    if (asks_rows) end_stage();
  }
  float row_scale[QUADS];
#pragma unroll
  for (int band = 0; band < QUADS; ++band) row_scale[band] = scales[band * 4 + q] * (P::HIDDEN_BITS ? 0.5f : 1.0f);
  // What this thread adds up: four outputs of some rows of the tile `under_way`.
  const int row = tid / 32, output = lane * 4;
  float4 sums[EACH];
  int under_way = -1, done = 0, stage = 0;
  auto slot_of = [&](int tile) { return parts + (size_t)m.slot(block, tile) * rows.all_rows * TILE; };
  auto finish = [&] {
    float* to = slot_of(under_way) + row * TILE + output;
#pragma unroll
    for (int j = 0; j < EACH; ++j) *reinterpret_cast<float4*>(to + j * (ROWS_APART * TILE)) = sums[j];
  };

#pragma unroll 1
  for (int first = 0; first < WARPS; first += turn) {
#pragma unroll 1
    for (int warp = first + group; warp < first + turn; warp += GROUPS) {
      const int low = ahead.start(warp), high = ahead.start(warp + 1), place = warp - first;
      float total[QUADS][4][2] = {};
      int2 left_of{-1, -1};
      int tile = ahead.tile_of(low), last = (tile + 1) * m.steps - 1;  // the tile's last unit
#pragma unroll 1
      for (int unit = low; unit < high; ++unit, ++done) {
        wait_stages<DEPTH - 2>();
        wait_group(group);
        if (done > 0) {
          char* to = ring + (stage > 0 ? stage - 1 : DEPTH - 1) * Ask::STAGE;
          if (!ahead.done()) {
            pieces.weights_of(ahead.unit, ahead.tile, ahead.step, to);
            pieces.rows_of(ahead.step, to);
            ahead.next();
          }
          end_stage();
        }
        const char* at = ring + stage * Ask::STAGE;
        stage = stage + 1 < DEPTH ? stage + 1 : 0;
        multiply_unit<F, QUADS>(at, reinterpret_cast<const unsigned*>(at + WEIGHTS_ROOM),
                                reinterpret_cast<const Group*>(at + WEIGHTS_ROOM + Ask::WORDS_ROOM), word, row_scale, total);
        const bool ends = unit == last;
        if (!ends && unit + 1 < high) continue;
        const int tile_low = last + 1 - m.steps;
        float* to;
        int apart = SUMS_ROW;
        if (low <= (tile_low > begin ? tile_low : begin) && high >= (last + 1 < end ? last + 1 : end)) {
          to = slot_of(tile), apart = TILE;  // no other warp of the block has a part of it
        } else {
          to = left + (!ends ? place : turn + (by_tile ? tile - block_tile : place)) * BAND * SUMS_ROW;
          (ends ? left_of.x : left_of.y) = tile;
        }
        to += q * apart + word * 64 + g;
#pragma unroll
        for (int band = 0; band < QUADS; ++band, to += 4 * apart) {
#pragma unroll
          for (int i = 0; i < 8; ++i) to[i / 2 * 16 + i % 2 * 8] = total[band][i / 2][i % 2], total[band][i / 2][i % 2] = 0;
        }
        if (ends) ++tile, last += m.steps;
      }
      if (tid % 64 == 0) left_tile[place] = left_of;
    }
    BARRIER();
    // The sums that were left, in their order: of each warp those of a tile that ends, then the others. One piece is added
    // while the next one is on its way.
    const int entry = lane < 2 * turn ? reinterpret_cast<const int*>(left_tile)[lane] : -1;
    unsigned those = __ballot_sync(EVERY_LANE, entry >= 0);
    float4 next[EACH];
    int next_tile = -1;
#pragma unroll 1
    while (those || next_tile >= 0) {
      const int tile = next_tile;
      float4 value[EACH];
#pragma unroll
      for (int j = 0; j < EACH; ++j) value[j] = next[j];
      next_tile = -1;
      if (those) {
        const int which = __ffs(those) - 1;
        those &= those - 1;
        next_tile = __shfl_sync(EVERY_LANE, entry, which);
        const int slot = which % 2 ? which / 2 : turn + (by_tile ? next_tile - block_tile : which / 2);
        const float* from = left + (slot * BAND + row) * SUMS_ROW + output;
#pragma unroll
        for (int j = 0; j < EACH; ++j) next[j] = *reinterpret_cast<const float4*>(from + j * (ROWS_APART * SUMS_ROW));
      }
      if (tile < 0) continue;
      const bool goes_on = tile == under_way;
      if (!goes_on && under_way >= 0) finish();
      under_way = tile;
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        if (goes_on) add(value[j], sums[j]);
        sums[j] = value[j];
      }
    }
    if (first + turn < WARPS) BARRIER();
  }
  if (under_way >= 0) finish();
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

// The columns of `job` are slots.
template <int BAND, int GROUPS, int DEPTH, int SLOTS>
DEVICE void multiply_shares(const Multiplication& job, uint4* room) {
  int which = 0, block = blockIdx.y;
  while (block >= job.matrices[which].blocks) block -= job.matrices[which++].blocks;
  const ManyMatrix& matrix = job.matrices[which];
  const Matrix m{int(matrix.tiles), int(job.steps), int(matrix.begin), int(matrix.blocks), int(matrix.column)};
  const size_t row = blockIdx.x * BAND;
  const ManyRows rows{job.words + row * GROUP_WORDS * 4, job.groups + row * 16, int(job.all_rows)};
  with_form(int(matrix.form), [&](auto chosen) {
    multiply_share<decltype(chosen)::value, BAND, GROUPS, DEPTH, SLOTS>(m, int(matrix.begin) + block, matrix.data, rows,
                                                                        job.scales + row, job.sums + row * TILE,
                                                                        reinterpret_cast<char*>(room));
  });
}

}  // namespace specdec

// Blocks: (bands of rows, blocks of the step of all matrices).
#define SHARES(band, groups, depth, slots)                                                                     \
  extern "C" __global__ void __launch_bounds__(groups * 64, 1)                                                 \
      decode_multiply_##band(const __grid_constant__ Multiplication job) {                                     \
    extern __shared__ uint4 shared_memory[];                                                                   \
    multiply_shares<band, groups, depth, slots>(job, shared_memory);                                           \
  }
SHARES(8, DECODE_GROUPS_8, DECODE_DEPTH_8, DECODE_SLOTS_8)
SHARES(16, DECODE_GROUPS_16, DECODE_DEPTH_16, DECODE_SLOTS_16)

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
// Turns queries, keys and values in parts as prompt_turn does, for rows that follow each other in one history.
extern "C" __global__ void __launch_bounds__(256)
    decode_turn(const float* parts, long long all_rows, const PromptRow* about, const float* angles, const float* bias,
                const float* norms, long long layer, float* queries) {
  turn_vector(about, angles, bias, norms, layer, queries,
              [&](int kind, int row, int output) { return parts4(kind, parts, int(all_rows), row, output); });
}
// q, k and v in parts -> splits; or, where no history has more than one, whole numbers for the output projection.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    decode_attend(const float* parts, long long all_rows, const PromptRow* about, const float* angles, const float* bias,
                  const float* norms, long long layer, const float* queries, const unsigned char* paths, long long window,
                  long long splits, float* out, unsigned* words, Group* groups, float* scales) {
  constexpr int GROUP = HEADS / KV_HEADS;
  __shared__ DecodeAttention memory;
  attend_row(
      about, paths, queries, layer, window, memory,
      [&](int kind, int head, int place, float (&turned)[4]) {
        turn_four(kind, head, blockIdx.x, place, angles, bias, norms,
                  [&](int, int row, int output) { return parts4(kind, parts, int(all_rows), row, output); }, turned);
      },
      [&](int h, int head, int d, float mixed, float most, float weight) {
        if (words) {
          memory.query[h][d] = mixed / weight;
        } else {
          leave_split(out, head, d, splits, mixed, most, weight);
        }
      });
  if (!words) return;
  BARRIER();
  const int chunks = gridDim.y / KV_HEADS, each = (GROUP + chunks - 1) / chunks, begin = blockIdx.y % chunks * each;
  const int heads = GROUP - begin < each ? GROUP - begin : each, head = blockIdx.y / chunks * GROUP + begin;
  if (head == 0 && threadIdx.x == 0) scales[blockIdx.x] = 1;
#pragma unroll 1
  for (int start = 0; start < heads * SIZE / 4; start += THREADS) {
    const int at = start + threadIdx.x, i = head * SIZE + at * 4;
    const bool inside = at < heads * SIZE / 4;
    const float4 four = inside ? reinterpret_cast<const float4*>(&memory.query[0][0])[at] : float4{0, 0, 0, 0};
    const float v[4] = {four.x, four.y, four.z, four.w};
    put_group(words, groups, i / 32 * int(all_rows) + blockIdx.x, i % 32 / 4, v, inside);
  }
}
// Logits in parts.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_look_parts(const float* parts, long long all_rows, float* found) {
  look_at_logits([&](int row, int i) { return parts4(7, parts, int(all_rows), row, i); }, found);
}
