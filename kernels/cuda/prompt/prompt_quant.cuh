// Many rows times quantised matrices. Codes, products and sums are those of a step of few rows (step_quant.cuh), new sums
// where a warp or a block of that step begins: so a prompt has the bits of its tokens one by one. A block has a tile of 128
// outputs and 64 rows, or 32 where there are few tiles; a warp 16 or 8 of these rows and half of the tile, which its lanes
// decode once for all its rows.
namespace specdec {

constexpr int PROMPT_STAGES = 4, WEIGHTS_ROOM = PROMPT_UNIT_BYTES;  // bytes

// Where sums end in a tile of a matrix: 1 after the last unit of a warp of the step, 2 after the last one of a block.
DEVICE void find_ends(const Matrix& m, int tile, unsigned char* ends) {
  for (int step = threadIdx.x; step < m.steps; step += blockDim.x) {
    const int unit = tile * m.steps + step, block = m.block_of(unit);
    const int from = m.first(block), count = m.first(block + 1) - from;
    const int warp = ((unit - from + 1) * WARPS - 1) / count;
    const bool last = step + 1 == m.steps || unit + 1 == from + count;
    ends[step] = last ? 2 : unit + 1 == from + count * (warp + 1) / WARPS ? 1 : 0;
  }
}

// The rows of a block: words (steps, all_rows, GROUP_WORDS) and groups (steps, all_rows) from the first of them on.
struct ManyRows {
  const char *words, *groups;
  int all_rows;
};

// Asks for the units of a tile, as `issue` does for a warp of a step, and for the inputs of ROWS_HERE rows. What a thread
// copies is the same piece in every step.
template <int F, int ROWS_HERE>
struct Asking {
  using P = Place<F>;
  static constexpr int THREADS_HERE = 256, WORDS_ROOM = ROWS_HERE * GROUP_WORDS * 4;
  static constexpr int STAGE = WEIGHTS_ROOM + WORDS_ROOM + ROWS_HERE * 16;
  static constexpr int REST = P::SEEN * 32, OWN = P::form.own ? 16 : 0, HEADS_HERE = P::HEAD / 16;
  static constexpr int UPPER_FROM = ROWS_HERE == 64 ? 64 : 128, REST_FROM = ROWS_HERE == 64 ? 192 : 0;
  const ManyRows& rows;
  const Packed& from;
  int tile, steps;

  // Number of this thread among those that copy from thread `first` on.
  static DEVICE int turn(int first) { return (threadIdx.x + THREADS_HERE - first) % THREADS_HERE; }

  DEVICE void rows_of(int step, char* to) const {
    const int tid = threadIdx.x;
    if (tid < ROWS_HERE * 4) {
      copy16(to + WEIGHTS_ROOM + tid * 16, rows.words + (size_t)step * rows.all_rows * (GROUP_WORDS * 4) + tid * 16);
    }
    if (tid < ROWS_HERE) {
      copy16(to + WEIGHTS_ROOM + WORDS_ROOM + tid * 16, rows.groups + (size_t)step * rows.all_rows * 16 + tid * 16);
    }
  }
  DEVICE void weights_of(int step, char* to) const {
    const size_t unit = (size_t)tile * steps + step;
    const int upper = turn(UPPER_FROM), rest = turn(REST_FROM);
    if (upper < 128) copy16(to + turned(upper), from.upper + unit * 2048 + upper * 16);
    if (P::SEEN == 4 && rest < 128) copy16(to + 2048 + turned(rest), from.rest + unit * 2048 + rest * 16);
    if (P::SEEN == 2 && rest < 64) {
      const int input = rest / 2;
      copy16(to + 2048 + (input ^ input / 4 % 4) * 32 + rest % 2 * 16, from.rest + unit * 1024 + rest * 16);
    }
    if (P::SEEN == 1 && rest < 32) copy16(to + 2048 + rest * 16, from.rest + unit * 512 + rest * 16);
    const int own = turn(THREADS_HERE - 32), head = turn(THREADS_HERE - 64);
    const char* heads = from.heads + (size_t)(tile * from.spans + step / P::form.span) * P::STRIDE;
    if (own < OWN) copy16(to + P::OWN_AT + by_two(own), heads + P::HEAD + step % P::form.span * 256 + own * 16);
    if (head < HEADS_HERE) copy16(to + P::HEAD_AT + (P::form.offset ? by_four(head) : by_two(head)), heads + head * 16);
  }
  static DEVICE int turned(int piece) { return piece * 16 ^ piece % 32 / 16 * 64 ^ (piece / 32 & 1) * 32; }
  static DEVICE int by_two(int piece) { return (piece % 2 * 8 + piece / 2) * 16; }
  static DEVICE int by_four(int piece) { return (piece % 4 * 8 + piece / 4) * 16; }
};

// Half `word` of a unit's outputs times 4 QUADS rows; the unit lies at `at` as a stage has it.
template <int F, int QUADS>
DEVICE void multiply_unit(const char* at, const unsigned* own_words, const Group* own_groups, int word,
                          const float (&row_scale)[QUADS], float (&total)[QUADS][4][2]) {
  using P = Place<F>;
  constexpr int PARTS = Sums<F>::PARTS;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int even = q * 256 + (g * 8 ^ q / 2 * 32) + q % 2 * 64, odd = even ^ 64;
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
  unsigned w[4][4];
  Worth<F> worth[4];
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    codes.take(b, w[b]);
    worth[b] = Worth<F>(heads + (P::form.offset ? 2 * b : b), owns[b]);
  }
#pragma unroll
  for (int band = 0; band < QUADS; ++band) {
    const uint2 x = *reinterpret_cast<const uint2*>(own_words + band * 4 * GROUP_WORDS + g * 8 + q * 2);
    const Group group = own_groups[band * 4 + q];
    const float scale = group.scale * row_scale[band];
    const float weight = (P::HIDDEN_BITS ? 2.0f : 1.0f) * scale * float(group.sum[0] + group.sum[1]);
    int centre[PARTS];
    centre[0] = (PARTS == 2 ? group.sum[0] : group.sum[0] + group.sum[1]) * P::CENTRE;
    if constexpr (PARTS == 2) centre[1] = group.sum[1] * P::CENTRE;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      Sums<F> found(centre);
      found.multiply(w[b], x);
      found.add_to(total[band][b], worth[b], owns[b], scale, weight, centre);
    }
  }
}

// A tile of 128 outputs times ROWS_HERE rows; sums (ROWS_HERE, columns).
template <int F, int ROWS_HERE>
DEVICE void multiply_many(const Matrix& m, int tile, const char* data, const ManyRows& rows, const float* scales, float* sums,
                          int columns, char* ring) {
  using P = Place<F>;
  using Ask = Asking<F, ROWS_HERE>;
  constexpr int QUADS = ROWS_HERE / 16;  // of rows of a warp
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int word = warp % 2, front = warp / 2 * (4 * QUADS);  // of the warp: a half of the tile's outputs, its first row
  const Packed from = packed_of<F>(m, data);
  float* totals = reinterpret_cast<float*>(ring + PROMPT_STAGES * Ask::STAGE);
  unsigned char* ends = reinterpret_cast<unsigned char*>(totals + ROWS_HERE * TILE);
  totals += warp * (QUADS * 256) + lane;
  const Ask pieces_of{rows, from, tile, m.steps};
  auto ask = [&](int step) {
    char* to = ring + step % PROMPT_STAGES * Ask::STAGE;
    if (step < m.steps) pieces_of.weights_of(step, to), pieces_of.rows_of(step, to);
    end_stage();
  };
#pragma unroll 1
  for (int step = 0; step < PROMPT_STAGES - 1 && step < m.steps; ++step) {
    pieces_of.weights_of(step, ring + step % PROMPT_STAGES * Ask::STAGE);
  }
  find_ends(m, tile, ends);
  after_others();  // the weights were there before
#pragma unroll 1
  for (int step = 0; step < PROMPT_STAGES - 1; ++step) {
    if (step < m.steps) pieces_of.rows_of(step, ring + step % PROMPT_STAGES * Ask::STAGE);
    end_stage();
  }
  float total[QUADS][4][2] = {}, of_block[QUADS][4][2] = {}, row_scale[QUADS];
#pragma unroll
  for (int band = 0; band < QUADS; ++band) row_scale[band] = scales[front + band * 4 + q] * (P::HIDDEN_BITS ? 0.5f : 1.0f);
  bool begun = false;

#pragma unroll 1
  for (int step = 0; step < m.steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(PROMPT_STAGES - 2) : "memory");
    BARRIER();
    ask(step + PROMPT_STAGES - 1);
    const char* at = ring + step % PROMPT_STAGES * Ask::STAGE;
    const unsigned* own_words = reinterpret_cast<const unsigned*>(at + WEIGHTS_ROOM) + front * GROUP_WORDS;
    const Group* own_groups = reinterpret_cast<const Group*>(at + WEIGHTS_ROOM + Ask::WORDS_ROOM) + front;
    multiply_unit<F, QUADS>(at, own_words, own_groups, word, row_scale, total);
    const int end = ends[step];
    if (end == 0) continue;
#pragma unroll
    for (int i = 0; i < QUADS * 8; ++i) {
      float& sum = total[i / 8][i / 2 % 4][i % 2];
      of_block[i / 8][i / 2 % 4][i % 2] += sum, sum = 0;
    }
    if (end == 1) continue;
#pragma unroll
    for (int i = 0; i < QUADS * 8; ++i) {
      float& sum = of_block[i / 8][i / 2 % 4][i % 2];
      totals[i * 32] = begun ? totals[i * 32] + sum : sum;
      sum = 0;
    }
    begun = true;
  }
#pragma unroll
  for (int i = 0; i < QUADS * 8; ++i) {
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

// A matrix: its type, tiles of 128 outputs, first block and blocks of the step, and its first column of the sums; of sums in
// parts, its first slot.
struct ManyMatrix {
  const char* data;
  long long form, tiles, begin, blocks, column;
};
// Matrices that take the same rows, side by side in sums (rows, columns); those that are not there have no tiles.
struct Multiplication {
  long long steps;
  const char *words, *groups;
  long long all_rows;
  const float* scales;
  float* sums;
  long long columns;
  ManyMatrix matrices[3];
};

}  // namespace specdec

// A block of a multiplication: a band of rows, and a tile.
template <int ROWS_HERE>
DEVICE void multiply_block(const Multiplication& job, uint4* room) {
  int which = 0, tile = blockIdx.y;
  while (tile >= job.matrices[which].tiles) tile -= job.matrices[which++].tiles;
  const ManyMatrix& matrix = job.matrices[which];
  const Matrix m{int(matrix.tiles), int(job.steps), int(matrix.begin), int(matrix.blocks), 0};
  const size_t row = blockIdx.x * ROWS_HERE;
  const ManyRows rows{job.words + row * GROUP_WORDS * 4, job.groups + row * 16, int(job.all_rows)};
  with_form(int(matrix.form), [&](auto chosen) {
    multiply_many<decltype(chosen)::value, ROWS_HERE>(m, tile, matrix.data, rows, job.scales + row,
                                                      job.sums + row * job.columns + matrix.column, int(job.columns),
                                                      reinterpret_cast<char*>(room));
  });
}
#define MULTIPLICATION(name, rows_here)                                                                  \
  extern "C" __global__ void __launch_bounds__(256, 2) name(const __grid_constant__ Multiplication job) { \
    extern __shared__ uint4 shared_memory[];                                                             \
    multiply_block<rows_here>(job, shared_memory);                                                       \
  }
#if !DECODES
MULTIPLICATION(prompt_multiply, 64)
MULTIPLICATION(prompt_multiply_few, 32)
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_embed(const PromptRow* about, const char* table, long long form, float* x) {
  after_others();
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

// Row `row` of x plus a product, if there is one, times the norm's weight in whole numbers; and the norm's scale.
template <class F>
DEVICE void norm_in_wholes(int row, float* x, bool adds, F product, const float* weight, const Inputs& inputs, float* scales) {
  constexpr int JOBS = HIDDEN_PAD / 128;
  __shared__ float squares[JOBS];
  const int lane = threadIdx.x % 32;
  after_others();
#pragma unroll 1
  for (int job = threadIdx.x / 32; job < JOBS; job += WARPS) {
    const int i = job * 128 + lane * 4;
    float4 value = {0, 0, 0, 0}, w = value;
    if (i < HIDDEN) {
      float* from = x + (size_t)row * HIDDEN + i;
      w = *reinterpret_cast<const float4*>(weight + i);
      value = *reinterpret_cast<const float4*>(from);
      if (adds) {
        add(value, product(i));
        *reinterpret_cast<float4*>(from) = value;
      }
    }
    const float square = lane_sum(four_squares(value));
    if (lane == 0) squares[job] = square;
    inputs.put(blockIdx.x, i, float4{value.x * w.x, value.y * w.y, value.z * w.z, value.w * w.w});
  }
  BARRIER();
  if (threadIdx.x >= 32) return;
  float sum = 0;
  for (int job = 0; job < JOBS; job += 32) sum += job + lane < JOBS ? squares[job + lane] : 0.0f;
  const float scale = norm_scale(sum);
  if (lane == 0) scales[blockIdx.x] = scale;
}
// A block has a row, that of its number unless `which` says another.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_norm(float* x, const float* sums, long long columns, const float* weight, const int* which, unsigned* words,
                Group* groups, long long all_rows, float* scales) {
  const int row = which ? which[blockIdx.x] : blockIdx.x;
  norm_in_wholes(row, x, sums != nullptr, [&](int i) { return finished4(sums, columns, row, i); }, weight,
                 Inputs{words, groups, all_rows}, scales);
}
// What attention has made of each row, of all its splits.
extern "C" __global__ void __launch_bounds__(THREADS)
    prompt_mix(const float* attended, const PromptRow* about, long long splits, long long rows, unsigned* words,
               Group* groups, long long all_rows, float* scales) {
  after_others();
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
  after_others();
  const int at = blockIdx.x * THREADS + threadIdx.x, row = at / (INNER_PAD / 4), i = at % (INNER_PAD / 4) * 4;
  if (row >= rows) return;
  const float4 gate = finished4(sums, columns, row, i), up = finished4(sums, columns, row, int(half) + i);
  if (i == 0) scales[row] = 1;
  Inputs{words, groups, all_rows}.put(
      row, i, float4{silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w});
}
