// A whole step of one row in the view `int4` in one kernel, through which the weights flow without stopping: step_flow.cuh.
// Every block keeps the residual stream in its registers and makes each row for itself, of what a multiplication has left
// whole. What goes from block to block says by itself that it has come, so a layer has no grid barrier. The scale of a norm
// is applied to products.
// table (LAYERS * ENTRIES + 5) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2), take (not
// read), told (the state), sync, logits_out (1, VOCAB), choices_out (turns made, then the choice of each),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, lane = tid % 32, block = blockIdx.x;
#include "step_begin"
float* partial = reinterpret_cast<float*>(state + STATE_WORDS);
volatile int* over = reinterpret_cast<volatile int*>(partial + 32);
unsigned long long* counters = reinterpret_cast<unsigned long long*>(partial + 64);
Group* groups = reinterpret_cast<Group*>(counters + 2 * CHUNKS);
unsigned char* planes = reinterpret_cast<unsigned char*>(groups + WIDEST / 32);
float* sums = reinterpret_cast<float*>(planes + 2 * PLANE);
const Ring ring(reinterpret_cast<char*>(shared_memory) + RING_AT, counters);
ring.begin();
if (tid == 0) *over = 0;
__syncthreads();
if (tid >= THREADS) {
  if (tid == THREADS) ring.feed(address, chooses ? state[STATE_AHEAD] : 0, over);
  return;
}
#include "step_sites"
float* all_logits = scratch + AT_LOGITS;
unsigned* exchange = const_cast<unsigned*>(LAST(unsigned, 3));  // the number of layers so far; from FROM_QKV on what goes around
unsigned epoch = *reinterpret_cast<volatile unsigned*>(exchange);
auto at = [&](int place) { return Exchange{exchange + place, epoch}; };

constexpr int QUADS = (HIDDEN_WIDE / 4 + THREADS - 1) / THREADS, INNER_QUADS = (INNER_WIDE / 4 + THREADS - 1) / THREADS;
constexpr int MIXED_QUADS = (MIXED_WIDE / 4 + THREADS - 1) / THREADS;
float4 x[QUADS], norm[QUADS];  // of the residual stream and of the next norm, the inputs of this thread
auto place_of_quad = [&](int j) { return (j * THREADS + tid) * 4; };
auto load_norm = [&](int layer, int site) {
  const float* from = weight_at(layer, site);
#pragma unroll
  for (int j = 0; j < QUADS; ++j) {
    norm[j] = place_of_quad(j) < HIDDEN ? *reinterpret_cast<const float4*>(from + place_of_quad(j)) : float4{0, 0, 0, 0};
  }
};
auto put = [&](int i, const float4& value, int wide) {
  const float v[4] = {value.x, value.y, value.z, value.w};
  put_whole(planes, groups, i, v, i < wide);
};
// Takes the numbers of this thread of a row of `width`: all are looked for before any is waited for.
auto take_quads = [&](const Exchange& from, int width, auto& to) {
  constexpr int COUNT = sizeof(to) / sizeof(to[0]);
  from.expect(tid / 32 * 128 < width ? tid / 32 * 128 : 0);
  uint4 found[COUNT][2];
#pragma unroll
  for (int j = 0; j < COUNT; ++j) {
    const int i = place_of_quad(j) < width ? place_of_quad(j) : 0;
    found[j][0] = from.look(i), found[j][1] = from.look(i + 2);
  }
#pragma unroll
  for (int j = 0; j < COUNT; ++j) {
    const bool inside = place_of_quad(j) < width;
    const int i = inside ? place_of_quad(j) : 0;
    const uint2 a = from.take(found[j][0], i), b = from.take(found[j][1], i + 2);
    to[j] = inside ? float4{__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(b.x), __uint_as_float(b.y)} : float4{0, 0, 0, 0};
  }
};
// Makes the row of a multiplication that has a norm, before its scale: gives that. What was returned, if anything, is added to
// the residual stream.
auto make_normed = [&](bool adds, const Exchange& returned) {
  if (adds) {
    float4 more[QUADS];
    take_quads(returned, HIDDEN, more);
#pragma unroll
    for (int j = 0; j < QUADS; ++j) add(x[j], more[j]);
  }
  float square = 0;
#pragma unroll
  for (int j = 0; j < QUADS; ++j) {
    square += four_squares(x[j]);
    const float4 &a = x[j], &b = norm[j];
    put(place_of_quad(j), float4{a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}, HIDDEN_WIDE);
  }
  square = lane_sum(square);
  if (lane == 0) partial[tid / 32] = square;
  BARRIER();
  return rms_scale(lane_sum(lane < WARPS ? partial[lane] : 0.0f), HIDDEN, EPSILON);
};
auto make_mixed = [&](int parts, const Exchange& attended) {
  float4 value[MIXED_QUADS];
  if (parts == 1) {
    take_quads(attended, MIXED, value);
  } else {
#pragma unroll
    for (int j = 0; j < MIXED_QUADS; ++j) {
      value[j] = place_of_quad(j) < MIXED ? joined4(attended, place_of_quad(j), parts) : float4{0, 0, 0, 0};
    }
  }
#pragma unroll
  for (int j = 0; j < MIXED_QUADS; ++j) put(place_of_quad(j), value[j], MIXED_WIDE);
  BARRIER();
};
// Two numbers of 16 bits go around together.
auto make_inner = [&](const Exchange& inner) {
  constexpr int MADE = (INNER + 15) / 16 * 16;
  inner.expect(tid / 32 * 128 < MADE ? tid / 32 * 64 : 0);
  uint4 found[INNER_QUADS];
#pragma unroll
  for (int j = 0; j < INNER_QUADS; ++j) found[j] = inner.look(place_of_quad(j) < MADE ? place_of_quad(j) / 2 : 0);
#pragma unroll 1
  for (int i = tid * 4; i < INNER_QUADS * THREADS * 4; i += THREADS * 4) {
    float v[4];
    widen(inner.take(found[0], i < MADE ? i / 2 : 0), v);
    put(i, i < MADE ? float4{v[0], v[1], v[2], v[3]} : float4{0, 0, 0, 0}, INNER_WIDE);
#pragma unroll
    for (int j = 1; j < INNER_QUADS; ++j) found[j - 1] = found[j];
  }
  BARRIER();
};

// Attention: an item is a head and every `parts`-th span of positions. A warp takes EACH_WARP positions of a span, a lane four
// dimensions of them.
constexpr int GROUP = HEADS / KV_HEADS, MOST_PARTS = GRID / HEADS > 1 ? GRID / HEADS : 1;
float* sides = sums;                   // (WARPS, SIZE)
float* mosts = sides + WARPS * SIZE;   // (WARPS,)
float* weights = mosts + WARPS;
float* query = weights + WARPS;        // (SIZE,)
half_t *new_key = reinterpret_cast<half_t*>(query + SIZE), *new_value = new_key + SIZE;
half_t* history = const_cast<half_t*>(cache);
auto keys_of = [&](int layer, int head) { return history + ((size_t)layer * 2 * KV_HEADS + head / GROUP) * capacity * SIZE; };
// Asks for keys and values that will be read when the query is there.
auto look_at_span = [&](int layer, int head, int span) {
  constexpr int LINES = SIZE / 64 < 1 ? 1 : SIZE / 64;  // of 128 bytes
  if (head % GROUP) return;  // another block asks for them
#pragma unroll 1
  for (int at = tid; at < 2 * SPAN * LINES; at += THREADS) {
    const int place = span * SPAN + at / 2 / LINES;
    if (place < position) ahead(keys_of(layer, head) + ((size_t)(at % 2 * KV_HEADS) * capacity + place) * SIZE + at / 2 % LINES * 64);
  }
};
auto load_span = [&](int layer, int head, int span, uint2 (&k)[EACH_WARP], uint2 (&v)[EACH_WARP]) {
  const half_t* keys = keys_of(layer, head) + lane * 4;
  const half_t* values = keys + (size_t)KV_HEADS * capacity * SIZE;
  const int first = span * SPAN + tid / 32 * EACH_WARP;
#pragma unroll
  for (int a = 0; a < EACH_WARP; ++a) {
    const bool past = first + a < position && lane * 4 < SIZE;
    k[a] = past ? *reinterpret_cast<const uint2*>(keys + (size_t)(first + a) * SIZE) : uint2{0, 0};
    v[a] = past ? *reinterpret_cast<const uint2*>(values + (size_t)(first + a) * SIZE) : uint2{0, 0};
  }
};
// Makes the query, the new key and the new value of a head, a warp each.
auto make_vector = [&](int layer, int head) {
  const int kind = tid / 32, d = lane * 4;
  if (kind >= 3) return;
  const int column = (kind == 0 ? head * SIZE : (kind == 1 ? KEYS_AT : VALUES_AT) + head / GROUP * SIZE) + d;
  float4 four = {0, 0, 0, 0};
  float2 angle[4] = {};
  if (d < SIZE) {
    four = at(FROM_QKV).take4(column);
    const float* turns = angles + ((size_t)position * (SIZE / 2) + d % (SIZE / 2)) * 2;
#pragma unroll
    for (int e = 0; e < 4; ++e) angle[e] = *reinterpret_cast<const float2*>(turns + 2 * e);
#if BIAS
    add(four, *reinterpret_cast<const float4*>(POINTER(float, layer, 2) + column));
#endif
  }
  float to[4] = {four.x, four.y, four.z, four.w};
#if QK_NORM
  if (kind < 2) {
    const float scale = rms_scale(lane_sum(four_squares(four)), SIZE, EPSILON);
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = d < SIZE ? to[e] * scale * POINTER(float, layer, 3)[kind * SIZE + d + e] : 0.0f;
  }
#endif
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float other = __shfl_sync(EVERY_LANE, to[e], d < SIZE / 2 ? lane + SIZE / 8 : d < SIZE ? lane - SIZE / 8 : lane);
    const float turned = fmaf(to[e], angle[e].x, (d < SIZE / 2 ? -other : other) * angle[e].y);
    to[e] = kind == 2 ? to[e] : kind == 1 ? turned : turned * SCALE;
  }
  if (d >= SIZE) return;
  if (kind == 0) {
    *reinterpret_cast<float4*>(query + d) = float4{to[0], to[1], to[2], to[3]};
  } else {
    half_t* into = kind == 1 ? new_key : new_value;
#pragma unroll
    for (int e = 0; e < 4; ++e) into[d + e] = to_half(to[e]);
    if (head % GROUP == 0) {
      half_t* to_cache = keys_of(layer, head) + ((size_t)(kind - 1) * KV_HEADS * capacity + position) * SIZE + d;
      *reinterpret_cast<uint2*>(to_cache) = *reinterpret_cast<const uint2*>(into + d);
    }
  }
};
auto attend_flow = [&](int layer, int parts) {
  const int used = position / SPAN + 1, window = int(address[layer * ENTRIES + 16]), warp = tid / 32;
  const Exchange attended = at(FROM_ATTENDED);
  BARRIER();  // the sums of the multiplication have been read
#pragma unroll 1
  for (int item = block; item < HEADS * parts; item += GRID) {
    const int head = item / parts;
    float most = MINUS_INFINITY, weight = 0, mixed = 0;
#pragma unroll 1
    for (int span = item % parts; span < used; span += parts) {
      uint2 k[EACH_WARP], v[EACH_WARP];
      load_span(layer, head, span, k, v);
      if (span < parts) make_vector(layer, head);
      BARRIER();  // what was left of a span before has been read
      const int first = span * SPAN + warp * EACH_WARP, at = first + lane / SHARING;
      float q[4] = {0, 0, 0, 0};
      if (lane * 4 < SIZE) {
#pragma unroll
        for (int e = 0; e < 4; ++e) q[e] = query[lane * 4 + e];
        if (position >= first && position < first + EACH_WARP) {
#pragma unroll
          for (int a = 0; a < EACH_WARP; ++a) {
            if (first + a != position) continue;
            k[a] = *reinterpret_cast<const uint2*>(new_key + lane * 4);
            v[a] = *reinterpret_cast<const uint2*>(new_value + lane * 4);
          }
        }
      }
      float side[4], largest, sum;
      weigh(k, v, q, at <= position && at > position - window, side, largest, sum);
      if (lane * 4 < SIZE) *reinterpret_cast<float4*>(sides + warp * SIZE + lane * 4) = float4{side[0], side[1], side[2], side[3]};
      if (lane == 0) mosts[warp] = largest, weights[warp] = sum;
      BARRIER();
      if (tid < SIZE) {
        float span_most, span_mixed, span_weight;
        join(mosts, weights, sides + tid, span_most, span_mixed, span_weight);
        const float larger = fmaxf(most, span_most);
        const float before = most == MINUS_INFINITY ? 0.0f : exponential(most - larger);
        const float now = span_most == MINUS_INFINITY ? 0.0f : exponential(span_most - larger);
        mixed = mixed * before + span_mixed * now, weight = weight * before + span_weight * now, most = larger;
      }
    }
    if (tid < SIZE) {
      attended.put(parts == 1 ? head * SIZE + tid : item * SLOT + tid, parts == 1 ? mixed / weight : mixed);
      if (parts > 1 && tid < 4) attended.put(item * SLOT + SIZE + tid, tid == 0 ? most : tid == 1 ? weight : 0.0f);
    }
  }
};

int chunk = 0;
#pragma unroll 1
for (;; ++token_turn) {
const int spans = position / SPAN + 1, parts = spans < MOST_PARTS ? spans : MOST_PARTS;
#pragma unroll
for (int j = 0; j < QUADS; ++j) {
  auto input = [&](int e) { return place_of_quad(j) < HIDDEN ? embedded(LAST(weight_t, 2), state[2], place_of_quad(j) + e) : 0.0f; };
  x[j] = float4{input(0), input(1), input(2), input(3)};
}
load_norm(0, 0);
#pragma unroll 1
for (int number = 0;; ++number) {
  const int layer = number / 4, site = number % 4;
  const bool head = layer == LAYERS;
  float scale = 1.0f;
  if (site == 1) {
    make_mixed(parts, at(FROM_ATTENDED));
  } else if (site == 3) {
    make_inner(at(FROM_INNER));
  } else {
    scale = make_normed(number > 0, site == 2 ? at(FROM_OUT) : at(FROM_DOWN));
  }
  if (site == 0) ++epoch;
  if (site == 2) {
    load_norm(layer + 1, 0);
    const Exchange inner = at(FROM_INNER);
    multiply_flow<true>(ring, chunk, Work(2), planes, groups, sums, [&](int tile, int output, float gate, float up, bool first) {
      const float own = silu(gate * scale) * (up * scale), other = shuffle_xor(own, 1);
      const half_t two[2] = {to_half(own), to_half(other)};
      if (first && output % 2 == 0) inner.put(tile * 4 + output / 2, *reinterpret_cast<const unsigned*>(two));
    });
  } else {
    if (site == 0 && !head) {
      load_norm(layer, 2);
      if (block < HEADS * parts) look_at_span(layer, block / parts, block % parts);
    }
    const Exchange to = at(site == 0 ? FROM_QKV : site == 1 ? FROM_OUT : FROM_DOWN);
    multiply_flow<false>(ring, chunk, Work(head ? 4 : site), planes, groups, sums, [&](int tile, int output, float value) {
      if (head) {
        all_logits[tile * 16 + output] = value * scale;
      } else {
        to.put(tile * 16 + output, value * scale);
      }
    });
  }
  if (head) break;
  if (site == 0) {
    attend_flow(layer, parts);
  }
}
grid_barrier.wait();
float* found = chooses ? scratch + AT_CHOICES : nullptr;
look_at_row(0, [&](int, int i) { return load_float4(all_logits + i); }, shows_logits ? logits : nullptr, found, nullptr, sums);
if (!chooses) break;
grid_barrier.wait();
if (!choose_and_go_on(state, 1, 1, token_turn, found, chosen, choices, reinterpret_cast<float*>(chosen + 1))) break;
++position;
}
if (tid == 0) *over = 1;
if (block == 0 && tid == 0) *exchange = epoch, done[0] = 0, choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
