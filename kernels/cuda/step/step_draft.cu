// A whole step of one row in a draft view in one kernel. Between multiplications all blocks make the row together and count
// the keys of its inputs (step_choice.cuh); then each block takes in the part that its share of the matrix needs. The
// phases are those of norm.cu, gate.cu, attention.cu and int4.cu or bucket.cu.
// table (LAYERS * ENTRIES + 5) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of weights to take), told (the state), sync, logits_out (1, VOCAB), choices_out (turns made, then the
// choice of each),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, lane = tid % 32, block = blockIdx.x;
#include "step_begin"
int* counting = state + STATE_WORDS;
// The activation, and what goes with it: for bucketMul halves and how many runs of each input are taken, for 4-bit weights
// two planes of bytes and groups.
unsigned char* activation = reinterpret_cast<unsigned char*>(counting + 64);
#if COUNTS
using Beside = unsigned char;
#else
using Beside = Group;
#endif
Beside* beside = reinterpret_cast<Beside*>(activation + 2 * WIDEST);
char* room = reinterpret_cast<char*>(beside + (COUNTS ? WIDEST : WIDEST / 32));
char* ring = room + RING_AT;
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(room);
float *x = scratch + AT_X, *products = scratch + AT_PARTS, *values = scratch + AT_VALUES;
float *squares = scratch + AT_SQUARES, *attended = scratch + AT_SPLITS;
#if TIERS
unsigned* histogram = reinterpret_cast<unsigned*>(scratch + AT_BINS);  // three: in use, next, being emptied
int turn = 0;
#endif
BARRIER();
#include "step_sites"
// What its inputs are chosen by.
auto scores_at = [&](int layer, int site) {
  return layer == LAYERS ? LAST(float, 4) : POINTER(float, layer, 12 + site);
};

// Asks for what `make` will read of a layer's weights.
auto look_ahead = [&](int layer, int site) {
  const float *weight = weight_at(layer, site), *scores = scores_at(layer, site);
  spread(1, padded_at(site), [&](int, int i) {
    if (i >= width_at(site)) return;
    if (weight && lane % 8 == 0) ahead(weight + i);
    if (TIERS > 1 || (TIERS && lane % 8 == 0)) ahead(scores + (size_t)i * TIERS);
  });
};

// Makes the row of a multiplication and counts the keys of its inputs.
auto make = [&](int layer, int site, bool adds) {
#if TIERS
  const float* scores = scores_at(layer, site);
  unsigned* counted = histogram + turn % 3 * BINS;
  clear(histogram + (turn + 1) % 3 * BINS, 1);
#endif
  const int width = width_at(site);
  const float* weight = weight_at(layer, site);
  spread(1, padded_at(site), [&](int, int i) {
    float4 value = {0, 0, 0, 0};
#if TIERS
    float score[4][TIERS];
    load_scores4(scores, i, width, score);
#endif
    if (site % 2 == 0) {
      value = normed4(x, weight, squares, i, adds, [&] { return sum4(matrix_at(site ? 1 : 3, false), products, 0, i); });
    }
#if TIERS
    if (site == 1 && i < MIXED) value = mixed4(attended, 0, i, ROW_SPLITS(0), splits);
    if (site == 3) value = gated4(matrix_at(2, false), products + OTHER_PARTS, 0, i);
#endif
    *reinterpret_cast<float4*>(values + i) = value;
#if TIERS
    if (i >= width) return;
    const float v[4] = {value.x, value.y, value.z, value.w};
    count_keys(counted, v, score, i, width);
#endif
  });
};

// Takes in the inputs that this block's share of a matrix multiplies: activations to shared memory, 0 where an input is
// not taken at all, and how many runs of four weights are. Where nothing is chosen, a row without a norm is made here,
// which is cheaper than a grid barrier.
auto take_in = [&](const Matrix& m, int layer, int site, int wanted) {
  const int quads = m.steps * 8, width = width_at(site);
  const int from = m.first(block), count = m.first(block + 1) - from;
  const int begin = from % m.steps * 8, length = (count < m.steps ? count : m.steps) * 8;
  auto place = [&](int j) {
    const int quad = begin + j;
    return (quad < quads ? quad : quad - quads) * 4;
  };
  auto four = [&](int i) {
#if !TIERS
    if (site == 1) return i < MIXED ? mixed4(attended, 0, i, ROW_SPLITS(0), splits) : float4{0, 0, 0, 0};
    if (site == 3) return gated4(matrix_at(2, false), products + OTHER_PARTS, 0, i);
#endif
    return load_float4(values + i);
  };
  // All that is needed is asked for before any of it is used.
#if TIERS
  const Counts under_way(histogram + turn % 3 * BINS);
  const float* scores = scores_at(layer, site);
  float4 early = {0, 0, 0, 0};
  float score[4][TIERS];
  if (tid < length) {
    early = four(place(tid));
    load_scores4(scores, place(tid), width, score);
  }
#else
  const float4 early = tid < length ? four(place(tid)) : float4{0, 0, 0, 0};
#endif
  const float square = site % 2 == 0 ? load_squares(squares) : 0.0f;
#if TIERS
  const int cut = find_cut(under_way, wanted, counting, reinterpret_cast<unsigned*>(room));
  ++turn;
#endif
  const float scale = site % 2 == 0 ? norm_scale(square) : 1.0f;
#pragma unroll 1
  for (int start = 0; start < length; start += THREADS) {
    const int j = start + tid, i = place(j);
    const bool inside = j < length;
    float4 value = early;
    if (start > 0) {
      value = inside ? four(i) : float4{0, 0, 0, 0};
#if TIERS
      load_scores4(scores, i, inside ? width : 0, score);
#endif
    }
    float v[4] = {value.x, value.y, value.z, value.w};
#if TIERS
    unsigned runs = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      int taken = 0;
#pragma unroll
      for (int k = 0; k < TIERS; ++k) {
        taken += i + e < width && bin_of(fabsf(v[e]) * score[e][k]) >= cut ? (COUNTS ? size_of(k) / 4 : 1) : 0;
      }
      if (taken == 0) v[e] = 0;
      runs |= unsigned(taken) << (8 * e);
    }
#endif
    const float scaled[4] = {v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale};
#if COUNTS
    if (inside) {
      *reinterpret_cast<unsigned*>(beside + i) = runs;
      put4(reinterpret_cast<__half*>(activation), 0, WIDEST, i, float4{scaled[0], scaled[1], scaled[2], scaled[3]});
    }
#else
    put_whole(activation, beside, i, scaled, inside);
#endif
  }
  BARRIER();
};

auto fill_for = [&](int layer, int site) {
  const bool head = layer == LAYERS;
  fill(matrix_at(site, head), head ? LAST(void, 0) : POINTER(void, layer, 4 + site),
       head ? LAST(void, 3) : POINTER(void, layer, 8 + site), ring);
};

#if TIERS
clear(histogram, 1);
#endif
#pragma unroll 1
for (;; ++token_turn) {
fill_for(0, 0);
if (block == 0) embed_row(LAST(weight_t, 2), state[2], x);
grid_barrier.wait();
make(0, 0, false);
grid_barrier.wait();
#pragma unroll 1
for (int number = 0;; ++number) {
  const int layer = number / 4, site = number % 4, next = number + 1;
  const bool head = layer == LAYERS;
  const Matrix m = matrix_at(site, head);
  take_in(m, layer, site, TIERS ? take[number] : 0);
  multiply_draft(m, head ? LAST(void, 0) : POINTER(void, layer, 4 + site),
                 head ? LAST(void, 3) : POINTER(void, layer, 8 + site), activation, beside,
                 site % 2 ? products : products + OTHER_PARTS, room, ring);
  if (head) break;
  if (site == 0) {
    half_t* all = const_cast<half_t*>(cache);
    grid_barrier.wait([&] {
#if !SHARED_STEP
      const Piece piece = piece_at(state, 0, all, capacity, position, 1);
      if (block < piece.items()) look_back(block, piece.used(), piece.past(layer), capacity, position);
#endif
      fill_for(next / 4, next % 4);
      look_ahead(next / 4, next % 4);
    });
    attend_all(m, 1, all, capacity, position, layer, products + OTHER_PARTS, angles, POINTER(float, layer, 2),
               POINTER(float, layer, 3), int(address[layer * ENTRIES + 16]), state, attended, memory);
    grid_barrier.wait();
  } else {
    grid_barrier.wait([&] {
      fill_for(next / 4, next % 4);
      look_ahead(next / 4, next % 4);
    });
  }
  if (TIERS || site % 2) {
    make(next / 4, next % 4, true);
    grid_barrier.wait();
  }
}
grid_barrier.wait();
float* found = chooses ? scratch + AT_CHOICES : nullptr;
look_at_row(0, [&](int r, int i) { return sum4(matrix_at(0, true), products + OTHER_PARTS, r, i); },
            shows_logits ? logits : nullptr, found, nullptr, reinterpret_cast<float*>(room));
if (!chooses) break;
grid_barrier.wait();
if (!choose_and_go_on(state, 1, 1, token_turn, found, chosen, choices, reinterpret_cast<float*>(chosen + 1))) break;
++position;
}
if (block == 0 && tid == 0) done[0] = 0, choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
