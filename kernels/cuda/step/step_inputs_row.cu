// A row alone that takes some inputs of every matrix: each block chooses them by itself, of what the multiplication before
// has left. The residual stream has two places: block 0 writes the sum to one while all read from the other.
int side = 0;
act_t* own = reinterpret_cast<act_t*>(ring);                             // (joined, SPLIT, padded)
unsigned* own_words = reinterpret_cast<unsigned*>(ring + OWN_WORDS_AT);  // (joined, padded / 32)
float* values = reinterpret_cast<float*>(ring + OWN_VALUES_AT);
float* squares = values + WIDEST;
unsigned* counted = reinterpret_cast<unsigned*>(room);  // (joined, BINS)

auto make = [&](const Matrix& m, int layer, int site, int joined, const int* wanted, bool adds) {
  const float* weight = weight_at(layer, site);
  const float* scores = layer == LAYERS ? LAST(float, 4) : POINTER(float, layer, 12 + site);
  const int width = width_at(site), padded = padded_at(site);
  const int begin = m.first(block), end = m.first(block + 1);
  // The matrices of which this block has a part.
  int low = 0, high = 1;
  if (joined > 1) {
    const int tile = begin / m.steps, last = begin < end ? (end - 1) / m.steps : tile;
    const bool both = joined == 2 && last > tile;
    low = both ? 0 : matrix_of_tile(joined, tile), high = both ? 2 : matrix_of_tile(joined, last) + 1;
  }
  count_row(padded, width, scores, low, high, values, counted, [&](int job, int i) {
    if (site % 2) return plain4(site, 0, i);
    float4 value = {0, 0, 0, 0}, w = value;
    if (i < HIDDEN) {
      w = *reinterpret_cast<const float4*>(weight + i);
      value = load_float4(x + side * HIDDEN + i);
      if (adds) {
        add(value, sum4(matrix_at(site ? 1 : 3, false), products, 0, i));
        if (block == 0) *reinterpret_cast<float4*>(x + (1 - side) * HIDDEN + i) = value;
      }
    }
    const float square = lane_sum(four_squares(value));
    if (tid % 32 == 0) squares[job] = square;
    return float4{value.x * w.x, value.y * w.y, value.z * w.z, value.w * w.w};
  });
  if (site % 2 == 0 && adds) side = 1 - side;
  const float scale = site % 2 == 0 ? own_scale(squares) : 1.0f;
#pragma unroll 1
  for (int n = low; n < high; ++n) {
    const int cut = find_own_cut(counted + (n - low) * BINS, wanted[n], reinterpret_cast<int*>(scratch_sums));
#pragma unroll 2
    for (int job = tid / 32; job < padded / 128; job += WARPS) {
      const int i = job * 128 + tid % 32 * 4;
      const float4 value = *reinterpret_cast<const float4*>(values + i);
      float score[4][TIERS], v[4] = {value.x, value.y, value.z, value.w};
      load_scores4(scores + (size_t)n * width, i, width, score);
      unsigned bits = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool taken = i + e < width && bin_of(fabsf(v[e]) * score[e][0]) >= cut;
        bits |= unsigned(taken) << e;
        v[e] = taken ? v[e] * scale : 0.0f;
      }
      const unsigned word = word_of(bits);
      if (tid % 8 == 0) own_words[n * (padded / 32) + i / 32] = word;
      put4(own, n, padded, i, float4{v[0], v[1], v[2], v[3]});
    }
  }
  BARRIER();
};
