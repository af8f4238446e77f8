// A whole step of one row in a draft view in one kernel. Between multiplications all blocks make the row together and count
// the keys of its inputs (step_choice.cuh); then each block takes in the part that its share of the matrix needs. The
// phases are those of norm.cu, gate.cu, attention.cu and int4.cu or bucket.cu.
// table (LAYERS * ENTRIES + 5) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of weights to take), state, sync, logits_out (1, VOCAB),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, lane = tid % 32, block = blockIdx.x;
const int position = state[0];
const int capacity = cache_shape[3], splits = capacity / SPAN, used = position / SPAN + 1;
Meeting meeting(const_cast<unsigned*>(sync));
float* logits = const_cast<float*>(logits_out);
unsigned long long* address = reinterpret_cast<unsigned long long*>(shared_memory);
int* counting = reinterpret_cast<int*>(address + ADDRESSES);
__half* activation = reinterpret_cast<__half*>(counting + 64);
unsigned char* counts = reinterpret_cast<unsigned char*>(activation + WIDEST);
char* room = reinterpret_cast<char*>(counts + (COUNTS ? WIDEST : 0));
char* ring = room + RING_AT;
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(room);
for (int i = tid; i < ADDRESSES; i += THREADS) address[i] = (unsigned long long)table[i];
float *x = scratch + AT_X, *products = scratch + AT_PARTS, *values = scratch + AT_VALUES;
float *squares = scratch + AT_SQUARES, *attended = scratch + AT_SPLITS;
#if TIERS
unsigned* histogram = reinterpret_cast<unsigned*>(scratch + AT_BINS);  // three: in use, next, being emptied
int turn = 0;
#endif
BARRIER();
#define POINTER(type, layer, entry) reinterpret_cast<const type*>(address[(layer) * ENTRIES + (entry)])
#define LAST(type, entry) reinterpret_cast<const type*>(address[LAYERS * ENTRIES + (entry)])

using Qkv = Draft<QKV_SIZE, HIDDEN_PAD>;
using Out = Draft<HIDDEN, MIXED_PAD>;
using GateUp = Draft<2 * INNER_PAD, HIDDEN_PAD>;
using Down = Draft<HIDDEN, INNER_PAD>;
using Head = Draft<VOCAB, HIDDEN_PAD>;

// Asks for what `make` will read of a layer's weights.
auto look_ahead = [&](auto padded, int width, const float* weight, const float* scores) {
  spread<decltype(padded)::PADDED>(1, [&](int, int i) {
    if (i >= width) return;
    if (weight && lane % 8 == 0) ahead(weight + i);
    if (TIERS) {
      if (TIERS * 4 >= 8 || lane % 8 == 0) ahead(scores + (size_t)i * TIERS);
    }
  });
};

// Makes four inputs of a row at a time by `four(i)`, keeps them, and counts their keys.
auto make = [&](auto padded, int width, const float* scores, auto four) {
#if TIERS
  unsigned* counted = histogram + turn % 3 * BINS;
  clear(histogram + (turn + 1) % 3 * BINS, 1);
#endif
  spread<decltype(padded)::PADDED>(1, [&](int, int i) {
    const float4 value = four(i);
    *reinterpret_cast<float4*>(values + i) = value;
#if TIERS
    if (i >= width) return;
    const float v[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float score[TIERS];
      load_scores(scores, i + e, score);
#pragma unroll
      for (int k = 0; k < TIERS; ++k) atomicAdd(counted + bin_of(fabsf(v[e]) * score[k]), size_of(k));
    }
#endif
  });
};

// The norm's part of `make`: adds a product to x; sums of squares go to `squares`.
auto make_norm = [&](auto product, const float* parts, const float* weight, const float* scores) {
  make(Width<HIDDEN_PAD>(), HIDDEN, scores, [&](int i) {
    float4 four = {0, 0, 0, 0}, w = four;
    if (i < HIDDEN) {
      four = load_float4(x + i);
      w = *reinterpret_cast<const float4*>(weight + i);
      if (parts) {
        add(four, sum4<decltype(product)>(parts, 0, i));
        *reinterpret_cast<float4*>(x + i) = four;
      }
    }
    const float square = lane_sum(four.x * four.x + four.y * four.y + four.z * four.z + four.w * four.w);
    if (lane == 0) squares[i / 128] = square;
    return float4{four.x * w.x, four.y * w.y, four.z * w.z, four.w * w.w};
  });
};

// Takes in the inputs that this block's share of a matrix multiplies, from `four(i)`: activations to shared memory, 0
// where an input is not taken at all, and how many runs of four weights are.
auto take_in = [&](auto matrix, int width, bool normed, const float* scores, int wanted, auto four) {
  using M = decltype(matrix);
  constexpr int QUADS = int(M::STEPS) * 8;
  const int from = M::first(block), count = M::first(block + 1) - from;
  const int begin = from % int(M::STEPS) * 8, length = (count < int(M::STEPS) ? count : int(M::STEPS)) * 8;
  auto place = [&](int j) {
    const int quad = begin + j;
    return (quad < QUADS ? quad : quad - QUADS) * 4;
  };
  const float scale = normed ? norm_scale(squares) : 1.0f;
  const float4 early = tid < length ? four(place(tid)) : float4{0, 0, 0, 0};
#if TIERS
  const int cut = find_cut(histogram + turn % 3 * BINS, wanted, counting);
  ++turn;
#endif
  for (int j = tid; j < length; j += THREADS) {
    const int i = place(j);
    const float4 value = j == tid ? early : four(i);
    float v[4] = {value.x, value.y, value.z, value.w};
#if TIERS
    unsigned runs = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      int taken = 0;
      if (i + e < width) {
        float score[TIERS];
        load_scores(scores, i + e, score);
#pragma unroll
        for (int k = 0; k < TIERS; ++k) {
          taken += bin_of(fabsf(v[e]) * score[k]) >= cut ? (COUNTS ? size_of(k) / 4 : 1) : 0;
        }
      }
      if (taken == 0) v[e] = 0;
      runs |= unsigned(taken) << (8 * e);
    }
    if (COUNTS) *reinterpret_cast<unsigned*>(counts + i) = runs;
#endif
    put4(activation, 0, WIDEST, i, float4{v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale});
  }
  BARRIER();
};
auto kept = [&](int i) { return load_float4(values + i); };

fill<Qkv>(POINTER(void, 0, 4), POINTER(void, 0, 8), ring);
#if TIERS
clear(histogram, 1);
#endif
if (block == 0) embed_row(LAST(weight_t, 2), state[2], x);
meeting.wait();
make_norm(Down(), nullptr, POINTER(float, 0, 0), POINTER(float, 0, 12));
meeting.wait();
for (int layer = 0; layer < LAYERS; ++layer) {
  const int* takes = take + layer * 4;
  take_in(Qkv(), HIDDEN, true, POINTER(float, layer, 12), TIERS ? takes[0] : 0, kept);
  multiply_draft<Qkv>(POINTER(void, layer, 4), POINTER(void, layer, 8), activation, counts, products + OTHER_PARTS, room,
                      ring);
  meeting.wait([&] { fill<Out>(POINTER(void, layer, 5), POINTER(void, layer, 9), ring); });
  for (int item = block; item < HEADS * used; item += GRID) {
    attend<Qkv>(item, used, splits, products + OTHER_PARTS,
                const_cast<half_t*>(cache) + (size_t)layer * 2 * KV_HEADS * capacity * SIZE, capacity, angles,
                POINTER(float, layer, 2), POINTER(float, layer, 3), int(address[layer * ENTRIES + 16]), position, 1,
                attended, memory);
  }
  auto mixed = [&](int i) { return i < MIXED ? mixed4(attended, 0, i, used, splits) : float4{0, 0, 0, 0}; };
#if TIERS
  meeting.wait([&] { look_ahead(Width<MIXED_PAD>(), MIXED, nullptr, POINTER(float, layer, 13)); });
  make(Width<MIXED_PAD>(), MIXED, POINTER(float, layer, 13), mixed);
  meeting.wait();
  take_in(Out(), MIXED, false, POINTER(float, layer, 13), takes[1], kept);
#else
  meeting.wait();
  take_in(Out(), MIXED, false, nullptr, 0, mixed);
#endif
  multiply_draft<Out>(POINTER(void, layer, 5), POINTER(void, layer, 9), activation, counts, products, room, ring);
  meeting.wait([&] {
    fill<GateUp>(POINTER(void, layer, 6), POINTER(void, layer, 10), ring);
    look_ahead(Width<HIDDEN_PAD>(), HIDDEN, POINTER(float, layer, 1), POINTER(float, layer, 14));
  });
  make_norm(Out(), products, POINTER(float, layer, 1), POINTER(float, layer, 14));
  meeting.wait();
  take_in(GateUp(), HIDDEN, true, POINTER(float, layer, 14), TIERS ? takes[2] : 0, kept);
  multiply_draft<GateUp>(POINTER(void, layer, 6), POINTER(void, layer, 10), activation, counts, products + OTHER_PARTS,
                         room, ring);
  meeting.wait([&] {
    fill<Down>(POINTER(void, layer, 7), POINTER(void, layer, 11), ring);
    if (TIERS) look_ahead(Width<INNER_PAD>(), INNER, nullptr, POINTER(float, layer, 15));
  });
  auto gated = [&](int i) { return gated4<GateUp>(products + OTHER_PARTS, 0, i); };
#if TIERS
  make(Width<INNER_PAD>(), INNER, POINTER(float, layer, 15), gated);
  meeting.wait();
  take_in(Down(), INNER, false, POINTER(float, layer, 15), takes[3], kept);
#else
  take_in(Down(), INNER, false, nullptr, 0, gated);
#endif
  multiply_draft<Down>(POINTER(void, layer, 7), POINTER(void, layer, 11), activation, counts, products, room, ring);
  const bool more = layer + 1 < LAYERS;
  const float* weight = more ? POINTER(float, layer + 1, 0) : LAST(float, 1);
  const float* scores = more ? POINTER(float, layer + 1, 12) : LAST(float, 4);
  meeting.wait([&] {
    if (more) fill<Qkv>(POINTER(void, layer + 1, 4), POINTER(void, layer + 1, 8), ring);
    if (!more) fill<Head>(LAST(void, 0), LAST(void, 3), ring);
    look_ahead(Width<HIDDEN_PAD>(), HIDDEN, weight, scores);
  });
  make_norm(Down(), products, weight, scores);
  meeting.wait();
}
take_in(Head(), HIDDEN, true, LAST(float, 4), TIERS ? take[LAYERS * 4] : 0, kept);
multiply_draft<Head>(LAST(void, 0), LAST(void, 3), activation, counts, products + OTHER_PARTS, room, ring);
meeting.wait();
for (int at = block * THREADS + tid; at < (VOCAB + 3) / 4; at += GRID * THREADS) {
  const float4 four = sum4<Head>(products + OTHER_PARTS, 0, at * 4);
  const float value[4] = {four.x, four.y, four.z, four.w};
  for (int e = 0; e < 4; ++e) {
    if (at * 4 + e < VOCAB) logits[at * 4 + e] = value[e];
  }
}
if (block == 0 && tid == 0) done[0] = 0;
