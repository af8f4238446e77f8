// Attention of a step in one kernel on this GPU's heads: see ranks_step.cu. An item is a group of rows, a head, and a split of
// SPAN positions, by 256 threads of a block; the last block of a group and head puts the splits together and writes the
// result into the memory of all GPUs. Arithmetic: rotate.cu, attention.cu and attention_sum.cu.
constexpr int GROUP = HEADS / KV_HEADS, TOGETHER = ROWS < 4 ? ROWS : 4, LANES = 256, SIDES = LANES / SIZE;
constexpr int SHARE = (SPAN + SIDES - 1) / SIDES, EACH = (SIZE + 31) / 32, AT_ONCE = ROWS == 1 ? 32 : 16;
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
  float v[EACH], bias[EACH], angle[EACH][2], square = 0;
#pragma unroll
  for (int e = 0; e < EACH; ++e) {  // what does not depend on the row's token first
    const int d = e * 32 + lane;
    const float* both = angles + ((size_t)(position + row) * (SIZE / 2) + d % (SIZE / 2)) * 2;
    bias[e] = angle[e][0] = angle[e][1] = 0;
    if (d < SIZE && kind < 2) angle[e][0] = both[0], angle[e][1] = both[1];
#if BIAS
    if (d < SIZE) bias[e] = ENTRY(float, layer, 2)[column + d];
#endif
  }
#if ROWS == 1
  unsigned word[EACH];
  unsigned missing = 0;
#pragma unroll
  for (int e = 0; e < EACH; ++e) missing |= e * 32 + lane < SIZE ? 1u << e : 0u;
  wait_words(word, words_of(RANK, AT_QKV_WORDS, 8 * OWN_QKV) + (size_t)(column + lane) * 8, [](int e) { return e * 256; }, missing, meet.number);
#endif
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    const int d = e * 32 + lane;
    v[e] = 0;
    if (d < SIZE) {
#if ROWS == 1
      v[e] = __int_as_float(word[e]);
#else
      v[e] = __ldcg(qkv + (size_t)row * OWN_QKV + column + d);
#endif
#if BIAS
      v[e] += bias[e];
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
      const float away = m.turning[warp][low ? d + SIZE / 2 : d - SIZE / 2];
      turned = low ? fmaf(v[e], angle[e][0], -away * angle[e][1]) : fmaf(v[e], angle[e][0], away * angle[e][1]);
    }
    if (kind == 0) m.query[row % TOGETHER][d] = turned * SCALE;
    if (kind == 1) m.keys[row][d] = to_half(turned);
    if (kind == 2) m.values[row][d] = to_half(turned);
  }
  WARP_BARRIER();
};

// With `alone` there is only one split, which is sent as it is.
auto attend = [&](int layer, int base, int head, int split, int most_splits, [[maybe_unused]] bool alone) {
  const int window = int(address[layer * ENTRIES + 8]), kv_head = head / GROUP, start = split * SPAN, group = base / TOGETHER;
  half_t* keys = reinterpret_cast<half_t*>(caches[layer]) + (size_t)kv_head * capacity * SIZE;
  half_t* values = keys + (size_t)KV_HEADS * capacity * SIZE;
  for (int job = tid / 32; job < 3 * rows; job += WARPS) {
    const int row = job / 3, kind = job % 3;
    if (kind > 0 || row / TOGETHER == group) rotate(layer, row, kind, kind == 0 ? head : kv_head);
  }
  if (ROWS == 1 && tid == THREADS - 1) meet.wait_for_others();  // before anything of this layer is sent: see ranks_step.cu
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
#if ROWS == 1
  if (alone && tid < (SIZE + 31) / 32 * 32) {
    float value = m.sides[0][tid < SIZE ? tid : 0];
    for (int other = 1; other < SIDES; ++other) value += m.sides[0][tid < SIZE ? other * SIZE + tid : 0];
    // As `combine` would: the largest score is the split's own.
    const float sum = fmaf(1.0f, value, 0.0f) / fmaf(1.0f, weight[0], 0.0f);
    send_pair(tid < SIZE, AT_MIXED_WORDS, MIXED_BYTES, MIXED_FROM + head * SIZE + tid, sum);
  }
  if (alone) return;
#endif
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
  for (int at = tid; at < (TOGETHER * SIZE + 31) / 32 * 32; at += THREADS) {  // whole warps: lanes give each other values
    const int row = base + at / SIZE, d = at % SIZE;
    const bool there = at < TOGETHER * SIZE && row < rows;
    if (!there && ROWS > 1) break;
    const int place = position + row, used = place / SPAN + 1;
    const int before = place - window + 1 > 0 ? (place - window + 1) / SPAN : 0;
    const float* from = splits + (size_t)((there ? row : 0) * HEADS + head) * most_splits * (SIZE + 2);
    float most = __ldcg(from + before * (SIZE + 2) + SIZE);
    for (int s = before + 1; s < used; ++s) most = fmaxf(most, __ldcg(from + s * (SIZE + 2) + SIZE));
    float mixed = 0, weight = 0;
    for (int s = before; s < used; ++s) {
      const float part = exponential(__ldcg(from + s * (SIZE + 2) + SIZE) - most);
      mixed = fmaf(part, __ldcg(from + s * (SIZE + 2) + d), mixed);
      weight = fmaf(part, __ldcg(from + s * (SIZE + 2) + SIZE + 1), weight);
    }
    const float value = mixed / weight;
#if ROWS == 1
    send_pair(there, AT_MIXED_WORDS, MIXED_BYTES, MIXED_FROM + head * SIZE + d, value);
#else
    for (int rank = 0; rank < RANKS; ++rank) {
      put_activation(reinterpret_cast<act_t*>(memory_of(rank) + AT_MIXED), row, MIXED_PAD, MIXED_FROM + head * SIZE + d, value);
    }
#endif
  }
};

// Items of a layer. They go to the last blocks first, which have the least to do before.
struct Items {
  int before, each, count;

  DEVICE Items(int window, int position, int rows) {
    const int used = (position + rows - 1) / SPAN + 1;
    before = position - window + 1 > 0 ? (position - window + 1) / SPAN : 0, each = used - before;
    count = (rows + TOGETHER - 1) / TOGETHER * HEADS * each;
  }
  DEVICE int head(int item) const { return item / each % HEADS; }
  DEVICE int split(int item) const { return before + item % each; }
  DEVICE int base(int item) const { return item / (HEADS * each) * TOGETHER; }
};

auto attend_all = [&](int layer) {
  const Items items(int(address[layer * ENTRIES + 8]), position, rows);
  const int most_splits = capacity / SPAN;
#pragma unroll 1
  for (int item = GRID - 1 - block; item < items.count; item += GRID) {
    const int base = items.base(item), head = items.head(item), split = items.split(item);
    BARRIER();
    attend(layer, base, head, split, most_splits, items.each == 1);
    if (ROWS == 1 && items.each == 1) continue;
    BARRIER();
    if (tid == 0) m.is_last = comes_last(arrivals + base / TOGETHER * HEADS + head, items.each);
    BARRIER();
    if (m.is_last) combine(layer, base, head, most_splits);
  }
  BARRIER();
};

// Brings the history that this block's items read near, while the row is on its way.
auto ask_for_history = [&](int layer) {
  const Items items(int(address[layer * ENTRIES + 8]), position, rows);
#pragma unroll 1
  for (int item = GRID - 1 - block; item < items.count; item += GRID) {
    const int start = items.split(item) * SPAN, count = position - start < SPAN ? position - start : SPAN;
    if (count <= 0 || tid > 1) continue;
    const half_t* from = reinterpret_cast<half_t*>(caches[layer]) + (size_t)(items.head(item) / GROUP + tid * KV_HEADS) * capacity * SIZE;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from + (size_t)start * SIZE), "r"(count * SIZE * 2) : "memory");
  }
};
