// A whole step in the exact view in one kernel: the phases are kernels of their own elsewhere (norm.cu, dense.cu,
// verify.cu, select.cu, attention.cu, gate.cu), with a barrier over the grid between them.
// table (LAYERS * ENTRIES + 3) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2),
// take (numbers of weights to take), state, sync, logits_out (., VOCAB),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, block = blockIdx.x;
const int position = state[0], rows = state[1], logits_from = state[STATE_LOGITS];
const int capacity = cache_shape[3], splits = capacity / SPAN, used = (position + rows - 1) / SPAN + 1;
Meeting meeting(const_cast<unsigned*>(sync));
float* logits = const_cast<float*>(logits_out);
unsigned long long* address = reinterpret_cast<unsigned long long*>(shared_memory);
float* scratch_sums = reinterpret_cast<float*>(address + ADDRESSES);
float* room = scratch_sums + 64;
char* ring = reinterpret_cast<char*>(room + RING_AT);
AttentionMemory& memory = *reinterpret_cast<AttentionMemory*>(room);
for (int i = tid; i < ADDRESSES; i += THREADS) address[i] = (unsigned long long)table[i];
float *x = scratch + AT_X, *products = scratch + AT_PARTS, *attended = scratch + AT_SPLITS;
act_t* activation = reinterpret_cast<act_t*>(scratch + AT_ACTIVATION);
__half* prefix = reinterpret_cast<__half*>(scratch + AT_PREFIX);
BARRIER();
#define POINTER(type, layer, entry) reinterpret_cast<const type*>(address[(layer) * ENTRIES + (entry)])
#define LAST(type, entry) reinterpret_cast<const type*>(address[LAYERS * ENTRIES + (entry)])

using Qkv = Exact<QKV_SIZE, HIDDEN_PAD>;
using Out = Exact<HIDDEN, MIXED_PAD>;
using GateUp = Exact<2 * INNER_PAD, HIDDEN_PAD>;
using Down = Exact<HIDDEN, INNER_PAD>;
using Head = Exact<VOCAB, HIDDEN_PAD>;

#if TIERS
float *values = scratch + AT_VALUES, *squares = scratch + AT_SQUARES;
unsigned* histograms = reinterpret_cast<unsigned*>(scratch + AT_BINS);  // three times one for every joined matrix and row
constexpr int HISTOGRAMS = 3 * ROWS;
int turn = 0;

auto look_ahead = [&](auto padded, auto joined, int width, const float* weight, const float* scores) {
  spread<decltype(padded)::PADDED>(1, [&](int, int i) {
    if (i >= width) return;
    if (weight && tid % 8 == 0) ahead(weight + i);
    for (int m = 0; m < decltype(joined)::COUNT; ++m) ahead(scores + ((size_t)m * width + i) * TIERS);
  });
};

// Makes rows four inputs at a time by `four(row, i)`, keeps them, and counts their keys for each of the joined matrices.
auto make = [&](auto padded, auto joined, int count, int width, const float* scores, auto four) {
  unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  clear(histograms + (size_t)((turn + 1) % 3) * HISTOGRAMS * BINS, HISTOGRAMS);
  spread<decltype(padded)::PADDED>(count, [&](int row, int i) {
    const float4 value = four(row, i);
    *reinterpret_cast<float4*>(values + (size_t)row * decltype(padded)::PADDED + i) = value;
    if (i >= width) return;
    const float v[4] = {value.x, value.y, value.z, value.w};
    for (int m = 0; m < decltype(joined)::COUNT; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float score[TIERS];
        load_scores(scores, m * width + i + e, score);
#pragma unroll
        for (int k = 0; k < TIERS; ++k) {
          atomicAdd(counted + (size_t)(m * ROWS + row) * BINS + bin_of(fabsf(v[e]) * score[k]), size_of(k));
        }
      }
    }
  });
};

// Chooses tiers of rows that were made, rounds their activations and stores both: some blocks for every row and matrix.
auto choose = [&](auto padded, auto joined, int count, int width, bool normed, const float* scores, const int* wanted) {
  constexpr int PADDED = decltype(padded)::PADDED, JOINED = decltype(joined)::COUNT;
  const unsigned* counted = histograms + (size_t)(turn % 3) * HISTOGRAMS * BINS;
  const int pairs = count * JOINED, step = pairs < GRID ? pairs : GRID;
  for (int pair = block % step; pair < pairs; pair += step) {
    const int row = pair / JOINED, m = pair % JOINED, sharing = (GRID - pair % step + step - 1) / step;
    const int cut = find_cut(counted + (size_t)(m * ROWS + row) * BINS, wanted[m], reinterpret_cast<int*>(scratch_sums));
    const float scale = normed ? norm_scale(squares + row * (HIDDEN_PAD / 128)) : 1.0f;
    for (int i = (block / step * THREADS + tid) * 4; i < PADDED; i += sharing * THREADS * 4) {
      const float4 value = load_float4(values + (size_t)row * PADDED + i);
      const float v[4] = {value.x, value.y, value.z, value.w};
      __half taken[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int found = 0;
        if (i + e < width) {
          float score[TIERS];
          load_scores(scores, m * width + i + e, score);
#pragma unroll
          for (int k = 0; k < TIERS; ++k) found += bin_of(fabsf(v[e]) * score[k]) >= cut ? 1 : 0;
        }
        taken[e] = __int2half_rn(found);
      }
      *reinterpret_cast<uint2*>(prefix + ((size_t)m * ROWS + row) * PADDED + i) = *reinterpret_cast<const uint2*>(taken);
      if (m == 0) put4(activation, row, PADDED, i, float4{v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale});
    }
    BARRIER();
  }
  ++turn;
};
#endif

// Norm of rows from `first` on, after adding a product to them; below effort 1 with the choice of tiers.
auto norm_rows = [&](auto product, const float* parts, int first, const float* weight, auto joined, const float* scores,
                     const int* takes) {
  const int count = rows - first;
#if TIERS
  make(Width<HIDDEN_PAD>(), joined, count, HIDDEN, scores, [&](int row, int i) {
    float* from = x + (first + row) * HIDDEN + i;
    float4 four = {0, 0, 0, 0}, w = four;
    if (i < HIDDEN) {
      four = load_float4(from);
      w = *reinterpret_cast<const float4*>(weight + i);
      if (parts) {
        add(four, sum4<decltype(product)>(parts, first + row, i));
        *reinterpret_cast<float4*>(from) = four;
      }
    }
    const float square = lane_sum(four.x * four.x + four.y * four.y + four.z * four.z + four.w * four.w);
    if (tid % 32 == 0) squares[row * (HIDDEN_PAD / 128) + i / 128] = square;
    return float4{four.x * w.x, four.y * w.y, four.z * w.z, four.w * w.w};
  });
  meeting.wait();
  choose(Width<HIDDEN_PAD>(), joined, count, HIDDEN, true, scores, takes);
#else
  for (int row = block; row < count; row += GRID) {
    float value[OWN<HIDDEN_PAD>];
    float* from = x + (first + row) * HIDDEN;
    norm_row<decltype(product), HIDDEN, HIDDEN_PAD>(from, parts, first + row, parts ? from : nullptr, weight,
                                                    scratch_sums, value);
#pragma unroll
    for (int j = 0; j < OWN<HIDDEN_PAD>; j += 4) {
      const int i = tid * OWN<HIDDEN_PAD> + j;
      if (i < HIDDEN_PAD) {
        put4(activation, row, HIDDEN_PAD, i, float4{value[j], value[j + 1], value[j + 2], value[j + 3]});
      }
    }
  }
#endif
};

// Rows made by `four(row, i)`; below effort 1 with the choice of tiers.
auto plain_rows = [&](auto padded, int width, const float* scores, const int* takes, auto four) {
  constexpr int PADDED = decltype(padded)::PADDED;
#if TIERS
  make(padded, Joined<1>(), rows, width, scores, four);
  meeting.wait();
  choose(padded, Joined<1>(), rows, width, false, scores, takes);
#else
  for (int at = block * THREADS + tid; at < rows * (PADDED / 4); at += GRID * THREADS) {
    const int row = at / (PADDED / 4), i = at % (PADDED / 4) * 4;
    put4(activation, row, PADDED, i, four(row, i));
  }
#endif
};

fill<Qkv>(POINTER(void, 0, 4), POINTER(void, 0, 8), ring);
#if TIERS
clear(histograms, HISTOGRAMS);
#define AHEAD(...) look_ahead(__VA_ARGS__)
#else
#define AHEAD(...)
#endif
if (block < rows) embed_row(LAST(weight_t, 2), state[2 + block], x + block * HIDDEN);
meeting.wait();
for (int layer = 0; layer < LAYERS; ++layer) {
  const int* takes = take + layer * 7;
  norm_rows(Down(), layer ? products : nullptr, 0, POINTER(float, layer, 0), Joined<3>(), POINTER(float, layer, 12), takes);
  meeting.wait();
  multiply_exact<Qkv, 3>(POINTER(void, layer, 4), POINTER(void, layer, 8), activation, prefix, rows, products, room, ring);
  meeting.wait([&] { fill<Out>(POINTER(void, layer, 5), POINTER(void, layer, 9), ring); });
  for (int item = block; item < (rows + TOGETHER - 1) / TOGETHER * HEADS * used; item += GRID) {
    attend<Qkv>(item, used, splits, products, const_cast<half_t*>(cache) + (size_t)layer * 2 * KV_HEADS * capacity * SIZE,
                capacity, angles, POINTER(float, layer, 2), POINTER(float, layer, 3), int(address[layer * ENTRIES + 16]),
                position, rows, attended, memory);
  }
  meeting.wait([&] { AHEAD(Width<MIXED_PAD>(), Joined<1>(), MIXED, nullptr, POINTER(float, layer, 13)); });
  plain_rows(Width<MIXED_PAD>(), MIXED, POINTER(float, layer, 13), takes + 3, [&](int row, int i) {
    return i < MIXED ? mixed4(attended, row, i, (position + row) / SPAN + 1, splits) : float4{0, 0, 0, 0};
  });
  meeting.wait();
  multiply_exact<Out, 1>(POINTER(void, layer, 5), POINTER(void, layer, 9), activation, prefix, rows, products, room, ring);
  meeting.wait([&] {
    fill<GateUp>(POINTER(void, layer, 6), POINTER(void, layer, 10), ring);
    AHEAD(Width<HIDDEN_PAD>(), Joined<2>(), HIDDEN, POINTER(float, layer, 1), POINTER(float, layer, 14));
  });
  norm_rows(Out(), products, 0, POINTER(float, layer, 1), Joined<2>(), POINTER(float, layer, 14), takes + 4);
  meeting.wait();
  multiply_exact<GateUp, 2>(POINTER(void, layer, 6), POINTER(void, layer, 10), activation, prefix, rows, products, room,
                            ring);
  meeting.wait([&] {
    fill<Down>(POINTER(void, layer, 7), POINTER(void, layer, 11), ring);
    AHEAD(Width<INNER_PAD>(), Joined<1>(), INNER, nullptr, POINTER(float, layer, 15));
  });
  plain_rows(Width<INNER_PAD>(), INNER, POINTER(float, layer, 15), takes + 6,
             [&](int row, int i) { return gated4<GateUp>(products, row, i); });
  meeting.wait();
  multiply_exact<Down, 1>(POINTER(void, layer, 7), POINTER(void, layer, 11), activation, prefix, rows, products, room,
                          ring);
  meeting.wait([&] {
    if (layer + 1 < LAYERS) {
      fill<Qkv>(POINTER(void, layer + 1, 4), POINTER(void, layer + 1, 8), ring);
      AHEAD(Width<HIDDEN_PAD>(), Joined<3>(), HIDDEN, POINTER(float, layer + 1, 0), POINTER(float, layer + 1, 12));
    } else if (logits_from < rows) {
      fill<Head>(LAST(void, 0), LAST(void, 3), ring);
      AHEAD(Width<HIDDEN_PAD>(), Joined<1>(), HIDDEN, LAST(float, 1), LAST(float, 4));
    }
  });
}
if (logits_from < rows) {
  // The rows that are wanted, moved to the front.
  const int wanted = rows - logits_from;
  norm_rows(Down(), products, logits_from, LAST(float, 1), Joined<1>(), LAST(float, 4), take + LAYERS * 7);
  meeting.wait();
  multiply_exact<Head, 1>(LAST(void, 0), LAST(void, 3), activation, prefix, wanted, products, room, ring);
  meeting.wait();
  for (int at = block * THREADS + tid; at < wanted * ((VOCAB + 3) / 4); at += GRID * THREADS) {
    const int row = at / ((VOCAB + 3) / 4), i = at % ((VOCAB + 3) / 4) * 4;
    const float4 four = sum4<Head>(products, row, i);
    const float value[4] = {four.x, four.y, four.z, four.w};
    for (int e = 0; e < 4; ++e) {
      if (i + e < VOCAB) logits[(size_t)row * VOCAB + i + e] = value[e];
    }
  }
}
if (block == 0 && tid == 0) done[0] = 0;
