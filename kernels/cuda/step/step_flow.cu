// A whole step of one row in the view `int4` in one kernel, through which the weights flow without stopping: step_flow.cuh.
// Every block keeps the residual stream in shared memory and makes each row for itself, of what a multiplication has left
// whole. What goes from block to block says by itself that it has come, so a layer has no grid barrier. The scale of a norm
// is applied to products. While weights flow, whatever else is read from memory takes microseconds: so nothing of the loop may
// lie in local memory, and its code has to fit an instruction cache.
// table (LAYERS * ENTRIES + 5) addresses, cache (LAYERS, 2, KV_HEADS, capacity, SIZE), angles (., SIZE / 2, 2), take (not
// read), told (the state), sync, logits_out (1, VOCAB), choices_out (turns made, then the choice of each),
// which are written in place -> scratch, done
extern __shared__ uint4 shared_memory[];
const int tid = threadIdx.x, lane = tid % 32, block = blockIdx.x;
#include "step_begin"
float* partial = reinterpret_cast<float*>(state + STATE_WORDS);  // squares of a row, by warp
volatile int* over = reinterpret_cast<volatile int*>(partial + 32);
unsigned long long* counters = reinterpret_cast<unsigned long long*>(partial + 64);
Group* groups = reinterpret_cast<Group*>(counters + 2 * CHUNKS);
unsigned char* planes = reinterpret_cast<unsigned char*>(groups + WIDEST / 32);
float* stream = reinterpret_cast<float*>(planes + 2 * PLANE);
float *norms = stream + STREAM, *sums = norms + STREAM;
const Ring ring(reinterpret_cast<char*>(shared_memory) + RING_AT, counters);
ring.begin();
if (tid == 0) *over = 0;
__syncthreads();
// Four warps give their registers to the others.
if (tid >= THREADS) {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
  if (tid == THREADS) ring.feed(address, chooses ? state[STATE_AHEAD] : 0, over);
  return;
}
asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
#include "step_sites"
float* all_logits = scratch + AT_LOGITS;
unsigned* exchange = const_cast<unsigned*>(LAST(unsigned, 3));  // the number of layers so far; from FROM_QKV on what goes around
unsigned epoch = *reinterpret_cast<volatile unsigned*>(exchange);
auto at = [&](int place) { return Exchange{exchange + place, epoch}; };

constexpr int QUADS = (HIDDEN_WIDE / 4 + THREADS - 1) / THREADS, MOST_QUADS = (WIDEST / 4 + THREADS - 1) / THREADS;
// The residual stream and the weights of the next norm: each thread has its own places.
auto place_of_quad = [&](int j) { return (j * THREADS + tid) * 4; };
auto load_norm = [&](int layer, int site) {
  const float* from = weight_at(layer, site);
#pragma unroll
  for (int j = 0; j < QUADS; ++j) {
    if (place_of_quad(j) < HIDDEN) copy16(norms + place_of_quad(j), from + place_of_quad(j));
  }
  end_stage();
};
// Makes the row of a multiplication, a row that has a norm before its scale: gives that.
auto make = [&](int site, const Exchange& from, bool takes, int parts) {
  const bool normed = site % 2 == 0;
  const int width = site == 1 ? MIXED : site == 3 ? (INNER + 15) / 16 * 16 : HIDDEN;
  const int wide = site == 1 ? MIXED_WIDE : site == 3 ? INNER_WIDE : HIDDEN_WIDE;
  auto place = [&](int i) { return site == 1 ? i / SIZE * parts * PART_WORDS + i % SIZE / 2 : i / 2; };
  auto inside = [&](int i) { return i < width ? i : 0; };
  uint4 found[MOST_QUADS] = {};
  if (takes) {
    from.expect(place(inside(tid / 32 * 128)));
#pragma unroll
    for (int j = 0; j < MOST_QUADS; ++j) {
      if (j * THREADS * 4 < wide && (site != 1 || parts == 1)) found[j] = from.look(place(inside(place_of_quad(j))));
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  float square = 0;
#pragma unroll 1
  for (int i = tid * 4; i - tid * 4 < wide; i += THREADS * 4) {
    float v[4] = {0, 0, 0, 0};
    if (takes && i < width) {
      if (site == 1 && parts > 1) {
        join_parts(from, i, parts, v);
      } else {
        widen(from.take(found[0], place(i)), v);
      }
    }
    if (normed && i < HIDDEN) {
      float4 x = *reinterpret_cast<const float4*>(stream + i);
      x.x += v[0], x.y += v[1], x.z += v[2], x.w += v[3];
      *reinterpret_cast<float4*>(stream + i) = x;
      square += four_squares(x);
      const float4 w = *reinterpret_cast<const float4*>(norms + i);
      v[0] = x.x * w.x, v[1] = x.y * w.y, v[2] = x.z * w.z, v[3] = x.w * w.w;
    }
    put_whole(planes, groups, i, v, i < wide);
#pragma unroll
    for (int j = 1; j < MOST_QUADS; ++j) found[j - 1] = found[j];
  }
  if (normed) {
    square = lane_sum(square);
    if (lane == 0) partial[tid / 32] = square;
  }
  BARRIER();
  return normed ? rms_scale(lane_sum(lane < WARPS ? partial[lane] : 0.0f), HIDDEN, EPSILON) : 1.0f;
};

// Attention: an item is a head and every `parts`-th span of positions. A warp takes EACH_WARP positions of a span, a lane four
// dimensions of them.
constexpr int GROUP = HEADS / KV_HEADS;
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
    const uint2 halves = at(FROM_QKV).take(at(FROM_QKV).look(column / 2), column / 2);
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&halves.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&halves.y));
    four = float4{low.x, low.y, high.x, high.y};
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
    attended.put_pair(item * 2 * PART_WORDS + tid, mixed / weight, tid < SIZE);
    if (tid < 2) attended.put(item * PART_WORDS + SIZE / 2 + tid, bits_of(tid ? weight : most));
  }
};

int chunk = 0;
#pragma unroll 1
for (;; ++token_turn) {
const int spans = position / SPAN + 1, parts = spans < MOST_PARTS ? spans : MOST_PARTS;
for (int i = tid; i < HIDDEN; i += THREADS) stream[i] = embedded(LAST(weight_t, 2), state[2], i);
BARRIER();
load_norm(0, 0);
#pragma unroll 1
for (int number = 0;; ++number) {
  const int layer = number / 4, site = number % 4;
  const bool head = layer == LAYERS;
  const int from = site == 1 ? FROM_ATTENDED : site == 2 ? FROM_OUT : site == 3 ? FROM_INNER : FROM_DOWN;
  const float scale = make(site, at(from), number > 0, parts);
  if (site == 0) ++epoch;
  if (site % 2 == 0 && !head) load_norm(site ? layer + 1 : layer, site ? 0 : 2);
  if (site == 2) {
    const Exchange inner = at(FROM_INNER);
    multiply_flow<true>(ring, chunk, Work(2), planes, groups, sums, [&](int tile, int output, float gate, float up, bool first) {
      inner.put_pair(tile * 8 + output, silu(gate * scale) * (up * scale), first);
    });
  } else {
    if (site == 0 && block < HEADS * parts && !head) look_at_span(layer, block / parts, block % parts);
    const Exchange to = at(site == 0 ? FROM_QKV : site == 1 ? FROM_OUT : FROM_DOWN);
    multiply_flow<false>(ring, chunk, Work(head ? 4 : site), planes, groups, sums, [&](int tile, int output, float value, bool first) {
      if (head) {
        if (first) all_logits[tile * 16 + output] = value * scale;
      } else {
        to.put_pair(tile * 16 + output, value * scale, first);
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
float* margin = reinterpret_cast<float*>(chosen + 1);
choose_rows(1, found, chosen, choices + token_turn * CHOICE_WORDS, margin);
if (!goes_on(state, 1, token_turn, chosen, margin)) break;
++position;
}
if (tid == 0) *over = 1;
if (block == 0 && tid == 0) *exchange = epoch, done[0] = 0, choices[-CHOICE_WORDS] = __int_as_float(token_turn + 1);
