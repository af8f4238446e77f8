// Attention of the new rows of several sequences, each over SPAN positions of its own history, whose keys and values
// rotate.cu has put into the sequence's cache: one query head, one sequence and one split per block. Splits start
// at fixed positions and every row is computed by itself; those that no row's window reaches are left out.
// With TREE a row sees the positions before `root` and from there on those of its own path, whose keys and values lie in the
// slot root + the number of the path's row.
// Vaswani et al. 1706.03762, section 3.2.1; softcap of scores: Gemma 2, 2408.00118, section 2.
// queries (ROWS, HEADS, SIZE), CACHES caches (2, KV_HEADS, capacity, SIZE), state -> splits (ROWS, HEADS, SPLITS, SIZE + 2)
const int tid = threadIdx.x, head = blockIdx.x;
const int split = blockIdx.y % SPLITS, piece = blockIdx.y / SPLITS;
constexpr int THREADS = 256, GROUP = HEADS / KV_HEADS, SIDES = THREADS / SIZE;
constexpr int TOGETHER = ROWS < 4 ? ROWS : 4, SHARE = (SPAN + SIDES - 1) / SIDES, AHEAD = 16;
const int* about = state + STATE_PIECES + piece * PIECE_SIZE;
const int front = about[0], rows = about[1], position = about[2], capacity = about[4];  // its first row is `front`
#if TREE
const int root = about[3];
#define PLACE(row) state[STATE_PLACES + front + (row)]
#define NUMBER(row, depth) (state[STATE_PATHS + (front + (row)) * PATH_WORDS + (depth) / 4] >> ((depth) % 4 * 8) & 255)
#else
const int root = position;
#define PLACE(row) (position + (row))
#endif
const int kv_head = head / GROUP, start = split * SPAN;
if (start >= position + rows || start + SPAN <= root - WINDOW + 1) return;
half_t* cache = const_cast<half_t*>(cache0);
#include "caches"
const half_t* keys = cache + (size_t)kv_head * capacity * SIZE;
const half_t* values = keys + (size_t)KV_HEADS * capacity * SIZE;
SHARED float query[TOGETHER][SIZE];
SHARED float weights[TOGETHER][SPAN];
SHARED float sides[TOGETHER][THREADS];
SHARED float scratch[32];

const int own = start + tid;  // the position whose key this thread reads
for (int base = 0; base < rows; base += TOGETHER) {
  for (int at = tid; at < TOGETHER * SIZE; at += THREADS) {
    const int row = base + at / SIZE;
    query[at / SIZE][at % SIZE] = row < rows ? queries[((size_t)(front + row) * HEADS + head) * SIZE + at % SIZE] : 0.0f;
  }
  BARRIER();
  float score[TOGETHER];
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) score[r] = 0;
#if TREE
  int number[TOGETHER];  // of the row that each row sees at this position; -1 for none
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) {
    const int row = base + r;
    number[r] = own >= root && row < rows && own <= PLACE(row) ? NUMBER(row, own - root) : -1;
  }
#endif
  if (tid < SPAN && own < position + rows) {
#pragma unroll 8
    for (int d = 0; d < SIZE; d += 8) {
      float k[8];
#if TREE
      if (own < root)
#endif
        load8(keys + (size_t)own * SIZE + d, k);
#pragma unroll
      for (int r = 0; r < TOGETHER; ++r) {
#if TREE
        if (own >= root) {
          if (number[r] < 0) continue;
          load8(keys + (size_t)(root + number[r]) * SIZE + d, k);
        }
#endif
#pragma unroll
        for (int j = 0; j < 8; ++j) score[r] = fmaf(query[r][d + j], k[j], score[r]);
      }
    }
  }
  float most[TOGETHER], weight[TOGETHER];
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) {
    const int newest = PLACE(base + r);
    const bool seen = tid < SPAN && own <= newest && own > newest - WINDOW && base + r < rows;
#if SOFTCAP
    score[r] = product(CAP, hyperbolic(score[r] / CAP));
#endif
    most[r] = block_max<THREADS / 32>(seen ? score[r] : MINUS_INFINITY, scratch, tid);
    const float part = seen ? exponential(score[r] - most[r]) : 0.0f;
    if (tid < SPAN) weights[r][tid] = part;
    weight[r] = block_sum<THREADS / 32>(part, scratch, tid);
  }
  BARRIER();
  const int d = tid % SIZE, side = tid / SIZE;
  float mixed[TOGETHER];
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) mixed[r] = 0;
  if (side < SIDES) {
    const int from = start + side * SHARE;
    int until = from + SHARE < start + SPAN ? from + SHARE : start + SPAN;
    until = until < position + rows ? until : position + rows;
    for (int at = from; at < until; at += AHEAD) {
      float v[AHEAD];  // all loads first: one by one each would wait for the memory
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        v[a] = 0;
#if TREE
        if (at + a < until && at + a < root) v[a] = to_float(values[(size_t)(at + a) * SIZE + d]);
#else
        if (at + a < until) v[a] = to_float(values[(size_t)(at + a) * SIZE + d]);
#endif
      }
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) {
          float value = v[a];
#if TREE
          const int place = at + a, row = base + r;
          if (place >= root && place < until && row < rows && place <= PLACE(row)) {
            value = to_float(values[(size_t)(root + NUMBER(row, place - root)) * SIZE + d]);
          }
#endif
          if (at + a < until) mixed[r] = fmaf(weights[r][at + a - start], value, mixed[r]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) sides[r][tid] = mixed[r];
  BARRIER();
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) {
    if (base + r < rows) {
      const size_t out = ((size_t)((front + base + r) * HEADS + head) * SPLITS + split) * (SIZE + 2);
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
