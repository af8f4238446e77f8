// Attention for a step in one kernel: one query head and one split of SPAN positions at a time; see attention.cu, whose
// order of sums this is. Also the end of it, the splits put together.
namespace specdec {

constexpr int QKV_SIZE = (HEADS + 2 * KV_HEADS) * SIZE, SLOT = SIZE + 4;  // of a split: values, largest, weight
constexpr int TOGETHER = ROWS < 4 ? ROWS : 4;

struct AttentionMemory {
  float turning[WARPS][SIZE];
  float query[ROWS][SIZE];
  half_t new_keys[ROWS][SIZE];
  half_t new_values[ROWS][SIZE];
  float weights[TOGETHER][SPAN];
  float sides[TOGETHER][THREADS];
  float scratch[32];
};

// splits (ROWS, HEADS, splits, SLOT)
template <class M>
DEVICE void attend(int item, int used, int splits, const float* parts, half_t* cache, int capacity, const float* angles,
                   const float* bias, const float* norms, int window, int position, int rows, float* out,
                   AttentionMemory& m) {
  const int tid = threadIdx.x, head = item / used, split = item % used;
  const int warp = tid / 32, lane = tid % 32;
  constexpr int GROUP = HEADS / KV_HEADS, SIDES = THREADS / SIZE, SHARE = (SPAN + SIDES - 1) / SIDES, BATCH = 16;
  const int kv_head = head / GROUP, start = split * SPAN;
  half_t* keys = cache + (size_t)kv_head * capacity * SIZE;
  half_t* values = keys + (size_t)KV_HEADS * capacity * SIZE;

  // Vectors of the new rows, a warp each: query, key and value of every row; a lane takes four dimensions.
  for (int job = warp; job < 3 * rows; job += WARPS) {
    const int row = job / 3, kind = job % 3, d = lane * 4;
    const int column = kind == 0 ? head * SIZE : (HEADS + (kind - 1) * KV_HEADS + kv_head) * SIZE;
    float4 four = {0, 0, 0, 0};
    if (d < SIZE) {
      four = sum4<M>(parts, row, column + d);
#if BIAS
      add(four, *reinterpret_cast<const float4*>(bias + column + d));
#endif
    }
    float v[4] = {four.x, four.y, four.z, four.w};
#if QK_NORM
    if (kind < 2) {
      const float square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
      const float scale = 1.0f / square_root(lane_sum(square) / SIZE + EPSILON);
      for (int e = 0; e < 4; ++e) v[e] = d < SIZE ? v[e] * scale * norms[kind * SIZE + d + e] : 0.0f;
    }
#endif
    for (int e = 0; e < 4; ++e) {
      if (d < SIZE) m.turning[warp][d + e] = v[e];
    }
    WARP_BARRIER();
    for (int e = 0; e < 4; ++e) {
      const int at = d + e;
      if (at >= SIZE) break;
      float turned = v[e];
      if (kind < 2) {
        const float* angle = angles + ((size_t)(position + row) * (SIZE / 2) + at % (SIZE / 2)) * 2;
        const float other = m.turning[warp][at < SIZE / 2 ? at + SIZE / 2 : at - SIZE / 2];
        turned = at < SIZE / 2 ? fmaf(v[e], angle[0], -other * angle[1]) : fmaf(v[e], angle[0], other * angle[1]);
      }
      if (kind == 0) m.query[row][at] = turned * SCALE;
      if (kind == 1) m.new_keys[row][at] = to_half(turned);
      if (kind == 2) m.new_values[row][at] = to_half(turned);
    }
    WARP_BARRIER();
  }
  BARRIER();
  if (head % GROUP == 0) {
    for (int at = tid; at < rows * SIZE; at += THREADS) {
      const int row = at / SIZE, d = at % SIZE, place = position + row;
      if (place >= start && place < start + SPAN) {
        keys[(size_t)place * SIZE + d] = m.new_keys[row][d];
        values[(size_t)place * SIZE + d] = m.new_values[row][d];
      }
    }
  }

  const int own = start + tid;  // the position whose key this thread reads
  for (int base = 0; base < rows; base += TOGETHER) {
    float score[TOGETHER];
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) score[r] = 0;
    if (tid < SPAN && own < position + rows) {
#pragma unroll 8
      for (int d = 0; d < SIZE; d += 8) {
        float k[8];
        if (own < position) {
          load8(keys + (size_t)own * SIZE + d, k);
        } else {
          load8(&m.new_keys[own - position][d], k);
        }
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) {
          const int row = base + r < ROWS ? base + r : 0;
#pragma unroll
          for (int j = 0; j < 8; ++j) score[r] = fmaf(m.query[row][d + j], k[j], score[r]);
        }
      }
    }
    float most[TOGETHER], weight[TOGETHER];
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      const int newest = position + base + r;
      const bool seen = tid < SPAN && own <= newest && own > newest - window && base + r < rows;
      most[r] = block_max<WARPS>(seen ? score[r] : MINUS_INFINITY, m.scratch, tid);
      const float part = seen ? exponential(score[r] - most[r]) : 0.0f;
      if (tid < SPAN) m.weights[r][tid] = part;
      weight[r] = block_sum<WARPS>(part, m.scratch, tid);
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
      for (int at = from; at < until; at += BATCH) {
        float v[BATCH];  // all loads first: one by one each would wait for the memory
#pragma unroll
        for (int a = 0; a < BATCH; ++a) {
          v[a] = 0;
          if (at + a < until) {
            v[a] = to_float(at + a < position ? values[(size_t)(at + a) * SIZE + d] : m.new_values[at + a - position][d]);
          }
        }
#pragma unroll
        for (int a = 0; a < BATCH; ++a) {
#pragma unroll
          for (int r = 0; r < TOGETHER; ++r) {
            if (at + a < until) mixed[r] = fmaf(m.weights[r][at + a - start], v[a], mixed[r]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) m.sides[r][tid] = mixed[r];
    BARRIER();
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      if (base + r < rows) {
        float* to = out + ((size_t)((base + r) * HEADS + head) * splits + split) * SLOT;
        if (tid < SIZE) {
          float value = m.sides[r][tid];
          for (int other = 1; other < SIDES; ++other) value += m.sides[r][other * SIZE + tid];
          to[tid] = value;
        }
        if (tid == 0) to[SIZE] = most[r], to[SIZE + 1] = weight[r];
      }
    }
    BARRIER();
  }
}

// Four outputs of attention of one row, of `used` splits.
DEVICE float4 mixed4(const float* all, int row, int output, int used, int splits) {
  const float* from = all + (size_t)(row * HEADS + output / SIZE) * splits * SLOT;
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
