// Rows that take whole inputs of every matrix. The block that adds the last part to a tile of a product makes what becomes
// of it in the next multiplication, and counts its keys, so that one grid barrier is enough before rows are chosen from.
// A row alone is chosen from without a second one, while other blocks may be making the next.
unsigned* arrivals = const_cast<unsigned*>(sync) + SYNC_ARRIVALS;  // at parts of 128 inputs of HIDDEN, then of INNER
unsigned* taken_words = reinterpret_cast<unsigned*>(prefix);       // (joined, ROWS, padded / 32)
static_assert(TILE == 128 && 2 * INNER_PAD / TILE / GRID + 3 <= 64, "a block has few parts of 128 inputs");

// `m`: the matrix before `site`, whose multiplication this block has done its part of.
auto make_of_tiles = [&](const Matrix& m, int layer, int site) {
  const int first = layer == LAYERS ? logits_from : 0, count = rows - first;
  const int each = site == 3 ? 2 : 1;  // a gate and an up make an input
  const int begin = m.first(block), end = m.first(block + 1);
  const int low = begin / m.steps / each, pieces = begin < end ? (end - 1) / m.steps / each - low + 1 : 0;
  int* last = reinterpret_cast<int*>(scratch_sums);
  clear_next();
  BARRIER();
  if (tid < pieces) {
    const int from = (low + tid) * each * m.steps, sharing = m.block_of(from + each * m.steps - 1) - m.block_of(from) + 1;
    last[tid] = comes_last(arrivals + (site == 3 ? HIDDEN_PAD / 128 : 0) + low + tid, sharing);
  }
  BARRIER();
#pragma unroll 1
  for (int job = tid / 32; job < pieces * count; job += WARPS) {
    const int piece = job / count;
    if (last[piece]) make_four(layer, site, joined_at(layer, site), first, true, job - piece * count, (low + piece) * 128 + tid % 32 * 4);
  }
};

// Takes some of four inputs: what is not taken becomes 0; a bit for each that is.
auto take_four = [&](float (&v)[4], const float (&score)[4][TIERS], int i, int width, int cut, float scale) {
  unsigned bits = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const bool taken = i + e < width && bin_of(fabsf(v[e]) * score[e][0]) >= cut;
    bits |= unsigned(taken) << e;
    v[e] = taken ? v[e] * scale : 0.0f;
  }
  return bits;
};

#if ROWS == 1
act_t* own = reinterpret_cast<act_t*>(ring);                             // (joined, SPLIT, padded)
unsigned* own_words = reinterpret_cast<unsigned*>(ring + OWN_WORDS_AT);  // (joined, padded / 32)

// Each block chooses for itself from a row alone, as much of it as its share of the matrix needs.
auto take_in = [&](const Matrix& m, int layer, int site, int joined, const int* wanted) {
  const float *scores = scores_at(layer, site), *values = values_at(site);
  const int width = width_at(site), padded = padded_at(site), quads = m.steps * 8;
  const int from = m.first(block), until = m.first(block + 1), count = until - from;
  const int begin = from % m.steps * 8, length = (count < m.steps ? count : m.steps) * 8;
  int low = 0, high = 1;  // the matrices of which this block has a part
  if (joined > 1) {
    const int tile = from / m.steps, last = count > 0 ? (until - 1) / m.steps : tile;
    const bool both = joined == 2 && last > tile;
    low = both ? 0 : matrix_of_tile(joined, tile), high = both ? 2 : matrix_of_tile(joined, last) + 1;
  }
  auto place = [&](int j) { return (begin + j < quads ? begin + j : begin + j - quads) * 4; };
  // All that is needed is asked for before any of it is used.
  const unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  const Counts first_counts(counted + low * BINS), next_counts(counted + (low + 1 < high ? low + 1 : low) * BINS);
  const float4 early = tid < length ? load_float4(values + place(tid)) : float4{0, 0, 0, 0};
  const float square = site % 2 == 0 ? load_squares(squares) : 0.0f;
#pragma unroll 1
  for (int n = low; n < high; ++n) {
    const Counts under_way = n == low ? first_counts : n == low + 1 ? next_counts : Counts(counted + n * BINS);
    const int cut = find_cut(under_way, wanted[n], reinterpret_cast<int*>(scratch_sums), reinterpret_cast<unsigned*>(room));
    const float scale = site % 2 == 0 ? norm_scale(square) : 1.0f;
#pragma unroll 1
    for (int start = 0; start < length; start += THREADS) {
      const int j = start + tid, i = place(j);
      const bool inside = j < length;
      float4 value = early;
      if (start > 0) value = inside ? load_float4(values + i) : float4{0, 0, 0, 0};
      float score[4][TIERS], v[4] = {value.x, value.y, value.z, value.w};
      load_scores4(scores + (size_t)n * width, i, inside ? width : 0, score);
      const unsigned word = word_of(take_four(v, score, i, width, cut, scale));
      if (!inside) continue;
      if (tid % 8 == 0) own_words[n * (padded / 32) + i / 32] = word;
      put4(own, n, padded, i, float4{v[0], v[1], v[2], v[3]});
    }
  }
  ++turn;
  BARRIER();
};
#else
// Chooses inputs of rows that were made, and rounds and stores what each matrix sees of them: some blocks for every row
// and matrix.
auto choose = [&](int layer, int site, int joined, int count, const int* wanted) {
  const unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  const float *scores = scores_at(layer, site), *values = values_at(site);
  const int width = width_at(site), padded = padded_at(site);
  spread_pairs(count, joined, [&](int row, int m, int from, int stride) {
    // All that is needed is asked for before any of it is used.
    const Counts under_way(counted + (size_t)(m * ROWS + row) * BINS);
    float4 value = from < padded ? load_float4(values + (size_t)row * padded + from) : float4{0, 0, 0, 0};
    const float square = site % 2 == 0 ? load_squares(squares + row * (HIDDEN_PAD / 128)) : 0.0f;
    const int cut = find_cut(under_way, wanted[m + WANTED_OF(rows - count + row)], reinterpret_cast<int*>(scratch_sums),
                             reinterpret_cast<unsigned*>(room));
    const float scale = site % 2 == 0 ? norm_scale(square) : 1.0f;
#pragma unroll 1
    for (int i = from; i < padded; i += stride) {
      if (i != from) value = load_float4(values + (size_t)row * padded + i);
      float score[4][TIERS], v[4] = {value.x, value.y, value.z, value.w};
      load_scores4(scores + (size_t)m * width, i, width, score);
      const unsigned word = word_of(take_four(v, score, i, width, cut, scale));
      if (tid % 8 == 0) taken_words[((size_t)m * ROWS + row) * (padded / 32) + i / 32] = word;
      put4(activation, m * ROWS + row, padded, i, float4{v[0], v[1], v[2], v[3]});
    }
    BARRIER();
  });
  ++turn;
};
#endif
