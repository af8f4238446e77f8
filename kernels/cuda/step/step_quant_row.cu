// Takes in the inputs of a row alone that this block's share of its matrix multiplies, where the row takes some inputs of
// every matrix: each block chooses them by itself, of what the multiplication before has left. The ring is empty
// meanwhile and holds the row; then only what is taken is asked for. The residual stream has two places: block 0 writes
// the sum to one while all read from the other.
auto take_in = [&](const Portion& share, int layer, int site, int which, int, const int* wanted) {
  const int begin = share.block_step, length = share.length(), steps = share.m.steps, width = width_at(site);
  const float *scores = scores_at(layer, which), *weight = weight_at(layer, site);
  float *values = reinterpret_cast<float*>(ring), *own_squares = values + WIDEST;
  unsigned* counted = reinterpret_cast<unsigned*>(room);
  const bool adds = site % 2 == 0 && (layer > 0 || site > 0);
  count_row(padded_at(site), width, scores, 0, 1, values, counted, [&](int job, int i) {
    if (site % 2) return plain4(site, 0, i);
    float4 value = {0, 0, 0, 0}, w = value;
    if (i < HIDDEN) {
      w = *reinterpret_cast<const float4*>(weight + i);
      value = load_float4(x + side * HIDDEN + i);
      if (adds) {
        add(value, site ? sum4(segment_at(3), products, 0, i) : sum4(segment_at(6), products, 0, i));
        if (block == 0) *reinterpret_cast<float4*>(x + (1 - side) * HIDDEN + i) = value;
      }
    }
    const float square = lane_sum(four_squares(value));
    if (lane == 0) own_squares[job] = square;
    return float4{value.x * w.x, value.y * w.y, value.z * w.z, value.w * w.w};
  });
  side = adds ? 1 - side : side;
  const float scale = site % 2 == 0 ? own_scale(own_squares) : 1.0f;
  const int segment = layer == LAYERS ? 0 : which - first_segment(site);
  const int cut = find_own_cut(counted, wanted[segment], counting);
  if (tid < 4) scales[tid] = scale;
#pragma unroll 1
  for (int start = 0; start < length * 8; start += THREADS) {
    const int at = start + tid, step = begin + at / 8, i = (step < steps ? step : step - steps) * 32 + at % 8 * 4;
    const bool inside = at < length * 8;
    const float4 value = inside ? *reinterpret_cast<const float4*>(values + i) : float4{0, 0, 0, 0};
    float score[4][TIERS], v[4] = {value.x, value.y, value.z, value.w};
    load_scores4(scores, i, inside ? width : 0, score);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (bin_of(fabsf(v[e]) * score[e][0]) < cut) v[e] = 0;
    }
    put_group(words, groups, at / 8, at % 8, v, inside);
  }
  BARRIER();
  with_form(form_at(layer, which), [&](auto form) {
    fill_form<decltype(form)::value>(share, data_at(layer, which), ring, 0, STAGES, groups);
  });
};
