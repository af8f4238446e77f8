// Attention of a step in one kernel on this GPU's heads: see ranks_step.cu. An item is a group of rows, a head, and a split of
// SPAN positions, by 256 threads of a block; the last block of a group and head puts the splits together and writes the
// result into the memory of all GPUs. Arithmetic: rotate.cu, attention.cu and attention_sum.cu.
constexpr int GROUP = HEADS / KV_HEADS, TOGETHER = ROWS < 4 ? ROWS : 4, LANES = 256, SIDES = LANES / SIZE;
constexpr int SHARE = (SPAN + SIDES - 1) / SIDES, EACH = (SIZE + 31) / 32, AT_ONCE = 16;
struct Attending {
  float turning[WARPS][SIZE];
  float query[TOGETHER][SIZE];
  float weights[TOGETHER][SPAN];
  float sides[TOGETHER][LANES];
  float scratch[32];
  half_t keys[ROWS][SIZE], values[ROWS][SIZE];  // of the new rows
  int is_last;
};
static_assert(sizeof(Attending) <= ROOM_BYTES, "memory for it is set aside");
Attending& m = *reinterpret_cast<Attending*>(room);

// A vector of a new row by one warp: kind 0 query, 1 key, 2 value.
auto rotate = [&](int layer, int row, int kind, int head) {
  const int lane = tid % 32, warp = tid / 32, column = ((kind == 0 ? 0 : kind == 1 ? HEADS : HEADS + KV_HEADS) + head) * SIZE;
  const float* from = qkv + (size_t)row * OWN_QKV + column;
  float v[EACH], square = 0;
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    const int d = e * 32 + lane;
    v[e] = 0;
    if (d < SIZE) {
      v[e] = __ldcg(from + d);
#if BIAS
      v[e] += ENTRY(float, layer, 2)[column + d];
#endif
    }
    square = fmaf(v[e], v[e], square);
  }
#if QK_NORM
  if (kind < 2) {
    const float scale = 1.0f / square_root(lane_sum(square) / SIZE + EPSILON);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const int d = e * 32 + lane;
      if (d < SIZE) v[e] = v[e] * scale * ENTRY(float, layer, 3)[kind * SIZE + d];
    }
  }
#endif
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    if (e * 32 + lane < SIZE) m.turning[warp][e * 32 + lane] = v[e];
  }
  WARP_BARRIER();
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    const int d = e * 32 + lane;
    if (d >= SIZE) continue;
    float turned = v[e];
    if (kind < 2) {
      const bool low = d < SIZE / 2;
      const float* angle = angles + ((size_t)(position + row) * (SIZE / 2) + d % (SIZE / 2)) * 2;
      const float away = m.turning[warp][low ? d + SIZE / 2 : d - SIZE / 2];
      turned = low ? fmaf(v[e], angle[0], -away * angle[1]) : fmaf(v[e], angle[0], away * angle[1]);
    }
    if (kind == 0) m.query[row % TOGETHER][d] = turned * SCALE;
    if (kind == 1) m.keys[row][d] = to_half(turned);
    if (kind == 2) m.values[row][d] = to_half(turned);
  }
  WARP_BARRIER();
};

auto attend = [&](int layer, int base, int head, int split, int most_splits) {
  const int window = int(address[layer * ENTRIES + 8]), kv_head = head / GROUP, start = split * SPAN, group = base / TOGETHER;
  half_t* keys = reinterpret_cast<half_t*>(caches[layer]) + (size_t)kv_head * capacity * SIZE;
  half_t* values = keys + (size_t)KV_HEADS * capacity * SIZE;
  for (int job = tid / 32; job < 3 * rows; job += WARPS) {
    const int row = job / 3, kind = job % 3;
    if (kind > 0 || row / TOGETHER == group) rotate(layer, row, kind, kind == 0 ? head : kv_head);
  }
  BARRIER();
  if (head % GROUP == 0 && group == 0) {
    for (int at = tid; at < rows * SIZE; at += THREADS) {
      const int row = at / SIZE, d = at % SIZE, place = position + row;
      if (place >= start && place < start + SPAN) {
        keys[(size_t)place * SIZE + d] = m.keys[row][d];
        values[(size_t)place * SIZE + d] = m.values[row][d];
      }
    }
  }
  const int at = start + tid;  // the position whose key this thread reads
  const bool reads = tid < SPAN && at < position + rows;
  float score[TOGETHER], most[TOGETHER], weight[TOGETHER];
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) score[r] = 0;
  // Two loops, so that loads need not find out which memory they are from.
  auto multiply_key = [&](const half_t* from) {
#pragma unroll 8
    for (int d = 0; d < SIZE; d += 8) {
      float k[8];
      load8(from + d, k);
#pragma unroll
      for (int r = 0; r < TOGETHER; ++r) {
#pragma unroll
        for (int j = 0; j < 8; ++j) score[r] = fmaf(m.query[r][d + j], k[j], score[r]);
      }
    }
  };
  if (reads && at < position) multiply_key(keys + (size_t)at * SIZE);
  if (reads && at >= position) multiply_key(m.keys[at - position]);
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) {
    const int newest = position + base + r;
    const bool seen = tid < SPAN && at <= newest && at > newest - window && base + r < rows;
    most[r] = block_max<LANES / 32>(seen ? score[r] : MINUS_INFINITY, m.scratch, tid);
    const float part = seen ? exponential(score[r] - most[r]) : 0.0f;
    if (tid < SPAN) m.weights[r][tid] = part;
    weight[r] = block_sum<LANES / 32>(part, m.scratch, tid);
  }
  BARRIER();
  const int d = tid % SIZE, from_side = tid / SIZE;
  float mixed[TOGETHER];
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) mixed[r] = 0;
  if (tid < LANES && from_side < SIDES) {
    const int from = start + from_side * SHARE;
    int until = from + SHARE < start + SPAN ? from + SHARE : start + SPAN;
    until = until < position + rows ? until : position + rows;
    const int past = until < position ? until : position;  // the history, then the new rows
    for (int place = from; place < past; place += AT_ONCE) {
      half_t v[AT_ONCE];
#pragma unroll
      for (int a = 0; a < AT_ONCE; ++a) v[a] = values[(size_t)(place + a < past ? place + a : past - 1) * SIZE + d];
#pragma unroll
      for (int a = 0; a < AT_ONCE; ++a) {
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) {
          if (place + a < past) mixed[r] = fmaf(m.weights[r][place + a - start], to_float(v[a]), mixed[r]);
        }
      }
    }
    for (int place = from > position ? from : position; place < until; ++place) {
      const float value = to_float(m.values[place - position][d]);
#pragma unroll
      for (int r = 0; r < TOGETHER; ++r) mixed[r] = fmaf(m.weights[r][place - start], value, mixed[r]);
    }
  }
  if (tid < LANES) {
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) m.sides[r][tid] = mixed[r];
  }
  BARRIER();
#pragma unroll
  for (int r = 0; r < TOGETHER; ++r) {
    if (base + r < rows && tid < SIZE) {
      float* to = splits + ((size_t)((base + r) * HEADS + head) * most_splits + split) * (SIZE + 2);
      float value = m.sides[r][tid];
      for (int other = 1; other < SIDES; ++other) value += m.sides[r][other * SIZE + tid];
      to[tid] = value;
      if (tid == 0) to[SIZE] = most[r], to[SIZE + 1] = weight[r];
    }
  }
};

// Splits of a group's head put together, one output a thread.
auto combine = [&](int layer, int base, int head, int most_splits) {
  const int window = int(address[layer * ENTRIES + 8]);
  for (int at = tid; at < TOGETHER * SIZE; at += THREADS) {
    const int row = base + at / SIZE, d = at % SIZE;
    if (row >= rows) break;
    const int place = position + row, used = place / SPAN + 1;
    const int before = place - window + 1 > 0 ? (place - window + 1) / SPAN : 0;
    const float* from = splits + (size_t)(row * HEADS + head) * most_splits * (SIZE + 2);
    float most = __ldcg(from + before * (SIZE + 2) + SIZE);
    for (int s = before + 1; s < used; ++s) most = fmaxf(most, __ldcg(from + s * (SIZE + 2) + SIZE));
    float mixed = 0, weight = 0;
    for (int s = before; s < used; ++s) {
      const float part = exponential(__ldcg(from + s * (SIZE + 2) + SIZE) - most);
      mixed = fmaf(part, __ldcg(from + s * (SIZE + 2) + d), mixed);
      weight = fmaf(part, __ldcg(from + s * (SIZE + 2) + SIZE + 1), weight);
    }
    const float value = mixed / weight;
    for (int rank = 0; rank < RANKS; ++rank) {
      put_activation(reinterpret_cast<act_t*>(memory_of(rank) + AT_MIXED), row, MIXED_PAD, MIXED_FROM + head * SIZE + d, value);
    }
  }
};

auto attend_all = [&](int layer) {
  const int window = int(address[layer * ENTRIES + 8]), used = (position + rows - 1) / SPAN + 1, most_splits = capacity / SPAN;
  const int before = position - window + 1 > 0 ? (position - window + 1) / SPAN : 0, each = used - before;
  const int groups = (rows + TOGETHER - 1) / TOGETHER;
#pragma unroll 1
  for (int item = block; item < groups * HEADS * each; item += GRID) {
    const int base = item / (HEADS * each) * TOGETHER, head = item / each % HEADS, split = before + item % each;
    BARRIER();
    attend(layer, base, head, split, most_splits);
    BARRIER();
    if (tid == 0) m.is_last = comes_last(arrivals + base / TOGETHER * HEADS + head, each);
    BARRIER();
    if (m.is_last) combine(layer, base, head, most_splits);
  }
};
