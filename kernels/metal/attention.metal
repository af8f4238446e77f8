// Attention of the new rows of several sequences, each over SPAN positions of its own history: one query head, one sequence
// and one split per threadgroup, after bias, norm and rotation of the new queries and keys; the head that owns a key-value
// head also writes the new keys and values into the sequence's cache, in place. Splits start at fixed positions and every
// row is computed by itself.
// With TREE a row sees the positions before `root` and from there on those of its own path, whose keys and values lie in the
// slot root + the number of the path's row; numbers from `fresh` on are of rows of this step.
// Vaswani et al. 1706.03762, section 3.2.1; rotation: Su et al. 2104.09864, section 3.4.2.
// qkv (PARTS, ROWS, COLUMNS), CACHES caches (2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2), state; bias (COLUMNS)
// when BIAS, norms (2, SIZE) when QK_NORM -> splits (ROWS, HEADS, SPLITS, SIZE + 2)
const int tid = thread_position_in_threadgroup.x, head = threadgroup_position_in_grid.x;
const int split = threadgroup_position_in_grid.y % SPLITS, piece = threadgroup_position_in_grid.y / SPLITS;
const int warp = tid / 32, lane = tid % 32;
constexpr int THREADS = 256, GROUP = HEADS / KV_HEADS, EACH = (SIZE + 31) / 32, SIDES = THREADS / SIZE;
constexpr int TOGETHER = ROWS < 4 ? ROWS : 4, SHARE = (SPAN + SIDES - 1) / SIDES, AHEAD = 16;
device const int* about = state + STATE_PIECES + piece * PIECE_SIZE;
const int front = about[0], rows = about[1], position = about[2], capacity = about[4];  // its first row is `front`
const int kv_head = head / GROUP, start = split * SPAN;
if (start >= position + rows) return;
device half_t* keys = (device half_t*)(cache0);
#define CACHE(n) if (piece == n) keys = (device half_t*)(cache##n)
#if CACHES > 1
CACHE(1); CACHE(2); CACHE(3);
#endif
#if CACHES > 4
CACHE(4); CACHE(5); CACHE(6); CACHE(7); CACHE(8); CACHE(9); CACHE(10); CACHE(11); CACHE(12); CACHE(13); CACHE(14); CACHE(15);
#endif
#undef CACHE
#if TREE
const int root = about[3], fresh = position - root;
#define PLACE(row) state[STATE_PLACES + front + (row)]
#define NUMBER(row, depth) (state[STATE_PATHS + (front + (row)) * PATH_WORDS + (depth) / 4] >> ((depth) % 4 * 8) & 255)
#else
const int root = position;
#define PLACE(row) (position + (row))
#endif
keys += (ulong)kv_head * capacity * SIZE;
device half_t* values = keys + (ulong)KV_HEADS * capacity * SIZE;
threadgroup float turning[8][SIZE];
threadgroup float query[ROWS][SIZE];
threadgroup half_t new_keys[ROWS][SIZE];
threadgroup half_t new_values[ROWS][SIZE];
threadgroup float weights[TOGETHER][SPAN];
threadgroup float sides[TOGETHER][THREADS];
threadgroup float scratch[32];

// Vectors of the new rows, a warp each: query, key and value of every row.
for (int job = warp; job < 3 * rows; job += THREADS / 32) {
  const int row = job / 3, kind = job % 3;
  const int column = kind == 0 ? head * SIZE : (HEADS + (kind - 1) * KV_HEADS + kv_head) * SIZE;
  float v[EACH];
  float square = 0;
  for (int e = 0; e < EACH; ++e) {
    const int d = e * 32 + lane;
    v[e] = 0;
    if (d < SIZE) {
      v[e] = qkv[(ulong)(front + row) * COLUMNS + column + d];
      for (int p = 1; p < PARTS; ++p) v[e] += qkv[((ulong)p * ROWS + front + row) * COLUMNS + column + d];
#if BIAS
      v[e] += bias[column + d];
#endif
    }
    square += v[e] * v[e];
  }
#if QK_NORM
  if (kind < 2) {
    const float scale = 1.0f / square_root(lane_sum(square) / SIZE + EPSILON);
    for (int e = 0; e < EACH; ++e) {
      const int d = e * 32 + lane;
      if (d < SIZE) v[e] = v[e] * scale * norms[kind * SIZE + d];
    }
  }
#endif
  for (int e = 0; e < EACH; ++e) {
    if (e * 32 + lane < SIZE) turning[warp][e * 32 + lane] = v[e];
  }
  WARP_BARRIER();
  for (int e = 0; e < EACH; ++e) {
    const int d = e * 32 + lane;
    if (d < SIZE) {
      float turned = v[e];
      if (kind < 2) {
        device const float* angle = angles + ((ulong)PLACE(row) * (SIZE / 2) + d % (SIZE / 2)) * 2;
        const float other = turning[warp][d < SIZE / 2 ? d + SIZE / 2 : d - SIZE / 2];
        turned = d < SIZE / 2 ? fma(v[e], angle[0], -other * angle[1]) : fma(v[e], angle[0], other * angle[1]);
      }
      if (kind == 0) query[row][d] = turned * SCALE;
      if (kind == 1) new_keys[row][d] = to_half(turned);
      if (kind == 2) new_values[row][d] = to_half(turned);
    }
  }
  WARP_BARRIER();
}
BARRIER();
if (head % GROUP == 0) {
  for (int at = tid; at < rows * SIZE; at += THREADS) {
    const int row = at / SIZE, d = at % SIZE, place = position + row;
    if (place >= start && place < start + SPAN) {
      keys[(ulong)place * SIZE + d] = new_keys[row][d];
      values[(ulong)place * SIZE + d] = new_values[row][d];
    }
  }
}

const int own = start + tid;  // the position whose key this thread reads
for (int base = 0; base < rows; base += TOGETHER) {
  float score[TOGETHER];
  for (int r = 0; r < TOGETHER; ++r) score[r] = 0;
#if TREE
  int number[TOGETHER];  // of the row that each row sees at this position; -1 for none
  for (int r = 0; r < TOGETHER; ++r) {
    const int row = base + r;
    number[r] = own >= root && row < rows && own <= PLACE(row) ? NUMBER(row, own - root) : -1;
  }
#endif
  if (tid < SPAN && own < position + rows) {
    for (int d = 0; d < SIZE; d += 8) {
      float k[8];
      if (own < root) {
        load8(keys + (ulong)own * SIZE + d, k);
      }
#if !TREE
      else {
        load8(&new_keys[own - position][d], k);
      }
#endif
      for (int r = 0; r < TOGETHER; ++r) {
        const int row = base + r < ROWS ? base + r : 0;
#if TREE
        if (own >= root) {
          if (number[r] < 0) continue;
          if (number[r] < fresh) {
            load8(keys + (ulong)(root + number[r]) * SIZE + d, k);
          } else {
            load8(&new_keys[number[r] - fresh][d], k);
          }
        }
#endif
        for (int j = 0; j < 8; ++j) score[r] = fma(query[row][d + j], k[j], score[r]);
      }
    }
  }
  float most[TOGETHER], weight[TOGETHER];
  for (int r = 0; r < TOGETHER; ++r) {
    const int newest = PLACE(base + r);
    const bool seen = tid < SPAN && own <= newest && own > newest - WINDOW && base + r < rows;
    most[r] = block_max<THREADS / 32>(seen ? score[r] : MINUS_INFINITY, scratch, tid);
    const float part = seen ? exponential(score[r] - most[r]) : 0.0f;
    if (tid < SPAN) weights[r][tid] = part;
    weight[r] = block_sum<THREADS / 32>(part, scratch, tid);
  }
  BARRIER();
  const int d = tid % SIZE, side = tid / SIZE;
  float mixed[TOGETHER];
  for (int r = 0; r < TOGETHER; ++r) mixed[r] = 0;
  if (side < SIDES) {
    const int from = start + side * SHARE;
    int until = from + SHARE < start + SPAN ? from + SHARE : start + SPAN;
    until = until < position + rows ? until : position + rows;
    for (int at = from; at < until; at += AHEAD) {
      float v[AHEAD];  // all loads first: one by one each would wait for the memory
      for (int a = 0; a < AHEAD; ++a) {
        v[a] = 0;
        if (at + a < until) {
#if TREE
          if (at + a < root) v[a] = to_float(values[(ulong)(at + a) * SIZE + d]);
#else
          v[a] = to_float(at + a < position ? values[(ulong)(at + a) * SIZE + d] : new_values[at + a - position][d]);
#endif
        }
      }
      for (int a = 0; a < AHEAD; ++a) {
        for (int r = 0; r < TOGETHER; ++r) {
          float value = v[a];
#if TREE
          const int place = at + a, row = base + r;
          if (place >= root && place < until && row < rows && place <= PLACE(row)) {
            const int number = NUMBER(row, place - root);
            value = to_float(number < fresh ? values[(ulong)(root + number) * SIZE + d] : new_values[number - fresh][d]);
          }
#endif
          if (at + a < until) mixed[r] = fma(weights[r][at + a - start], value, mixed[r]);
        }
      }
    }
  }
  for (int r = 0; r < TOGETHER; ++r) sides[r][tid] = mixed[r];
  BARRIER();
  for (int r = 0; r < TOGETHER; ++r) {
    if (base + r < rows) {
      const ulong out = ((ulong)((front + base + r) * HEADS + head) * SPLITS + split) * (SIZE + 2);
      if (tid < SIZE) {
        float value = sides[r][tid];
        for (int other = 1; other < SIDES; ++other) value += sides[r][other * SIZE + tid];
        splits[out + tid] = value;
      }
      if (tid == 0) {
        splits[out + SIZE] = most[r];
        splits[out + SIZE + 1] = weight[r];
      }
    }
  }
  BARRIER();
}
#undef PLACE
#undef NUMBER
