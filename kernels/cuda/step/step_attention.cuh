// Attention for a step in one kernel: one query head and one split of SPAN positions at a time. A warp takes 16 positions,
// reads their keys and values in one go, and makes its own weighted sum; those of the warps meet in shared memory. Which
// position is whose follows from the position alone, and every row is computed by itself.
// With SHARED_STEP, a step has rows of several sequences: a piece for each, with the address of its cache.
// With TREE, keys and values of the new rows go to slots from `position` on, a row is at a place of its own, and from `root`
// on it sees the rows of its path, in the slot root + their number; the path's numbers are bytes in the state.
// Vaswani et al. 1706.03762, section 3.2.1; partial softmax: Dao, 2307.08691; rotation: Su et al. 2104.09864.
namespace specdec {

constexpr int SLOT = SIZE + 4;  // of a split: values, largest, weight
constexpr int TOGETHER = (ROWS + 3) / 4;  // rows that a block takes at a time

// Place of a row, and how many splits it sees, by the state.
#if TREE
#define ROW_PLACE(row) state[STATE_PLACES + (row)]
#else
#define ROW_PLACE(row) (position + (row))
#endif
#define ROW_SPLITS(row) (ROW_PLACE(row) / SPAN + 1)
#if SHARED_STEP
#define WANTED_OF(row) (state[STATE_CHOICES + (row)] * TAKES)
#else
#define WANTED_OF(row) 0
#endif

// Rows of one sequence: the first of them, how many, where their keys and values go, and the sequence's cache.
struct Piece {
  int front, rows, position, root, capacity;
  half_t* cache;

  DEVICE int used() const { return (position + rows - 1) / SPAN + 1; }
  DEVICE int items() const { return (rows + TOGETHER - 1) / TOGETHER * HEADS * used(); }
  DEVICE half_t* past(int layer) const { return cache + (size_t)layer * 2 * KV_HEADS * capacity * SIZE; }
};

// The pieces of a step; where it has one, that of the cache which the kernel was given.
DEVICE Piece piece_at([[maybe_unused]] const int* state, int number, half_t* cache, int capacity, int position,
                      int rows) {
#if SHARED_STEP
  const int* about = state + STATE_PIECES + number * PIECE_SIZE;
  return Piece{about[0], about[1], about[2], about[3], about[4], address_in<half_t>(about + 5)};
#elif TREE
  return Piece{0, rows, position, state[STATE_PIECES + 3], capacity, cache};
#else
  return Piece{0, rows, position, position, capacity, cache};
#endif
}

constexpr int EACH_WARP = SPAN / WARPS, SHARING = 32 / EACH_WARP;  // positions of a warp, and lanes that share one
static_assert(EACH_WARP == 16 || EACH_WARP == 8, "the sums over lanes are written for 16 positions, or 8");

struct AttentionMemory {
  float turning[WARPS][SIZE];
  float query[ROWS][SIZE];
  half_t new_keys[ROWS][SIZE];
  half_t new_values[ROWS][SIZE];
  float sides[TOGETHER][WARPS][SIZE];
  float most[TOGETHER][WARPS];
  float weight[TOGETHER][WARPS];
};

DEVICE void widen(const uint2& raw, float (&to)[4]) {
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
  to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
}

// Norms a query or a key (kind 0 or 1) by head, where the model does: four dimensions of it, from `d` on.
DEVICE void norm_head([[maybe_unused]] int kind, [[maybe_unused]] int d, [[maybe_unused]] const float* norms,
                      [[maybe_unused]] float (&vector)[4]) {
#if QK_NORM
  if (kind < 2) {
    const float square = four_squares(vector[0], vector[1], vector[2], vector[3]);
    const float scale = rms_scale(lane_sum(square), SIZE, EPSILON);
#pragma unroll
    for (int e = 0; e < 4; ++e) vector[e] = d < SIZE ? vector[e] * scale * norms[kind * SIZE + d + e] : 0.0f;
  }
#endif
}

// Adds values over the lanes; lanes SHARING a .. SHARING a + SHARING - 1 get the sum of value a.
DEVICE float spread_sum(float (&value)[EACH_WARP], int lane) {
#pragma unroll
  for (int half = EACH_WARP / 2, mask = 16; half > 0; half /= 2, mask /= 2) {
#pragma unroll
    for (int a = 0; a < half; ++a) {
      const float kept = lane & mask ? value[a + half] : value[a], sent = lane & mask ? value[a] : value[a + half];
      value[a] = kept + shuffle_xor(sent, mask);
    }
  }
#pragma unroll
  for (int mask = SHARING / 2; mask > 0; mask /= 2) value[0] += shuffle_xor(value[0], mask);
  return value[0];
}

// Products of a query with the keys of a warp's positions, of four dimensions: those of this lane.
DEVICE void lane_scores(const uint2 (&k)[EACH_WARP], const float (&q)[4], float (&score)[EACH_WARP]) {
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    float wide[4];
    widen(k[a], wide);
    score[a] = fmaf(q[3], wide[3], fmaf(q[2], wide[2], fmaf(q[1], wide[1], q[0] * wide[0])));
  }
}

// The sum of a lane's four dimensions of the values, each times its share: lane first + EACH_SHARE a has that of position a.
template <int EACH_SHARE>
DEVICE void mix_values(const uint2 (&v)[EACH_WARP], float part, int first, float (&mixed)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) mixed[e] = 0;
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    const float share = __shfl_sync(EVERY_LANE, part, first + EACH_SHARE * a);
    float wide[4];
    widen(v[a], wide);
#pragma unroll
    for (int e = 0; e < 4; ++e) mixed[e] = fmaf(share, wide[e], mixed[e]);
  }
}

// What a warp makes of its positions for one query: each lane has four dimensions of keys, values and query, the lanes of
// position a say whether it is seen. The weighted sum of values, the largest score, and the sum of weights.
DEVICE void weigh(const uint2 (&k)[EACH_WARP], const uint2 (&v)[EACH_WARP], const float (&q)[4], bool seen, float (&mixed)[4],
                  float& most, float& weight) {
  const int lane = threadIdx.x % 32;
  float score[EACH_WARP];
  lane_scores(k, q, score);
  const float own = spread_sum(score, lane);
  most = lane_max(seen ? own : MINUS_INFINITY);
  const float part = seen ? exponential(own - most) : 0.0f;
  weight = lane_sum(lane % SHARING ? 0.0f : part);
  mix_values<SHARING>(v, part, 0, mixed);
}

// What all warps of a split have made, of one dimension: `sides` lies SIZE apart from warp to warp.
DEVICE void join(const float* most_of, const float* weight_of, const float* sides, float& most, float& mixed, float& weight) {
  most = most_of[0];
  for (int w = 1; w < WARPS; ++w) most = fmaxf(most, most_of[w]);
  mixed = 0, weight = 0;
  for (int w = 0; w < WARPS; ++w) {
    const float part = most_of[w] == MINUS_INFINITY ? 0.0f : exponential(most_of[w] - most);
    mixed = fmaf(part, sides[w * SIZE], mixed);
    weight = fmaf(part, weight_of[w], weight);
  }
}

// Asks for the keys and values of an item as below, which do not wait for what the step computes.
DEVICE void look_back(int item, int used, const half_t* cache, int capacity, int position) {
  constexpr int GROUP = HEADS / KV_HEADS, LINES = SIZE / 64 < 1 ? 1 : SIZE / 64;  // of 128 bytes
  const int kv_head = item / used % HEADS / GROUP, first = item % used * SPAN;
  if (item / used % HEADS % GROUP) return;  // another block asks for them
  for (int at = threadIdx.x; at < 2 * SPAN * LINES; at += THREADS) {
    const int place = first + at / 2 / LINES;
    if (place < position) {
      ahead(cache + ((size_t)(at % 2 * KV_HEADS + kv_head) * capacity + place) * SIZE + at / 2 % LINES * 64);
    }
  }
}

// Item of a piece: a group of rows, a head, a split. splits (ROWS, HEADS, splits, SLOT)
DEVICE void attend([[maybe_unused]] const Matrix& qkv, int item, const Piece& piece, int layer, int splits, const float* parts, const float* angles,
                   const float* bias, const float* norms, int window, [[maybe_unused]] const int* state, float* out,
                   AttentionMemory& m) {
  const int used = piece.used(), capacity = piece.capacity, rows = piece.rows, position = piece.position;
  [[maybe_unused]] const int root = piece.root, fresh = position - root, front = SHARED_STEP ? piece.front : 0;
  half_t* cache = piece.past(layer);
  const int tid = threadIdx.x, base = item / (HEADS * used) * TOGETHER, head = item / used % HEADS, split = item % used;
  const int warp = tid / 32, lane = tid % 32;
  constexpr int GROUP = HEADS / KV_HEADS;
  const int kv_head = head / GROUP, start = split * SPAN, first = start + warp * EACH_WARP, mine = lane * 4;
  half_t* keys = cache + (size_t)kv_head * capacity * SIZE;
  half_t* values = keys + (size_t)KV_HEADS * capacity * SIZE;
  uint2 k[EACH_WARP], v[EACH_WARP];
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    const bool past = first + a < root && mine < SIZE;
    const size_t place = (size_t)(first + a) * SIZE + mine;
    k[a] = past ? *reinterpret_cast<const uint2*>(keys + place) : uint2{0, 0};
    v[a] = past ? *reinterpret_cast<const uint2*>(values + place) : uint2{0, 0};
  }

  // Vectors of the new rows, a warp each: query, key and value of every row; a lane takes four dimensions.
  for (int job = warp; job < 3 * rows; job += WARPS) {
    const int row = job / 3, kind = job % 3, d = lane * 4;
    if (kind == 0 && (row < base || row >= base + TOGETHER)) continue;  // another block's query
    [[maybe_unused]] const int column = kind == 0 ? head * SIZE : (kind == 1 ? KEYS_AT : VALUES_AT) + kv_head * SIZE;
    float4 four = {0, 0, 0, 0};
    float2 angle[4];
    if (d < SIZE) {
      const float* turns = angles + ((size_t)ROW_PLACE(front + row) * (SIZE / 2) + d % (SIZE / 2)) * 2;
#pragma unroll
      for (int e = 0; e < 4; ++e) angle[e] = *reinterpret_cast<const float2*>(turns + 2 * e);
#if SEGMENTED
      four = sum4(segment_at(kind), parts, front + row, (kind == 0 ? head : kv_head) * SIZE + d);
#else
      four = sum4(qkv, parts, front + row, column + d);
#endif
#if BIAS
      // The biases follow each other, whatever the outputs of q, k and v begin at.
      const int number = kind == 0 ? head : HEADS + (kind - 1) * KV_HEADS + kv_head;
      add(four, *reinterpret_cast<const float4*>(bias + number * SIZE + d));
#endif
    }
    float vector[4] = {four.x, four.y, four.z, four.w};
    norm_head(kind, d, norms, vector);
    for (int e = 0; e < 4; ++e) {
      if (d < SIZE) m.turning[warp][d + e] = vector[e];
    }
    WARP_BARRIER();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = d + e;
      if (at >= SIZE) break;
      float turned = vector[e];
      if (kind < 2) {
        const float other = m.turning[warp][at < SIZE / 2 ? at + SIZE / 2 : at - SIZE / 2];
        turned = fmaf(vector[e], angle[e].x, (at < SIZE / 2 ? -other : other) * angle[e].y);
      }
      if (kind == 0) m.query[row][at] = turned * SCALE;
      if (kind == 1) m.new_keys[row][at] = to_half(turned);
      if (kind == 2) m.new_values[row][at] = to_half(turned);
    }
    WARP_BARRIER();
  }
  BARRIER();
  if (head % GROUP == 0 && base == 0) {
    for (int at = tid; at < rows * SIZE; at += THREADS) {
      const int row = at / SIZE, d = at % SIZE, place = position + row;
      if (place >= start && place < start + SPAN) {
        keys[(size_t)place * SIZE + d] = m.new_keys[row][d];
        values[(size_t)place * SIZE + d] = m.new_values[row][d];
      }
    }
  }

#if !TREE
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    const int row = first + a - position;
    if (row >= 0 && row < rows && mine < SIZE) {
      k[a] = *reinterpret_cast<const uint2*>(&m.new_keys[row][mine]);
      v[a] = *reinterpret_cast<const uint2*>(&m.new_values[row][mine]);
    }
  }
#endif

#pragma unroll 1
  for (int r = 0; r < TOGETHER && base + r < rows; ++r) {
    const int newest = ROW_PLACE(front + base + r), at = first + lane / SHARING;
#if TREE
#pragma unroll
    for (int a = 0; a < EACH_WARP; ++a) {
      const int depth = first + a - root;
      if (depth < 0 || first + a > newest || mine >= SIZE) continue;
      const int number = state[STATE_PATHS + (front + base + r) * PATH_WORDS + depth / 4] >> (depth % 4 * 8) & 255;
      const size_t place = (size_t)(root + number) * SIZE + mine;
      k[a] = *reinterpret_cast<const uint2*>(number < fresh ? keys + place : &m.new_keys[number - fresh][mine]);
      v[a] = *reinterpret_cast<const uint2*>(number < fresh ? values + place : &m.new_values[number - fresh][mine]);
    }
#endif
    float q[4] = {0, 0, 0, 0};
    for (int e = 0; e < 4; ++e) q[e] = mine < SIZE ? m.query[base + r][mine + e] : 0.0f;
    float mixed[4], most, weight;
    weigh(k, v, q, at <= newest && at > newest - window, mixed, most, weight);
    for (int e = 0; e < 4; ++e) {
      if (mine < SIZE) m.sides[r][warp][mine + e] = mixed[e];
    }
    if (lane == 0) m.most[r][warp] = most, m.weight[r][warp] = weight;
  }
  BARRIER();
  for (int place = tid; place < TOGETHER * SIZE; place += THREADS) {
    const int r = place / SIZE, d = place % SIZE;
    if (base + r < rows) {
      float most, mixed, weight;
      join(m.most[r], m.weight[r], &m.sides[r][0][d], most, mixed, weight);
      float* to = out + ((size_t)((front + base + r) * HEADS + head) * splits + split) * SLOT;
      to[d] = mixed;
      if (d == 0) to[SIZE] = most, to[SIZE + 1] = weight;
    }
  }
  BARRIER();
}

// Attention of a step's rows: the items of all pieces, by all blocks in turn.
DEVICE void attend_all(const Matrix& qkv, int rows, half_t* cache, int capacity, int position, int layer, const float* parts,
                       const float* angles, const float* bias, const float* norms, int window, const int* state, float* out,
                       AttentionMemory& m) {
  int item = blockIdx.x;
#pragma unroll 1
  for (int number = 0; number < (SHARED_STEP ? MOST_PIECES : 1); ++number) {
    const Piece piece = piece_at(state, number, cache, capacity, position, rows);
    const int items = piece.rows ? piece.items() : 0;
#pragma unroll 1
    for (; item < items; item += GRID) {
      attend(qkv, item, piece, layer, capacity / SPAN, parts, angles, bias, norms, window, state, out, m);
    }
    item -= items;
  }
}

// Four outputs of attention of one row, of `used` splits.
DEVICE float4 mixed4(const float* all, int row, int output, int used, int splits) {
  const float* from = all + (size_t)(row * HEADS + output / SIZE) * splits * SLOT;
  if (used == 1) {  // the same without what does not change anything
    const float4 value = load_float4(from + output % SIZE);
    const float weight = __ldcg(from + SIZE + 1);
    return float4{value.x / weight, value.y / weight, value.z / weight, value.w / weight};
  }
  float most = __ldcg(from + SIZE);
  for (int s = 1; s < used; ++s) most = fmaxf(most, __ldcg(from + s * SLOT + SIZE));
  float4 mixed = {0, 0, 0, 0};
  float weight = 0;
  for (int s = 0; s < used; ++s) {
    const float part = exponential(__ldcg(from + s * SLOT + SIZE) - most);
    const float4 value = load_float4(from + s * SLOT + output % SIZE);
    mixed.x = fmaf(part, value.x, mixed.x), mixed.y = fmaf(part, value.y, mixed.y);
    mixed.z = fmaf(part, value.z, mixed.z), mixed.w = fmaf(part, value.w, mixed.w);
    weight = fmaf(part, __ldcg(from + s * SLOT + SIZE + 1), weight);
  }
  return float4{mixed.x / weight, mixed.y / weight, mixed.z / weight, mixed.w / weight};
}

}  // namespace specdec
