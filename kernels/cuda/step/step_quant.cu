// A whole step of a quantised model in one kernel: the exact view at any effort, or, with NESTED, the upper bits of the
// codes. The block that adds the last part of a tile of a product computes its inputs of the next multiplication and,
// below effort 1, counts their keys (step_choice.cuh); after a grid barrier, each block takes in what its share of its matrix
// needs. Rows are made into whole numbers once, but for a row alone below effort 1, which every block chooses from that
// needs it. Rows that are being made and rows that may still be read lie in different places. Matrices that take the same
// row (q, k and v; gate and up) are chosen from by themselves and have blocks of their own.
// A row alone that takes all inputs is made by each block for itself, with ALONE: there is no last part to wait for.
// The ring is filled in parts: many loads at once would delay the grid barrier and the rows after it.
// table (LAYERS * ENTRIES + 5) addresses and numbers, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of inputs to take), told (the state), sync, logits_out (., VOCAB), choices_out (turns made, then each
// row's choice of every turn),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, lane = tid % 32, block = blockIdx.x;
#if RECYCLES
int rows = told[1];
#else
const int rows = ROWS == 1 ? 1 : told[1];
#endif
const int logits_from = ROWS == 1 ? 0 : told[STATE_LOGITS];
#include "step_begin"
int* counting = state + STATE_WORDS;
float* scales = reinterpret_cast<float*>(counting + 64);  // of the rows' norms
Portions& portions = *reinterpret_cast<Portions*>(scales + 16);
char* room = reinterpret_cast<char*>(scales + 16) + PORTIONS_BYTES;
unsigned* words = reinterpret_cast<unsigned*>(room);
Group* groups = reinterpret_cast<Group*>(room + GROUPS_AT);
float* ends = reinterpret_cast<float*>(room + ENDS_AT);
char* ring = room + RING_AT;
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(room);
const Gathering gathering{ends, reinterpret_cast<float*>(room)};
float *x = scratch + AT_X, *products = scratch + AT_PARTS, *squares = scratch + AT_SQUARES, *attended = scratch + AT_SPLITS;
unsigned* arrivals = const_cast<unsigned*>(sync) + SYNC_ARRIVALS;  // at tiles of HIDDEN outputs, then of INNER
#if TIERS
auto values_at = [&](int site) { return scratch + AT_VALUES + site % 2 * VALUES_EACH; };
#endif
#if ROWS > 1 || !TIERS
// (joined, padded / 32, rows, GROUP_WORDS)
auto words_at = [&](int site) { return reinterpret_cast<unsigned*>(scratch + AT_WORDS) + site % 2 * WORDS_EACH; };
auto groups_at = [&](int site) { return reinterpret_cast<Group*>(scratch + AT_GROUPS) + site % 2 * (WORDS_EACH / GROUP_WORDS); };
#endif
#if TIERS
constexpr int HISTOGRAMS = 3 * ROWS;  // for each of the joined matrices and rows
unsigned* histograms = reinterpret_cast<unsigned*>(scratch + AT_BINS);  // three times: in use, next, being emptied
int turn = 0;
#endif
portions.find();
BARRIER();
#include "step_sites"
auto portion_at = [&](int layer, int site) { return Portion(portions, layer == LAYERS ? 4 : site); };
auto data_at = [&](int layer, int which) {
  return layer == LAYERS ? LAST(char, 0) : POINTER(char, layer, 4 + which);
};
auto form_at = [&](int layer, int which) {
  return layer == LAYERS ? int(address[LAYERS * ENTRIES + 4] & 255) : int(address[layer * ENTRIES + 18] >> (8 * which) & 255);
};
// Four inputs of a row that has no norm.
[[maybe_unused]] auto plain4 = [&](int site, int row, int i) {
  if (site == 3) return gated4(Matrix(), products + OTHER_PARTS, row, i);
  return i < MIXED ? mixed4(attended, row, i, ROW_SPLITS(row), splits) : float4{0, 0, 0, 0};
};
#if TIERS
auto scores_at = [&](int layer, int which) {
  return layer == LAYERS ? LAST(float, 3) : POINTER(float, layer, 11 + which);
};
auto joined_at = [&](int layer, int site) { return layer == LAYERS ? 1 : site == 0 ? 3 : site == 2 ? 2 : 1; };
#endif

// Asks for what `make` will read of a layer's weights.
auto look_ahead = [&](int layer, int site) {
  const float* weight = weight_at(layer, site);
  spread(1, padded_at(site), [&](int, int i) {
    if (i >= width_at(site) || lane % 8) return;
    if (weight) ahead(weight + i);
#if TIERS
    for (int m = 0; m < joined_at(layer, site); ++m) ahead(scores_at(layer, first_segment(site) + m) + i);
#endif
  });
};

// Makes inputs i to i + 3 of the row first + row of a multiplication, before its norm's scale; below effort 1 counts their
// keys for each of the joined matrices. A warp has 128 inputs.
auto make_four = [&](int layer, int site, int first, bool adds, int row, int i) {
  const int width = width_at(site), padded = padded_at(site);
  float4 value = {0, 0, 0, 0};
#if TIERS
  unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  const int joined = joined_at(layer, site);
  float score[3][4][TIERS];
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    if (m < joined) load_scores4(scores_at(layer, first_segment(site) + m), i, width, score[m]);
  }
#endif
  if (site % 2 == 0) {
    auto product = [&] {
      return site ? sum4(segment_at(3), products, first + row, i) : sum4(segment_at(6), products, first + row, i);
    };
    value = normed4(x + (first + row) * HIDDEN, weight_at(layer, site), squares + row * (HIDDEN_PAD / 128), i, adds, product);
  } else {
    value = plain4(site, row, i);
  }
  const float v[4] = {value.x, value.y, value.z, value.w};
#if !TIERS
  put_group(words_at(site), groups_at(site), i / 32 * (rows - first) + row, i % 32 / 4, v, true);
#else
  *reinterpret_cast<float4*>(values_at(site) + (size_t)row * padded + i) = value;
#endif
#if TIERS
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    if (m >= joined) break;
    count_keys(counted + (size_t)(m * ROWS + row) * BINS, v, score[m], i, width);
  }
#endif
};
// Empties the histograms of the turn after the one that is counted.
auto clear_next = [&] {
#if TIERS
  clear(histograms + (size_t)((turn + 1) % 3) * HISTOGRAMS * BINS, HISTOGRAMS);
#endif
};
// Makes the rows of a multiplication by all blocks together.
auto make = [&](int layer, int site) {
  clear_next();
  spread(rows, padded_at(site), [&](int row, int i) { make_four(layer, site, 0, false, row, i); });
};
// Makes what becomes of the tiles that this block has added the last part to, in the multiplication before `site`.
auto make_of_tiles = [&](const Portion& share, int layer, int site) {
  const int first = layer == LAYERS ? logits_from : 0, count = rows - first, low = share.block_tile;
  clear_next();
  BARRIER();
  if (tid < share.tiles) {
    const int tile = low + tid;
    const int sharing = site == 3   ? segment_at(4).sharing(tile) + segment_at(5).sharing(tile)
                        : site == 2 ? segment_at(3).sharing(tile)
                                    : segment_at(6).sharing(tile);
    counting[tid] = comes_last(arrivals + (site == 3 ? HIDDEN_PAD / 128 : 0) + tile, sharing);
  }
  BARRIER();
#pragma unroll 1
  for (int job = tid / 32; job < share.tiles * count; job += WARPS) {
    const int tile = job / count;
    if (counting[tile]) make_four(layer, site, first, true, job - tile * count, (low + tile) * 128 + lane * 4);
  }
};

#if TIERS && ROWS > 1
// Chooses inputs of rows that were made, and makes whole numbers of them: some blocks for every row and matrix.
auto choose = [&](int layer, int site, int count, const int* wanted) {
  const int joined = joined_at(layer, site), width = width_at(site), padded = padded_at(site);
  spread_pairs(count, joined, [&](int row, int m, int from, int stride) {
    const Counts under_way(histograms + ((size_t)(turn % 3) * HISTOGRAMS + m * ROWS + row) * BINS);
    const float* scores = scores_at(layer, layer == LAYERS ? 0 : first_segment(site) + m);
    const float* values = values_at(site);
    float4 value = from < padded ? load_float4(values + (size_t)row * padded + from) : float4{0, 0, 0, 0};
    const int cut = find_cut(under_way, wanted[m + WANTED_OF(rows - count + row)], counting,
                             reinterpret_cast<unsigned*>(room));
#pragma unroll 1
    for (int i = from; i - tid * 4 < padded; i += stride) {
      if (i != from && i < padded) value = load_float4(values + (size_t)row * padded + i);
      float score[4][TIERS];
      load_scores4(scores, i, width, score);
      float v[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (bin_of(fabsf(v[e]) * score[e][0]) < cut) v[e] = 0;
      }
      put_group(words_at(site), groups_at(site), (m * (padded / 32) + i / 32) * count + row, i % 32 / 4, v, i < padded);
    }
  });
  ++turn;
};
#endif

int filled = 0;
[[maybe_unused]] int side = 0;  // where the residual stream of a row alone lies
auto fill_share = [&](const Portion& share, int layer, int which, int until) {
  const char* data = data_at(layer, which);
  with_form(form_at(layer, which), [&](auto form) { fill_form<decltype(form)::value>(share, data, ring, filled, until); });
  filled = until;
};
auto fill_for = [&](int layer, int site, int until) {
  fill_share(portion_at(layer, site), layer, segment_of_block(site, layer == LAYERS, block), until);
};

// Takes in the inputs that this block's share of its matrix multiplies.
#if ALONE
// Each block makes them by itself of what the multiplication before has left. The residual stream has two places: block 0
// writes the sum to one while all read from the other.
auto take_in = [&](const Portion& share, int layer, int site, int which, int, const int*) {
  const int begin = share.block_step, length = share.length(), steps = share.m.steps;
  constexpr int JOBS = HIDDEN_PAD / 128;
  float* sums = reinterpret_cast<float*>(counting);
  if (site % 2 == 0) {
    const bool adds = layer > 0 || site > 0;
    const float *from = x + side * HIDDEN, *weight = weight_at(layer, site);
    float* to = x + (1 - side) * HIDDEN;
#pragma unroll 1
    for (int job = tid / 32; job < JOBS; job += WARPS) {
      const int i = job * 128 + lane * 4, step = i / 32, place = step >= begin ? step - begin : step - begin + steps;
      float4 value = {0, 0, 0, 0}, w = value;
      if (i < HIDDEN) {
        w = *reinterpret_cast<const float4*>(weight + i);
        value = load_float4(from + i);
        if (adds) {
          add(value, sum4(segment_at(site ? 3 : 6), products, 0, i));
          if (block == 0) *reinterpret_cast<float4*>(to + i) = value;
        }
      }
      const float square = lane_sum(four_squares(value));
      if (lane == 0) sums[job] = square;
      const float v[4] = {value.x * w.x, value.y * w.y, value.z * w.z, value.w * w.w};
      put_group(words, groups, place, lane % 8, v, step < steps && place < length);
    }
    side = adds ? 1 - side : side;
  } else {
#pragma unroll 1
    for (int start = 0; start < length * 8; start += THREADS) {
      const int at = start + tid, step = begin + at / 8;
      const bool inside = at < length * 8;
      const float4 four = inside ? plain4(site, 0, (step < steps ? step : step - steps) * 32 + at % 8 * 4) : float4{0, 0, 0, 0};
      const float v[4] = {four.x, four.y, four.z, four.w};
      put_group(words, groups, at / 8, at % 8, v, inside);
    }
  }
  fill_share(share, layer, which, STAGES);
  BARRIER();
  float scale = 1.0f;
  if (site % 2 == 0) {
    float sum = 0;
#pragma unroll
    for (int job = 0; job < JOBS; job += 32) sum += job + lane < JOBS ? sums[job + lane] : 0.0f;
    scale = norm_scale(sum);
  }
  if (lane == 0) scales[0] = scale;  // the same by every warp
  WARP_BARRIER();
};
#elif ROWS > 1 || !TIERS
auto take_in = [&](const Portion& share, int layer, int site, int which, int count, const int*) {
  const Matrix& m = share.m;
  const int begin = share.block_step, length = share.length();
  const int segment = TIERS && layer < LAYERS ? which - first_segment(site) : 0;
  const int straight = length < m.steps - begin ? length : m.steps - begin;  // steps before the row's end
  // 16 bytes at a time: four of a group's words, and one of what goes with it.
  auto copy = [&](uint4* to, const uint4* all, int each) {
    const uint4* source = all + (size_t)segment * (padded_at(site) / 32) * count * each;
    const int before = straight * count * each, pieces = length * count * each;
    for (int at = tid; at < pieces; at += THREADS) copy16(to + at, source + (at < before ? begin * count * each + at : at - before));
  };
  const bool copies = TIERS || site != 1;
  if (copies) {
    copy(reinterpret_cast<uint4*>(groups), reinterpret_cast<const uint4*>(groups_at(site)), 1);
    copy(reinterpret_cast<uint4*>(words), reinterpret_cast<const uint4*>(words_at(site)), GROUP_WORDS / 4);
    end_stage();
  }
  if (tid / 32 < count) {
    const float found = site % 2 == 0 ? norm_scale(load_squares(squares + tid / 32 * (HIDDEN_PAD / 128))) : 1.0f;
    if (lane == 0) scales[tid / 32] = found;
  }
  if (!copies) {
    // Combine the attention partials here: cheap, and saves one grid barrier.
    constexpr int AT_ONCE = 3;
    const int quads = length * 8 * count;
#pragma unroll 1
    for (int start = tid; start - tid < quads; start += AT_ONCE * THREADS) {
      float4 held[AT_ONCE];
#pragma unroll
      for (int j = 0; j < AT_ONCE; ++j) {
        const int at = start + j * THREADS, group = at / 8 / count, step = begin + group;
        held[j] = at < quads ? plain4(1, at / 8 % count, (step < m.steps ? step : step - m.steps) * 32 + at % 8 * 4)
                             : float4{0, 0, 0, 0};
      }
#pragma unroll
      for (int j = 0; j < AT_ONCE; ++j) {
        const int at = start + j * THREADS;
        const float v[4] = {held[j].x, held[j].y, held[j].z, held[j].w};
        put_group(words, groups, at / 8, at % 8, v, at < quads);
      }
    }
  }
  fill_share(share, layer, which, STAGES);
  if (copies) wait_stage<FILL_SECOND>();  // the stages that were asked for behind the copies need not be there
  BARRIER();
};
#else
auto take_in = [&](const Portion& share, int layer, int site, int which, int, const int* wanted) {
  const float* values = values_at(site);
  const int quads = share.m.steps * 8, begin = share.block_step * 8, length = share.length() * 8;
  auto place = [&](int j) {
    const int quad = begin + j;
    return (quad < quads ? quad : quad - quads) * 4;
  };
  // All that is needed is asked for before any of it is used.
  const int segment = layer == LAYERS ? 0 : which - first_segment(site);
  const float* scores = scores_at(layer, which);
  const Counts under_way(histograms + ((size_t)(turn % 3) * HISTOGRAMS + segment) * BINS);
  const float4 early = tid < length ? load_float4(values + place(tid)) : float4{0, 0, 0, 0};
  const float square = site % 2 == 0 ? load_squares(squares) : 0.0f;
  const int cut = find_cut(under_way, wanted[segment], counting, reinterpret_cast<unsigned*>(room));
  ++turn;
  const float scale = site % 2 == 0 ? norm_scale(square) : 1.0f;
  if (tid < 4) scales[tid] = scale;
  fill_share(share, layer, which, STAGES);
#pragma unroll 1
  for (int start = 0; start < length; start += THREADS) {
    const int j = start + tid, i = place(j);
    const bool inside = j < length;
    float4 value = early;
    if (start > 0) value = inside ? load_float4(values + i) : float4{0, 0, 0, 0};
    float v[4] = {value.x, value.y, value.z, value.w};
    float score[4][TIERS];
    load_scores4(scores, i, inside ? width_at(site) : 0, score);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (bin_of(fabsf(v[e]) * score[e][0]) < cut) v[e] = 0;
    }
    put_group(words, groups, j / 8, j % 8, v, inside);
  }
  BARRIER();
};
#endif

#if TIERS
clear(histograms, HISTOGRAMS);
#endif
[[maybe_unused]] int* numbers = counting;  // in shared memory, one for each warp
#include "step_turns_begin"
#pragma unroll 1
for (;; ++token_turn) {
fill_for(0, 0, FILL_FIRST);
if (block < rows) {
  const int token = state[2 + block];
#if EMBED_PLAIN
  const weight_t* embedding = LAST(weight_t, 2);
  for (int i = tid; i < HIDDEN; i += THREADS) {
    x[(ALONE ? side : block) * HIDDEN + i] = to_float(embedding[(size_t)token * HIDDEN + i]);
  }
#else
  with_form(int(address[LAYERS * ENTRIES + 4] >> 8 & 255), [&](auto form) {
    for (int i = tid; i < HIDDEN; i += THREADS) {
      x[(ALONE ? side : block) * HIDDEN + i] = quant_weight<decltype(form)::value>(segment_at(7), LAST(char, 2), token, i);
    }
  });
#endif
}
grid_barrier.wait();
#if !ALONE
make(0, 0);
grid_barrier.wait();
#endif
#pragma unroll 1
for (int number = 0, choice = 0;; ++number) {
  const int layer = number / 4, site = number % 4, next = number + 1;
  const bool head = layer == LAYERS;
  const int count = head ? rows - logits_from : rows;
  if (count <= 0) break;
  const int which = segment_of_block(site, head, block);
  const Portion share = portion_at(layer, site);
#if TIERS && ROWS > 1
  choose(layer, site, count, take + choice);
  grid_barrier.wait();
#endif
  take_in(share, layer, site, which, count, take + choice);
#if TIERS
  choice += joined_at(layer, site);
#endif
  if (!head) look_ahead(next / 4, next % 4);
  const char* data = data_at(layer, which);
  with_form(form_at(layer, which), [&](auto form) {
    multiply_form<decltype(form)::value>(share, data, words, groups, scales, count,
                                         site % 2 ? products : products + OTHER_PARTS, gathering, ring);
  });
  filled = 0;
  if (head) break;
  if (site == 0) {
    half_t* all = const_cast<half_t*>(cache);
    grid_barrier.wait([&] {
#if !SHARED_STEP
      const Piece piece = piece_at(state, 0, all, capacity, position, rows);
      if (block < piece.items()) look_back(block, piece.used(), piece.past(layer), capacity, position);
#endif
      fill_for(next / 4, next % 4, FILL_FIRST);
    });
    attend_all(share.m, rows, all, capacity, position, layer, products + OTHER_PARTS, angles, POINTER(float, layer, 2),
               POINTER(float, layer, 3), int(address[layer * ENTRIES + 19]), state, attended, memory);
#if TIERS
    grid_barrier.wait();
    make(layer, 1);
#endif
  }
#if !ALONE
  if (site > 0) make_of_tiles(share, next / 4, next % 4);
#endif
  grid_barrier.wait([&] { fill_for(next / 4, next % 4, FILL_SECOND); });
}
grid_barrier.wait();
float* found = chooses ? scratch + AT_CHOICES : nullptr;
#pragma unroll 1
for (int row = 0; row < rows - logits_from; ++row) {
  look_at_row(row, [&](int r, int i) { return sum4(segment_at(7), products + OTHER_PARTS, r, i); },
              shows_logits ? logits : nullptr, found, tops, reinterpret_cast<float*>(room));
}
if (!chooses || logits_from >= rows) break;
grid_barrier.wait();
#include "step_turns_end"
float* margins = reinterpret_cast<float*>(chosen + MOST_PIECES);
if (!choose_and_go_on(state, rows, rows - logits_from, token_turn, found, chosen, choices, margins)) break;
++position;
}
if (block == 0 && tid == 0) done[0] = 0, choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
