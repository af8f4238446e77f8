// Several rows that are short. The block that adds the last part to a tile of a product makes what becomes of it: the
// residual stream, or a gated MLP's inputs. After one grid barrier each block makes the rows of the next multiplication by
// itself: norms in the order of `norm_row`, attention of the inputs that its share takes.
unsigned* arrivals = const_cast<unsigned*>(sync) + SYNC_ARRIVALS;  // at tiles of HIDDEN, then of INNER
act_t* own = reinterpret_cast<act_t*>(ring);                       // (ROWS, SPLIT, padded + ROW_GAP)
static_assert(TILE == 16 && PAIR == TILE && 2 * INNER_PAD / TILE / GRID + 3 <= 64, "a block has few tiles");

// `m`: the matrix of `site`, whose multiplication this block has done its part of.
auto finish_tiles = [&](const Matrix& m, int layer, int site) {
  const int first = site == 3 && layer + 1 == LAYERS ? logits_from : 0, count = rows - first;
  const int each = site == 2 ? 2 : 1;  // a gate and an up make an input
  const int begin = m.first(block), end = m.first(block + 1);
  const int low = begin / m.steps / each, pieces = begin < end ? (end - 1) / m.steps / each - low + 1 : 0;
  int* last = reinterpret_cast<int*>(scratch_sums);
  BARRIER();
  if (tid < pieces) {
    last[tid] = comes_last(arrivals + (site == 2 ? (HIDDEN + TILE - 1) / TILE : 0) + low + tid, m.sharing((low + tid) * each, each));
  }
  BARRIER();
#pragma unroll 1
  for (int job = tid / 4; job < pieces * count; job += THREADS / 4) {
    const int piece = job / count, row = first + job - piece * count, i = (low + piece) * TILE + tid % 4 * 4;
    if (!last[piece]) continue;
    if (site == 2) {
      put4(activation, row, INNER_PAD + ROW_GAP, i, gated4(m, products, row, i));
    } else if (i < HIDDEN) {
      float* to = x + row * HIDDEN + i;
      float4 sum = load_float4(to);
      add(sum, sum4(m, products, row, i));
      *reinterpret_cast<float4*>(to) = sum;
    }
  }
};

// Makes rows that have a norm, from `first` on. A warp has the same part of some of them, in the order of `norm_row`: a
// lane LANE inputs one after the other.
auto make_normed = [&](int layer, int site, int first) {
  constexpr int LANE = OWN<HIDDEN_PAD>, PARTS = (HIDDEN_PAD + 32 * LANE - 1) / (32 * LANE), SLOTS = WARPS / PARTS;
  constexpr int MOST = (ROWS + SLOTS - 1) / SLOTS;  // rows of a warp
  const int lane = tid % 32, part = tid / 32 % PARTS, slot = tid / 32 / PARTS, count = slot < SLOTS ? rows - first : 0;
  const int begin = (part * 32 + lane) * LANE;
  const float *weight = weight_at(layer, site), *from = x + first * HIDDEN;
  float4 value[MOST][LANE / 4], w[LANE / 4];
#pragma unroll
  for (int e = 0; e < LANE / 4; ++e) {
    const int i = begin + e * 4;
    w[e] = i < HIDDEN ? *reinterpret_cast<const float4*>(weight + i) : float4{0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < MOST; ++j) {
      const int row = slot + j * SLOTS;
      value[j][e] = row < count && i < HIDDEN ? load_float4(from + row * HIDDEN + i) : float4{0, 0, 0, 0};
    }
  }
#pragma unroll
  for (int j = 0; j < MOST; ++j) {
    const int row = slot + j * SLOTS;
    float square = 0;
#pragma unroll
    for (int e = 0; e < LANE / 4; ++e) square += four_squares(value[j][e]);
    square = lane_sum(square);
    if (lane == 0 && row < count) room[part * ROWS + row] = square;
  }
  BARRIER();
  // A lane has a row, whose parts it adds in the order of `lane_sum`.
  float sum[WARPS];
#pragma unroll
  for (int l = 0; l < WARPS; ++l) sum[l] = l < PARTS && lane < rows - first ? room[l * ROWS + lane] : 0.0f;
#pragma unroll
  for (int half = WARPS / 2; half > 0; half /= 2) {
#pragma unroll
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  }
  const float scales = rms_scale(sum[0], HIDDEN, EPSILON);
#pragma unroll
  for (int j = 0; j < MOST; ++j) {
    const int row = slot + j * SLOTS;
    if (row >= count) break;
    const float scale = __shfl_sync(EVERY_LANE, scales, row);
#pragma unroll
    for (int e = 0; e < LANE / 4; ++e) {
      float4 four = value[j][e];
      four.x *= scale * w[e].x, four.y *= scale * w[e].y, four.z *= scale * w[e].z, four.w *= scale * w[e].w;
      if (begin + e * 4 < HIDDEN_PAD) put4(own, row, HIDDEN_PAD + ROW_GAP, begin + e * 4, four);
    }
  }
};

// Makes attention's outputs that this block's share takes; `together`, all blocks make all of them.
auto make_mixed = [&](const Matrix& m, bool together) {
  const int quads = m.steps * 8, from = m.first(block), units = m.first(block + 1) - from;
  const int begin = together ? 0 : from % m.steps * 8, length = together ? quads : (units < m.steps ? units : m.steps) * 8;
  act_t* to = together ? activation : own;
#pragma unroll 1
  for (int at = together ? block * THREADS + tid : tid; at < rows * length; at += together ? GRID * THREADS : THREADS) {
    const int row = at / length, j = begin + at - row * length, i = (j < quads ? j : j - quads) * 4;
    put4(to, row, quads * 4 + ROW_GAP, i, plain4(1, row, i));
  }
};

// Where the rows of a multiplication lie, which it makes first. Reading the splits of long histories in every block would
// take longer than another grid barrier.
auto take_in = [&](const Matrix& m, int layer, int site, int first, bool long_histories) -> const act_t* {
  if (site == 3) return activation;
  const bool together = site == 1 && long_histories;
  if (site == 1) {
    make_mixed(m, together);
  } else {
    make_normed(layer, site, first);
  }
  if (together) {
    grid_barrier.wait();
    return activation;
  }
  BARRIER();
  return own;
};
