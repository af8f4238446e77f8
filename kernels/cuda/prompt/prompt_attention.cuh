// Attention over many rows. A block has TILE_ROWS rows of one sequence, one head and one split of SPAN positions. What is
// computed for a row, a head and 16 positions is what a warp computes in step_attention.cuh, sums in the same order: four
// dimensions by fused additions, then pairs of these at half the distance each time.
namespace specdec {

constexpr int TILE_ROWS = 32, ATTEND_THREADS = 256, PIECES = SPAN / 16;
constexpr int SCORE_ROW = SPAN + 4, KEY_ROW = SPAN + 1;  // floats; fours of a dimension: neighbours in different banks
constexpr int LANE_DIMS = SIZE > 64 ? 4 : 2;
constexpr bool VALUES_APART = SIZE <= 64;  // else they take the place of the keys
constexpr int KEYS_BYTES = (SIZE / 4 * KEY_ROW * 8 + 15) / 16 * 16;

struct PromptAttention {
  float score[TILE_ROWS][SCORE_ROW];
  float query[TILE_ROWS][SIZE];
  float most[TILE_ROWS][PIECES + 1], weight[TILE_ROWS][PIECES + 1], part[TILE_ROWS][PIECES];
  alignas(16) char keys[KEYS_BYTES];
  alignas(16) char values[VALUES_APART ? SPAN * SIZE * 2 : 16];
};

// A row of a pass: token, position, positions of its cache, passes that have gone on from it, the cache's address, the slot
// for its key and value, and from which position on the row's path says where those before it are (`slot_of`).
struct PromptRow {
  int token, place, capacity, turn;
  half_t* cache;
  int slot, root;

  // The slot of a position that the row sees: path[i] is the row of the tree at position root + i.
  DEVICE int slot_of(int position, const unsigned char* path) const {
    return position < root ? position : root + path[position - root];
  }
};
// Rows of a sequence that follow each other: the first, how many, its position, and the cache.
struct PromptTile {
  int first, rows, place, capacity;
  const half_t* cache;
  long long more;
};

// Products of eight rows' queries with the keys of positions `at` and at + 32: what lanes BASE, BASE + MASK and so on have
// in a step, added as there.
template <int MASK, int BASE>
struct Dots {
  static DEVICE void find(const float (*query)[SIZE], const uint2* keys, float (&to)[8][2]) {
    if constexpr (MASK == 32) {
      float key[2][4];
      widen(keys[BASE * KEY_ROW], key[0]), widen(keys[BASE * KEY_ROW + 32], key[1]);
#pragma unroll
      for (int row = 0; row < 8; ++row) {
        const float4 four = *reinterpret_cast<const float4*>(&query[row][BASE * 4]);
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          to[row][p] = fmaf(four.w, key[p][3], fmaf(four.z, key[p][2], fmaf(four.y, key[p][1], __fmul_rn(four.x, key[p][0]))));
        }
      }
    } else {
      Dots<MASK * 2, BASE>::find(query, keys, to);
      if constexpr ((BASE + MASK) * 4 < SIZE) {
        float other[8][2];
        Dots<MASK * 2, BASE + MASK>::find(query, keys, other);
#pragma unroll
        for (int row = 0; row < 8; ++row) to[row][0] += other[row][0], to[row][1] += other[row][1];
      }
    }
  }
};

// Four dimensions of a head of a row's query, key or value (kind 0, 1 or 2), turned by the row's position: those of this
// lane, from 4 times its number on, if there are any. `source(kind, row, output)` gives outputs of q, k or v.
template <class F>
DEVICE void turn_four(int kind, int head, int row, int place, const float* angles, const float* bias, const float* norms,
                      F source, float (&turned)[4]) {
  const int lane = threadIdx.x % 32, d = lane * 4;
  float4 four = {0, 0, 0, 0};
  float2 angle[4];
  if (d < SIZE) {
    const float* turns = angles + ((size_t)place * (SIZE / 2) + d % (SIZE / 2)) * 2;
#pragma unroll
    for (int e = 0; e < 4; ++e) angle[e] = *reinterpret_cast<const float2*>(turns + 2 * e);
    four = source(kind, row, head * SIZE + d);
#if BIAS
    const int vector_number = head + (kind == 0 ? 0 : kind == 1 ? HEADS : HEADS + KV_HEADS);
    add(four, *reinterpret_cast<const float4*>(bias + vector_number * SIZE + d));
#endif
  }
  float vector[4] = {four.x, four.y, four.z, four.w};
  norm_head(kind, d, norms, vector);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int half = SIZE / 8, from = lane < half ? lane + half : lane - half;
    const float other = __shfl_sync(EVERY_LANE, vector[e], d < SIZE ? from : lane);
    turned[e] = kind < 2 ? fmaf(vector[e], angle[e].x, (d < SIZE / 2 ? -other : other) * angle[e].y) : vector[e];
  }
}

// Where the key (kind 1) or value (kind 2) of a row goes.
DEVICE half_t* new_place(const PromptRow& of, int kind, int head, long long layer) {
  half_t* past = of.cache + (size_t)(2 * layer + kind - 1) * KV_HEADS * of.capacity * SIZE;
  return past + ((size_t)head * of.capacity + of.slot) * SIZE;
}

// Turns queries and keys by their positions, puts keys and values into the caches; queries (rows, HEADS, SIZE) are times the
// scale of scores. A warp has a vector of a row.
template <class F>
DEVICE void turn_vector(const PromptRow* about, const float* angles, const float* bias, const float* norms, long long layer,
                        float* queries, F source) {
  const int lane = threadIdx.x % 32, row = blockIdx.x, vector_number = blockIdx.y * 8 + threadIdx.x / 32, d = lane * 4;
  after_others();
  if (vector_number >= HEADS + 2 * KV_HEADS) return;
  const int kind = vector_number < HEADS ? 0 : vector_number < HEADS + KV_HEADS ? 1 : 2;
  const int head = kind == 0 ? vector_number : (vector_number - HEADS) % KV_HEADS;
  const PromptRow of = about[row];
  float turned[4];
  turn_four(kind, head, row, of.place, angles, bias, norms, source, turned);
  if (d >= SIZE) return;
  if (kind == 0) {
    float* to = queries + ((size_t)row * HEADS + head) * SIZE + d;
    for (int e = 0; e < 4; ++e) to[e] = turned[e] * SCALE;
  } else {
    half_t* to = new_place(of, kind, head, layer) + d;
    for (int e = 0; e < 4; ++e) to[e] = to_half(turned[e]);
  }
}

}  // namespace specdec

// sums (rows, columns) of q, k from TURN_KEYS on, v from TURN_VALUES on
extern "C" __global__ void __launch_bounds__(256)
    prompt_turn(const float* sums, long long columns, const PromptRow* about, const float* angles, const float* bias,
                const float* norms, long long layer, float* queries) {
  turn_vector(about, angles, bias, norms, layer, queries, [&](int kind, int row, int output) {
    const int column = output + (kind == 0 ? 0 : kind == 1 ? TURN_KEYS : TURN_VALUES);
    return *reinterpret_cast<const float4*>(sums + row * columns + column);
  });
}

// queries (rows, HEADS, SIZE) -> splits (rows, HEADS, splits, SLOT); blocks: (tiles, HEADS, splits)
extern "C" __global__ void __launch_bounds__(ATTEND_THREADS, 2)
    prompt_attend(const float* queries, const PromptTile* tiles, long long layer, long long window, long long splits,
                  float* out) {
  extern __shared__ uint4 shared_memory[];
  after_others();
  PromptAttention& m = *reinterpret_cast<PromptAttention*>(shared_memory);
  const PromptTile tile = tiles[blockIdx.x];
  const int head = blockIdx.y, split = blockIdx.z, start = split * SPAN, newest = tile.place + tile.rows - 1;
  if (start > newest) return;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, kv_head = head / (HEADS / KV_HEADS);
  const half_t* keys = tile.cache + ((size_t)(2 * layer) * KV_HEADS + kv_head) * tile.capacity * SIZE + (size_t)start * SIZE;
  const half_t* values = keys + (size_t)KV_HEADS * tile.capacity * SIZE;
  char* value_room = VALUES_APART ? m.values : m.keys;
  auto ask_values = [&] {
    for (int at = tid; at < SPAN * SIZE / 8; at += ATTEND_THREADS) copy16(value_room + at * 16, values + at * 8);
    end_stage();
  };
  if (VALUES_APART) ask_values();
  uint2* turned_keys = reinterpret_cast<uint2*>(m.keys);
#pragma unroll 8
  for (int at = tid; at < SPAN * SIZE / 8; at += ATTEND_THREADS) {
    const int place = at / (SIZE / 8), chunk = at % (SIZE / 8) * 2;
    const uint4 raw = *reinterpret_cast<const uint4*>(keys + at * 8);
    turned_keys[chunk * KEY_ROW + place] = uint2{raw.x, raw.y};
    turned_keys[(chunk + 1) * KEY_ROW + place] = uint2{raw.z, raw.w};
  }
  for (int at = tid; at < TILE_ROWS * SIZE / 4; at += ATTEND_THREADS) {
    const int row = at / (SIZE / 4), d = at % (SIZE / 4) * 4;
    const float* from = queries + ((size_t)(tile.first + row) * HEADS + head) * SIZE + d;
    *reinterpret_cast<float4*>(&m.query[row][d]) = row < tile.rows ? *reinterpret_cast<const float4*>(from) : float4{0, 0, 0, 0};
  }
  BARRIER();

  // Scores: a warp has eight rows and 64 positions at a time.
  for (int job = warp; job < TILE_ROWS / 8 * (SPAN / 64); job += ATTEND_THREADS / 32) {
    const int base = job % (TILE_ROWS / 8) * 8, at = job / (TILE_ROWS / 8) * 64 + lane;
    if (base >= tile.rows || start + at - lane > newest) continue;
    float found[8][2];
    Dots<1, 0>::find(m.query + base, turned_keys + at, found);
#pragma unroll
    for (int row = 0; row < 8; ++row) m.score[base + row][at] = found[row][0], m.score[base + row][at + 32] = found[row][1];
  }
  BARRIER();
  if (!VALUES_APART) ask_values();

  // Each piece of 16 positions by itself: the largest score, shares and their sum.
  const int row = lane, place = tile.place + row;
  for (int piece = warp; piece < PIECES; piece += ATTEND_THREADS / 32) {
    const int first = start + piece * 16;
    if (first > newest) {
      m.most[row][piece] = MINUS_INFINITY, m.weight[row][piece] = 0;
      continue;
    }
    float4* score = reinterpret_cast<float4*>(&m.score[row][piece * 16]);
    float most = MINUS_INFINITY, part[16];
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const float4 four = score[quad];
      part[4 * quad] = four.x, part[4 * quad + 1] = four.y, part[4 * quad + 2] = four.z, part[4 * quad + 3] = four.w;
    }
#pragma unroll
    for (int a = 0; a < 16; ++a) {
      const bool seen = first + a <= place && first + a > place - window;
      most = fmaxf(most, seen ? part[a] : MINUS_INFINITY);
    }
#pragma unroll
    for (int a = 0; a < 16; ++a) {
      const bool seen = first + a <= place && first + a > place - window;
      part[a] = seen ? exponential(part[a] - most) : 0.0f;
    }
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      score[quad] = float4{part[4 * quad], part[4 * quad + 1], part[4 * quad + 2], part[4 * quad + 3]};
    }
#pragma unroll
    for (int a = 0; a < 8; ++a) part[a] += part[a + 8];
#pragma unroll
    for (int a = 0; a < 4; ++a) part[a] += part[a + 4];
    m.most[row][piece] = most, m.weight[row][piece] = (part[0] + part[2]) + (part[1] + part[3]);
  }
  BARRIER();
  if (warp == 0) {
    float most = m.most[row][0];
    for (int piece = 1; piece < PIECES; ++piece) most = fmaxf(most, m.most[row][piece]);
    float weight = 0;
    for (int piece = 0; piece < PIECES; ++piece) {
      const float part = m.most[row][piece] == MINUS_INFINITY ? 0.0f : exponential(m.most[row][piece] - most);
      weight = fmaf(part, m.weight[row][piece], weight);
      m.part[row][piece] = part;
    }
    if (row < tile.rows && start <= place) {
      float* to = out + (((size_t)(tile.first + row) * HEADS + head) * splits + split) * SLOT;
      to[SIZE] = most, to[SIZE + 1] = weight;
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  BARRIER();

  // Values: a warp has four rows, a lane LANE_DIMS dimensions.
  const int base = warp * 4, d = lane * LANE_DIMS;
  if (d >= SIZE || base >= tile.rows) return;
  const int pieces = newest - start >= SPAN ? PIECES : (newest - start) / 16 + 1;
  float mixed[4][LANE_DIMS] = {};
#pragma unroll 1
  for (int piece = 0; piece < pieces; ++piece) {
    float sum[4][LANE_DIMS] = {};
#pragma unroll
    for (int a = 0; a < 16; a += 4) {
      float value[4][LANE_DIMS];
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const char* from = value_room + ((piece * 16 + a + b) * SIZE + d) * 2;
#pragma unroll
        for (int pair = 0; pair < LANE_DIMS / 2; ++pair) {
          const float2 two = __half22float2(reinterpret_cast<const __half2*>(from)[pair]);
          value[b][2 * pair] = two.x, value[b][2 * pair + 1] = two.y;
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float4 share = *reinterpret_cast<const float4*>(&m.score[base + r][piece * 16 + a]);
        const float of[4] = {share.x, share.y, share.z, share.w};
#pragma unroll
        for (int b = 0; b < 4; ++b) {
#pragma unroll
          for (int e = 0; e < LANE_DIMS; ++e) sum[r][e] = fmaf(of[b], value[b][e], sum[r][e]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int e = 0; e < LANE_DIMS; ++e) mixed[r][e] = fmaf(m.part[base + r][piece], sum[r][e], mixed[r][e]);
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (base + r >= tile.rows || start > tile.place + base + r) continue;
    float* to = out + (((size_t)(tile.first + base + r) * HEADS + head) * splits + split) * SLOT + d;
#pragma unroll
    for (int e = 0; e < LANE_DIMS; ++e) to[e] = mixed[r][e];
  }
}
