// A whole step in the exact view in one kernel: the phases are kernels of their own elsewhere (norm.cu, dense.cu,
// verify.cu, select.cu, attention.cu, gate.cu), with a barrier over the grid between them. Where one row takes all weights,
// each block makes the inputs of a multiplication by itself, which saves the barriers before it.
// table (LAYERS * ENTRIES + 3) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of weights to take), told (the state), sync, logits_out (., VOCAB), choices_out (turns made, then each
// row's choice of every turn),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, block = blockIdx.x;
#if RECYCLES
int rows = told[1];
#else
const int rows = told[1];
#endif
const int logits_from = told[STATE_LOGITS];
#include "step_begin"
float* scratch_sums = reinterpret_cast<float*>(state + STATE_WORDS);
float* room = scratch_sums + 64;
char* ring = reinterpret_cast<char*>(room + RING_AT);
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(room);
float *x = scratch + AT_X, *products = scratch + AT_PARTS, *attended = scratch + AT_SPLITS;
act_t* activation = reinterpret_cast<act_t*>(scratch + AT_ACTIVATION);
// What a multiplication leaves; a row alone makes inputs of it while others leave what comes next.
auto parts_of = [&](int site) { return site % 2 ? products : products + OTHER_PARTS; };
unsigned char* prefix = reinterpret_cast<unsigned char*>(scratch + AT_PREFIX);  // tiers taken
BARRIER();
#include "step_sites"
// Four inputs of a row that has no norm.
auto plain4 = [&](int site, int row, int i) {
  if (site == 3) return gated4(matrix_at(2, false), parts_of(2), row, i);
  return i < MIXED ? mixed4(attended, row, i, ROW_SPLITS(row), splits) : float4{0, 0, 0, 0};
};

#if TIERS
// Rows that are being made and rows that may still be read lie in different places.
auto values_at = [&](int site) { return scratch + AT_VALUES + site % 2 * VALUES_EACH; };
float* squares = scratch + AT_SQUARES;
unsigned* histograms = reinterpret_cast<unsigned*>(scratch + AT_BINS);  // three times one for every joined matrix and row
constexpr int HISTOGRAMS = 3 * ROWS;
int turn = 0;
auto scores_at = [&](int layer, int site) {
  return layer == LAYERS ? LAST(float, 4) : POINTER(float, layer, 12 + site);
};

auto joined_at = [&](int layer, int site) { return layer == LAYERS ? 1 : site == 0 ? 3 : site == 2 ? 2 : 1; };

// Asks for what `make` will read of a layer's weights.
auto look_ahead = [&](int layer, int site, int joined) {
  const float *weight = weight_at(layer, site), *scores = scores_at(layer, site);
  const int width = width_at(site);
  spread(joined, padded_at(site), [&](int m, int i) {
    if (i >= width) return;
    if (weight && m == 0 && tid % 8 == 0) ahead(weight + i);
    ahead(scores + ((size_t)m * width + i) * TIERS);
  });
};

// Makes inputs i to i + 3 of the row first + row of a multiplication, before its norm's scale, and counts their keys for each
// of the joined matrices. A warp has 128 inputs.
auto make_four = [&](int layer, int site, int joined, int first, bool adds, int row, int i) {
  unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  const float *weight = weight_at(layer, site), *scores = scores_at(layer, site);
  const int width = width_at(site), padded = padded_at(site);
  float4 value = {0, 0, 0, 0};
  float score[3][4][TIERS];
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    if (m < joined) load_scores4(scores + (size_t)m * width * TIERS, i, width, score[m]);
  }
  if (site % 2 == 0) {
    auto product = [&] { return sum4(matrix_at(site ? 1 : 3, false), products, first + row, i); };
    value = normed4(x + (first + row) * HIDDEN, weight, squares + row * (HIDDEN_PAD / 128), i, adds, product);
  } else {
    value = plain4(site, row, i);
  }
  *reinterpret_cast<float4*>(values_at(site) + (size_t)row * padded + i) = value;
  if (i >= width) return;
  const float v[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    if (m >= joined) break;
    count_keys(counted + (size_t)(m * ROWS + row) * BINS, v, score[m], i, width);
  }
};
// Empties the histograms of the turn after the one that is counted.
auto clear_next = [&] { clear(histograms + (size_t)((turn + 1) % 3) * HISTOGRAMS * BINS, HISTOGRAMS); };
// Makes the rows of a multiplication, from `first` on, by all blocks together.
auto make = [&](int layer, int site, int joined, int first, bool adds) {
  clear_next();
  spread(rows - first, padded_at(site), [&](int row, int i) { make_four(layer, site, joined, first, adds, row, i); });
};

#if INPUTS
#include "step_inputs_rows"
#else
// Chooses tiers of rows that were made, rounds their activations and stores both: some blocks for every row and matrix.
auto choose = [&](int layer, int site, int joined, int count, const int* wanted) {
  const unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  const float* scores = scores_at(layer, site);
  const int width = width_at(site), padded = padded_at(site);
  spread_pairs(count, joined, [&](int row, int m, int from, int stride) {
    // All that is needed is asked for before any of it is used.
    const Counts under_way(counted + (size_t)(m * ROWS + row) * BINS);
    const float4 early = from < padded ? load_float4(values_at(site) + (size_t)row * padded + from) : float4{0, 0, 0, 0};
    float score[4][TIERS];
    load_scores4(scores + (size_t)m * width * TIERS, from, width, score);
    const float square = site % 2 == 0 ? load_squares(squares + row * (HIDDEN_PAD / 128)) : 0.0f;
    const int cut = find_cut(under_way, wanted[m + WANTED_OF(rows - count + row)], reinterpret_cast<int*>(scratch_sums),
                             reinterpret_cast<unsigned*>(room));
    const float scale = site % 2 == 0 ? norm_scale(square) : 1.0f;
#pragma unroll 1
    for (int i = from; i < padded; i += stride) {
      float4 value = early;
      if (i != from) {
        value = load_float4(values_at(site) + (size_t)row * padded + i);
        load_scores4(scores + (size_t)m * width * TIERS, i, width, score);
      }
      const float v[4] = {value.x, value.y, value.z, value.w};
      unsigned taken = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int found = 0;
#pragma unroll
        for (int k = 0; k < TIERS; ++k) found += i + e < width && bin_of(fabsf(v[e]) * score[e][k]) >= cut ? 1 : 0;
        taken |= unsigned(found) << (8 * e);
      }
      *reinterpret_cast<unsigned*>(prefix + ((size_t)m * ROWS + row) * padded + i) = taken;
      if (m == 0) put4(activation, row, padded, i, float4{v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale});
    }
    BARRIER();
  });
  ++turn;
};
#endif
#elif ROWS == 1
// Makes the inputs that this block's share of a multiplication takes. The residual stream has two places: block 0 writes
// the sum to one while all read from the other.
int side = 0;
act_t* own = reinterpret_cast<act_t*>(ring);
auto make = [&](const Matrix& m, int layer, int site, bool adds) {
  const int padded = m.steps * 32;
  if (site % 2 == 0) {
    float value[OWN<HIDDEN_PAD>];
    norm_row<HIDDEN, HIDDEN_PAD>(matrix_at(site ? 1 : 3, false), x + side * HIDDEN, adds ? products : nullptr, 0,
                                 adds && block == 0 ? x + (1 - side) * HIDDEN : nullptr, weight_at(layer, site),
                                 scratch_sums, value);
    side = adds ? 1 - side : side;
#pragma unroll
    for (int j = 0; j < OWN<HIDDEN_PAD>; j += 4) {
      const int i = tid * OWN<HIDDEN_PAD> + j;
      if (i < HIDDEN_PAD) put4(own, 0, padded, i, float4{value[j], value[j + 1], value[j + 2], value[j + 3]});
    }
  } else {
    const int from = m.first(block), count = m.first(block + 1) - from, quads = m.steps * 8;
    const int begin = from % m.steps * 8, length = (count < m.steps ? count : m.steps) * 8;
#pragma unroll 1
    for (int j = tid; j < length; j += THREADS) {
      const int quad = begin + j, i = (quad < quads ? quad : quad - quads) * 4;
      put4(own, 0, padded, i, plain4(site, 0, i));
    }
  }
  BARRIER();
};
#else
// Makes the rows of a multiplication, from `first` on; a block for every row that has a norm.
auto make = [&](int layer, int site, int first, bool adds) {
  if (site % 2) {
    const int quads = padded_at(site) / 4;
#pragma unroll 1
    for (int at = block * THREADS + tid; at < rows * quads; at += GRID * THREADS) {
      const int row = at / quads, i = (at - row * quads) * 4;
      put4(activation, row, quads * 4, i, plain4(site, row, i));
    }
    return;
  }
#pragma unroll 1
  for (int row = block; row < rows - first; row += GRID) {
    float value[OWN<HIDDEN_PAD>];
    float* from = x + (first + row) * HIDDEN;
    norm_row<HIDDEN, HIDDEN_PAD>(matrix_at(site ? 1 : 3, false), from, adds ? products : nullptr, first + row,
                                 adds ? from : nullptr, weight_at(layer, site), scratch_sums, value);
#pragma unroll
    for (int j = 0; j < OWN<HIDDEN_PAD>; j += 4) {
      const int i = tid * OWN<HIDDEN_PAD> + j;
      if (i < HIDDEN_PAD) {
        put4(activation, row, HIDDEN_PAD, i, float4{value[j], value[j + 1], value[j + 2], value[j + 3]});
      }
    }
  }
};
#endif

auto fill_for = [&](int layer, int site) {
  const bool head = layer == LAYERS;
  fill(matrix_at(site, head), outputs_at(site, head), head ? LAST(void, 0) : POINTER(void, layer, 4 + site),
       head ? LAST(void, 3) : POINTER(void, layer, 8 + site), ring);
};
#if TIERS
clear(histograms, HISTOGRAMS);
#endif
[[maybe_unused]] int* numbers = reinterpret_cast<int*>(scratch_sums);  // in shared memory, one for each warp
#include "step_turns_begin"
#pragma unroll 1
for (;; ++token_turn) {
fill_for(0, 0);
#if !TIERS && ROWS == 1
if (block == 0) embed_row(LAST(weight_t, 2), state[2], x + side * HIDDEN);
#else
if (block < rows) embed_row(LAST(weight_t, 2), state[2 + block], x + block * HIDDEN);
#endif
grid_barrier.wait();
#if INPUTS
make(0, 0, joined_at(0, 0), 0, false);
grid_barrier.wait();
#endif
#pragma unroll 1
for (int number = 0, choice = 0;; ++number) {
  const int layer = number / 4, site = number % 4, next = number + 1;
  const bool head = layer == LAYERS;
  if (head && logits_from >= rows) break;
  // The rows wanted move to the front.
  [[maybe_unused]] const int first = head ? logits_from : 0, joined = head ? 1 : site == 0 ? 3 : site == 2 ? 2 : 1;
  const Matrix m = matrix_at(site, head);
#if INPUTS && ROWS == 1
  take_in(m, layer, site, joined, take + choice);
  choice += joined;
  const act_t* activation = own;
  const unsigned* taken_words = own_words;
#elif INPUTS
  choose(layer, site, joined, rows - first, take + choice);
  choice += joined;
  grid_barrier.wait();
#elif TIERS
  make(layer, site, joined, first, number > 0);
  grid_barrier.wait();
  choose(layer, site, joined, rows - first, take + choice);
  choice += joined;
  grid_barrier.wait();
#elif ROWS == 1
  make(m, layer, site, number > 0);
  const act_t* activation = own;
#else
  make(layer, site, first, number > 0);
  grid_barrier.wait();
#endif
  multiply_exact(m, outputs_at(site, head), joined, head ? LAST(void, 0) : POINTER(void, layer, 4 + site),
                 head ? LAST(void, 3) : POINTER(void, layer, 8 + site), activation,
#if INPUTS
                 reinterpret_cast<const unsigned char*>(taken_words),
#else
                 prefix,
#endif
                 rows - first, parts_of(site), room, ring);
  auto meanwhile = [&] {
    if (head) return;
    fill_for(next / 4, next % 4);
#if TIERS
    look_ahead(next / 4, next % 4, joined_at(next / 4, next % 4));
#endif
  };
  if (site == 0 && !head) {
    half_t* all = const_cast<half_t*>(cache);
    grid_barrier.wait([&] {
#if !SHARED_STEP
      const Piece piece = piece_at(state, 0, all, capacity, position, rows);
      if (block < piece.items()) look_back(block, piece.used(), piece.past(layer), capacity, position);
#endif
      meanwhile();
    });
    attend_all(m, rows, all, capacity, position, layer, parts_of(0), angles, POINTER(float, layer, 2),
               POINTER(float, layer, 3), int(address[layer * ENTRIES + 16]), state, attended, memory);
    grid_barrier.wait();
#if INPUTS
    make(layer, 1, 1, 0, false);
    grid_barrier.wait();
  } else if (!head) {
    make_of_tiles(m, next / 4, next % 4);
    grid_barrier.wait(meanwhile);
#endif
  } else {
    grid_barrier.wait(meanwhile);
  }
  if (head) break;
}
float* found = chooses ? scratch + AT_CHOICES : nullptr;
#pragma unroll 1
for (int row = 0; row < rows - logits_from; ++row) {
  look_at_row(row, [&](int r, int i) { return sum4(matrix_at(0, true), parts_of(0), r, i); }, shows_logits ? logits : nullptr, found,
              tops, room);
}
if (!chooses || logits_from >= rows) break;
grid_barrier.wait();
#include "step_turns_end"
if (!choose_and_go_on(state, rows, rows - logits_from, token_turn, found, chosen, choices)) break;
++position;
}
if (block == 0 && tid == 0) done[0] = 0, choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
