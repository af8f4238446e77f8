// Many rows times quantised matrices. Codes, products and sums are those of a step of few rows (step_quant.cuh), new sums
// where a warp or a block of that step begins: so a prompt has the bits of its tokens one by one. A block has MANY rows and
// a tile of 128 outputs, a warp 16 of these rows and half of the tile, which its lanes decode once for all its rows.
namespace specdec {

constexpr int MANY = 64, PROMPT_STAGES = 4, MULTIPLY_THREADS = 256;
constexpr int WEIGHTS_ROOM = PROMPT_UNIT_BYTES, WORDS_ROOM = MANY * GROUP_WORDS * 4, GROUPS_ROOM = MANY * 16;
constexpr int PROMPT_STAGE_BYTES = WEIGHTS_ROOM + WORDS_ROOM + GROUPS_ROOM;
constexpr int TOTALS_BYTES = MANY * TILE * 4;
static_assert(FULL == 4 && SINGLE == 0, "a warp has four rows in each of four products");

// Where sums end in a tile of a matrix: 1 after the last unit of a warp of the step, 2 after the last one of a block.
DEVICE void find_ends(const Matrix& m, int tile, unsigned char* ends) {
  for (int step = threadIdx.x; step < m.steps; step += MULTIPLY_THREADS) {
    const int unit = tile * m.steps + step, block = m.block_of(unit);
    const int from = m.first(block), count = m.first(block + 1) - from;
    const int warp = ((unit - from + 1) * WARPS - 1) / count;
    const bool last = step + 1 == m.steps || unit + 1 == from + count;
    ends[step] = last ? 2 : unit + 1 == from + count * (warp + 1) / WARPS ? 1 : 0;
  }
}

// Asks for a unit of weights, as `issue` does for a warp of a step, and for the rows' inputs.
template <int F>
DEVICE void issue_many(const Packed& from, int unit, int tile, int step, const uint4* words, const uint4* groups, char* to) {
  using P = Place<F>;
  constexpr int UPPER = 128, REST = P::SEEN * 32, OWN_PIECES = P::form.own ? 16 : 0, HEAD_PIECES = P::HEAD / 16;
  constexpr int ROW_PIECES = MANY * GROUP_WORDS / 4, ALL = UPPER + REST + OWN_PIECES + HEAD_PIECES + ROW_PIECES + MANY;
  const char* head = from.heads + (size_t)(tile * from.spans + step / P::form.span) * P::STRIDE;
#pragma unroll
  for (int first = 0; first < ALL; first += MULTIPLY_THREADS) {
    int at = first + threadIdx.x;
    if (at >= ALL) break;
    if (at < ROW_PIECES) {
      copy16(to + WEIGHTS_ROOM + at * 16, words + at);
      continue;
    }
    at -= ROW_PIECES;
    if (at < MANY) {
      copy16(to + WEIGHTS_ROOM + WORDS_ROOM + at * 16, groups + at);
      continue;
    }
    at -= MANY;
    if (at < UPPER + (P::SEEN == 4 ? REST : 0)) {
      const int piece = at % UPPER, lane = piece % 32, plane = at / UPPER;
      const int place = lane * 16 ^ lane / 16 * 64 ^ (piece / 32 & 1) * 32;
      copy16(to + plane * 2048 + piece / 32 * 512 + place, (plane ? from.rest : from.upper) + (size_t)unit * 2048 + piece * 16);
      continue;
    }
    at -= UPPER;
    if (at < REST) {
      const int input = at / 2;
      if (P::SEEN == 2) {
        copy16(to + 2048 + (input ^ input / 4 % 4) * 32 + at % 2 * 16, from.rest + (size_t)unit * 1024 + at * 16);
      } else {
        copy16(to + 2048 + at * 16, from.rest + (size_t)unit * 512 + at * 16);
      }
      continue;
    }
    at -= REST;
    if (at < OWN_PIECES) {
      copy16(to + P::OWN_AT + (at % 2 * 8 + at / 2) * 16, head + P::HEAD + step % P::form.span * 256 + at * 16);
      continue;
    }
    at -= OWN_PIECES;
    const int place = P::form.offset ? at % 4 * 8 + at / 4 : at % 2 * 8 + at / 2;
    copy16(to + P::HEAD_AT + place * 16, head + at * 16);
  }
}

// A tile of 128 outputs times MANY rows; sums (MANY, columns).
template <int F>
DEVICE void multiply_many(const Matrix& m, int tile, const char* data, const uint4* words, const uint4* groups,
                          int all_rows, const float* scales, float* sums, int columns, char* ring, unsigned char* ends) {
  using P = Place<F>;
  constexpr int PARTS = Sums<F>::PARTS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int word = warp % 2, front = warp / 2 * 16;  // of the warp: a half of the tile's outputs, its first row
  const Packed from = packed_of<F>(m, data);
  const int even = q * 256 + (g * 8 ^ q / 2 * 32) + q % 2 * 64, odd = even ^ 64;
  float* totals = reinterpret_cast<float*>(ring + PROMPT_STAGES * PROMPT_STAGE_BYTES) + warp * 1024 + lane;
  const int each_words = all_rows * GROUP_WORDS / 4;
  auto ask = [&](int step) {
    if (step < m.steps) {
      issue_many<F>(from, tile * m.steps + step, tile, step, words + (size_t)step * each_words,
                    groups + (size_t)step * all_rows, ring + step % PROMPT_STAGES * PROMPT_STAGE_BYTES);
    }
    end_stage();
  };
#pragma unroll 1
  for (int step = 0; step < PROMPT_STAGES - 1; ++step) ask(step);
  find_ends(m, tile, ends);
  float total[FULL][4][2] = {}, of_block[FULL][4][2] = {}, row_scale[FULL];
#pragma unroll
  for (int band = 0; band < FULL; ++band) row_scale[band] = scales[front + band * 4 + q] * (P::HIDDEN_BITS ? 0.5f : 1.0f);
  bool begun = false;

#pragma unroll 1
  for (int step = 0; step < m.steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(PROMPT_STAGES - 2) : "memory");
    BARRIER();
    ask(step + PROMPT_STAGES - 1);
    const char* at = ring + step % PROMPT_STAGES * PROMPT_STAGE_BYTES;
    const unsigned* own_words = reinterpret_cast<const unsigned*>(at + WEIGHTS_ROOM) + front * GROUP_WORDS;
    const Group* own_groups = reinterpret_cast<const Group*>(at + WEIGHTS_ROOM + WORDS_ROOM) + front;
    uint2 x[FULL];
    float scale[FULL], weight[FULL];
    int centre[FULL][PARTS];
#pragma unroll
    for (int band = 0; band < FULL; ++band) {
      x[band] = *reinterpret_cast<const uint2*>(own_words + band * 4 * GROUP_WORDS + g * 8 + q * 2);
      const Group group = own_groups[band * 4 + q];
      scale[band] = group.scale * row_scale[band];
      weight[band] = (P::HIDDEN_BITS ? 2.0f : 1.0f) * scale[band] * float(group.sum[0] + group.sum[1]);
      centre[band][0] = (PARTS == 2 ? group.sum[0] : group.sum[0] + group.sum[1]) * P::CENTRE;
      if constexpr (PARTS == 2) centre[band][1] = group.sum[1] * P::CENTRE;
    }
    Codes<P::SEEN> codes;
    codes.load(at, word, even, odd, g, q);
    uint4 pieces[P::form.offset ? 2 : 1], owned = {0, 0, 0, 0};  // of four t
#pragma unroll
    for (int j = 0; j < (P::form.offset ? 2 : 1); ++j) {
      pieces[j] = *reinterpret_cast<const uint4*>(at + P::HEAD_AT + ((P::form.offset ? 2 * word + j : word) * 8 + g) * 16);
    }
    if (P::form.own) owned = *reinterpret_cast<const uint4*>(at + P::OWN_AT + (word * 8 + g) * 16);
    const unsigned* heads = reinterpret_cast<const unsigned*>(pieces);
    const unsigned* owns = reinterpret_cast<const unsigned*>(&owned);
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      unsigned w[4];
      codes.take(b, w);
      const Worth<F> worth(heads + (P::form.offset ? 2 * b : b), owns[b]);
#pragma unroll
      for (int band = 0; band < FULL; ++band) {
        Sums<F> found;
        found.multiply(w, x[band]);
        found.add_to(total[band][b], worth, owns[b], scale[band], weight[band], centre[band]);
      }
    }
    const int end = ends[step];
    if (end == 0) continue;
#pragma unroll
    for (int i = 0; i < FULL * 8; ++i) {
      float& sum = total[i / 8][i / 2 % 4][i % 2];
      of_block[i / 8][i / 2 % 4][i % 2] += sum, sum = 0;
    }
    if (end == 1) continue;
#pragma unroll
    for (int i = 0; i < FULL * 8; ++i) {
      float& sum = of_block[i / 8][i / 2 % 4][i % 2];
      totals[i * 32] = begun ? totals[i * 32] + sum : sum;
      sum = 0;
    }
    begun = true;
  }
#pragma unroll
  for (int i = 0; i < FULL * 8; ++i) {
    const int row = front + i / 8 * 4 + q, output = (word * 4 + i / 2 % 4) * 16 + i % 2 * 8 + g;
    sums[(size_t)row * columns + tile * TILE + output] = totals[i * 32];
  }
}

DEVICE float4 finished4(const float* sums, long long columns, int row, int output) {
  return *reinterpret_cast<const float4*>(sums + row * columns + output);
}

// Where the inputs of a multiplication lie: words (steps, rows, GROUP_WORDS), groups (steps, rows), rows padded.
struct Inputs {
  unsigned* words;
  Group* groups;
  long long rows;

  DEVICE void put(int row, int i, const float4& value) const {
    const float v[4] = {value.x, value.y, value.z, value.w};
    put_group(words, groups, i / 32 * int(rows) + row, i % 32 / 4, v, true);
  }
};

}  // namespace specdec

// Up to three matrices that take the same rows: address, type, tiles of 128 outputs, first block and blocks of the step, and
// their first column of the sums (rows, columns). A block has MANY rows and a tile.
extern "C" __global__ void __launch_bounds__(MULTIPLY_THREADS, 2)
    prompt_multiply(long long steps, const uint4* words, const uint4* groups, long long all_rows, const float* scales,
                    float* sums, long long columns, const char* data0, long long form0, long long tiles0, long long begin0,
                    long long blocks0, long long column0, const char* data1, long long form1, long long tiles1,
                    long long begin1, long long blocks1, long long column1, const char* data2, long long form2,
                    long long tiles2, long long begin2, long long blocks2, long long column2) {
  extern __shared__ uint4 shared_memory[];
  char* ring = reinterpret_cast<char*>(shared_memory);
  unsigned char* ends = reinterpret_cast<unsigned char*>(ring + PROMPT_STAGES * PROMPT_STAGE_BYTES + TOTALS_BYTES);
  const char* data = data0;
  int tile = blockIdx.y, form = form0;
  long long column = column0;
  Matrix m{int(tiles0), int(steps), int(begin0), int(blocks0), 0};
  if (tile >= m.tiles) {
    tile -= m.tiles, data = data1, form = form1, column = column1;
    m.tiles = tiles1, m.begin = begin1, m.blocks = blocks1;
    if (tile >= m.tiles) {
      tile -= m.tiles, data = data2, form = form2, column = column2;
      m.tiles = tiles2, m.begin = begin2, m.blocks = blocks2;
    }
  }
  const int row = blockIdx.x * MANY;
  with_form(form, [&](auto chosen) {
    multiply_many<decltype(chosen)::value>(m, tile, data, words + (size_t)row * GROUP_WORDS / 4, groups + row, int(all_rows),
                                           scales + row, sums + row * columns + column, int(columns), ring, ends);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_embed(const PromptRow* about, const char* table, long long form, float* x) {
  const int token = about[blockIdx.x].token;
  float* to = x + (size_t)blockIdx.x * HIDDEN;
#if EMBED_PLAIN
  for (int i = threadIdx.x; i < HIDDEN; i += THREADS) {
    to[i] = to_float(reinterpret_cast<const weight_t*>(table)[(size_t)token * HIDDEN + i]);
  }
#else
  with_form(int(form), [&](auto chosen) {
    for (int i = threadIdx.x; i < HIDDEN; i += THREADS) {
      to[i] = quant_weight<decltype(chosen)::value>(segment_at(7), table, token, i);
    }
  });
#endif
}

// x plus a product, unless `sums` is null, times the norm's weight in whole numbers; and the norm's scale. A block has a row,
// that of its number unless `which` says another.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_norm(float* x, const float* sums, long long columns, const float* weight, const int* which, unsigned* words,
                Group* groups, long long all_rows, float* scales) {
  constexpr int JOBS = HIDDEN_PAD / 128;
  __shared__ float squares[JOBS];
  const int row = which ? which[blockIdx.x] : blockIdx.x, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int job = threadIdx.x / 32; job < JOBS; job += WARPS) {
    const int i = job * 128 + lane * 4;
    float4 value = {0, 0, 0, 0}, w = value;
    if (i < HIDDEN) {
      float* from = x + (size_t)row * HIDDEN + i;
      w = *reinterpret_cast<const float4*>(weight + i);
      value = *reinterpret_cast<const float4*>(from);
      if (sums) {
        add(value, finished4(sums, columns, row, i));
        *reinterpret_cast<float4*>(from) = value;
      }
    }
    const float square = lane_sum(four_squares(value));
    if (lane == 0) squares[job] = square;
    Inputs{words, groups, all_rows}.put(blockIdx.x, i, float4{value.x * w.x, value.y * w.y, value.z * w.z, value.w * w.w});
  }
  BARRIER();
  if (threadIdx.x >= 32) return;
  float sum = 0;
  for (int job = 0; job < JOBS; job += 32) sum += job + lane < JOBS ? squares[job + lane] : 0.0f;
  const float scale = norm_scale(sum);
  if (lane == 0) scales[blockIdx.x] = scale;
}

// What attention has made of each row, of all its splits.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_mix(const float* attended, const PromptRow* about, long long splits, long long rows, unsigned* words,
               Group* groups, long long all_rows, float* scales) {
  const int at = blockIdx.x * THREADS + threadIdx.x, row = at / (MIXED_PAD / 4), i = at % (MIXED_PAD / 4) * 4;
  if (row >= rows) return;
  const int used = about[row].place / SPAN + 1;
  if (i == 0) scales[row] = 1;
  Inputs{words, groups, all_rows}.put(row, i, i < MIXED ? mixed4(attended, row, i, used, int(splits)) : float4{0, 0, 0, 0});
}

// silu(gate) * up of each row; ups lie after `half` columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_gate(const float* sums, long long columns, long long half, long long rows, unsigned* words, Group* groups,
                long long all_rows, float* scales) {
  const int at = blockIdx.x * THREADS + threadIdx.x, row = at / (INNER_PAD / 4), i = at % (INNER_PAD / 4) * 4;
  if (row >= rows) return;
  const float4 gate = finished4(sums, columns, row, i), up = finished4(sums, columns, row, int(half) + i);
  if (i == 0) scales[row] = 1;
  Inputs{words, groups, all_rows}.put(
      row, i, float4{silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w});
}
