// One row times 4-bit weights that flow through a block's ring in shared memory, whatever is waited for meanwhile: one thread
// does nothing but ask for the next weights, of whichever multiplication, as soon as there is room for them, but for no more
// than FLIGHT chunks at a time.
//
// A tile is 16 outputs, a unit 256 inputs of it, 2304 bytes in the order of `pack_stream_int4`. A block has a run of whole
// tiles, its warps take units in turn and leave a sum of each in shared memory, where the sums of a tile are added by rising
// unit: bits follow from the shape alone. Groups of 32 inputs of the row are whole numbers of 15 bits with a scale each, as
// two planes of bytes, so that 8-bit products on the tensor cores take the nibbles as they are.
namespace specdec {

constexpr int UNIT_BYTES = 2304, UNIT_INPUTS = 256, CHUNK_BYTES = CHUNK_UNITS * UNIT_BYTES;
constexpr int PLANE = WIDEST + 32;       // so that the planes begin in different banks
constexpr int ZERO_BITS = 0x4b400000;    // 1.5 * 2^23: whole numbers below 2^22 added to its bits are
constexpr float ZERO = 12582912.0f;      // added to it

// What goes with 32 inputs.
struct Group {
  float scale;
  int zero;  // ZERO_BITS less 8 times the sum: takes the 8 out of every nibble
};

// A block's tiles of a multiplication; the logits layer is site 4. Gates and ups are tiles in turn.
struct Work {
  int first, tiles, steps;
  int start, further, round;  // a warp's first step, how far its next one is, and tiles whose sums there is room for

  template <int STEPS>
  DEVICE void divide() {
    steps = STEPS, start = threadIdx.x / 32 % STEPS, further = WARPS % STEPS, round = MOST_UNITS / (2 * STEPS) * 2;
  }

  DEVICE explicit Work(int site) {
    constexpr int counts[5] = {TILE_COUNTS}, lengths[5] = {STEP_COUNTS};
    const int all = site == 0 ? counts[0] : site == 1 ? counts[1] : site == 2 ? counts[2] : site == 3 ? counts[3] : counts[4];
    const int each = site == 2 ? 2 : 1;
    if (site == 1) {
      divide<lengths[1]>();
    } else if (site == 3) {
      divide<lengths[3]>();
    } else {
      divide<lengths[0]>();
    }
    first = all / each * int(blockIdx.x) / GRID * each;
    tiles = all / each * int(blockIdx.x + 1) / GRID * each - first;
  }
  DEVICE int units() const { return tiles * steps; }
  DEVICE int chunks() const { return (units() + CHUNK_UNITS - 1) / CHUNK_UNITS; }
};

DEVICE unsigned shared_address(const void* from) { return unsigned(__cvta_generic_to_shared(from)); }
DEVICE void init_counter(unsigned counter, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(counter), "r"(count) : "memory");
}
DEVICE void arrive(unsigned counter, int count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(counter), "r"(count) : "memory");
}
DEVICE void wait_for(unsigned counter, unsigned phase) {
  asm volatile(
      "{\n.reg .pred there;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n@!there bra AGAIN_%=;\n}"
      ::"r"(counter), "r"(phase)
      : "memory");
}
DEVICE bool has_come(unsigned counter, unsigned phase) {
  unsigned there;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(there)
               : "r"(counter), "r"(phase)
               : "memory");
  return there != 0;
}

// A chunk of the weights of a block, in the order of use: up to CHUNK_UNITS units of one matrix.
struct Cursor {
  const unsigned long long* address;
  int turns, number, unit, units;
  const char* from;

  // The first of `turns` tokens more than one.
  DEVICE Cursor(const unsigned long long* address_, int turns_) : address(address_), turns(turns_), number(-1) { open(); }
  DEVICE bool is_over() const { return turns < 0; }
  DEVICE int count() const { return units - unit < CHUNK_UNITS ? units - unit : CHUNK_UNITS; }
  DEVICE void next() {
    unit += CHUNK_UNITS, from += CHUNK_BYTES;
    if (unit >= units) open();
  }
  // Goes to the next matrix of which the block has any.
  DEVICE void open() {
    for (units = 0; units == 0;) {
      if (++number > 4 * LAYERS) number = 0, --turns;
      if (turns < 0) return;
      const int site = number == 4 * LAYERS ? 4 : number % 4;
      const Work work(site);
      from = reinterpret_cast<const char*>(address[site == 4 ? LAYERS * ENTRIES : number / 4 * ENTRIES + 4 + site]);
      from += (size_t)work.first * work.steps * UNIT_BYTES;
      unit = 0, units = work.units();
    }
  }
};

// Chunks follow each other through CHUNKS places.
struct Ring {
  const char* places;
  unsigned to, full, empty;  // shared addresses: of the places, of what counts a chunk's bytes, and the units used

  DEVICE Ring(const char* places_, const unsigned long long* counters)
      : places(places_), to(shared_address(places_)), full(shared_address(counters)), empty(full + 8 * CHUNKS) {}
  DEVICE void begin() const {
    const int tid = threadIdx.x;
    if (tid < 2 * CHUNKS) init_counter(full + 8 * tid, tid < CHUNKS ? 1 : CHUNK_UNITS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  DEVICE void wait_full(int chunk) const { wait_for(full + 8 * (chunk % CHUNKS), chunk / CHUNKS & 1); }

  // Asks for all chunks of `turns` tokens more than one, by one thread, until `over` is set. The block may not end before
  // what it asked for has come.
  DEVICE void feed(const unsigned long long* address, int turns, const volatile int* over) const {
    int chunk = 0;
#pragma unroll 1
    for (Cursor at(address, turns); !at.is_over(); at.next(), ++chunk) {
      const int place = chunk % CHUNKS, count = at.count();
      bool there;
      while (!(there = has_come(empty + 8 * place, ~(chunk / CHUNKS) & 1)) && !*over) {
      }
      if (!there) break;
      if (FLIGHT < CHUNKS && chunk >= FLIGHT) wait_full(chunk - FLIGHT);
      if (count < CHUNK_UNITS) arrive(empty + 8 * place, CHUNK_UNITS - count);
      const unsigned counter = full + 8 * place;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter), "r"(count * UNIT_BYTES) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to + place * CHUNK_BYTES),
                   "l"(at.from), "r"(count * UNIT_BYTES), "r"(counter)
                   : "memory");
    }
#pragma unroll 1
    for (int last = chunk > CHUNKS ? chunk - CHUNKS : 0; last < chunk; ++last) wait_full(last);
  }
};

// Puts four inputs of every thread where `multiply_unit` finds them; eight threads that follow each other have a group.
DEVICE void put_whole(unsigned char* planes, Group* groups, int i, const float (&v)[4], bool inside) {
  const Whole whole(v, 0);
  int sum = whole.sum;
#pragma unroll
  for (int mask = 1; mask < 8; mask *= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, mask);
  if (!inside) return;
  // Nibbles of four inputs lie in the order 0, 2, 1, 3.
  *reinterpret_cast<unsigned*>(planes + i) = __byte_perm(whole.high, 0, 0x3120);
  *reinterpret_cast<unsigned*>(planes + PLANE + i) = __byte_perm(whole.low, 0, 0x3120);
  if (i % 32 == 0) groups[i / 32] = Group{whole.scale, ZERO_BITS - 8 * sum};
}

DEVICE void multiply_bytes(int (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x0), "r"(x1));
}

// A unit by a warp: 16 sums to `to`. Columns 2 p and 2 p + 1 of a product are the upper and the lower bytes of groups 2 p and
// then, in other sums, 2 p + 1. Lane (g, q) holds of two groups the nibbles of outputs g and g + 8 and inputs 8 q .. 8 q + 7,
// 16 bytes, four times; then the scales of outputs g and g + 8 in groups 2 q and 2 q + 1.
DEVICE void multiply_unit(const char* held, int step, const unsigned char* planes, const Group* groups, float* to) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const unsigned char* mine = planes + (g & 1) * PLANE + step * UNIT_INPUTS + g / 2 * 64 + q * 8;
  const uint2 x0 = *reinterpret_cast<const uint2*>(mine), x1 = *reinterpret_cast<const uint2*>(mine + 32);
  const uint4 with = *reinterpret_cast<const uint4*>(groups + step * 8 + 2 * q);
  const uint2 scales = *reinterpret_cast<const uint2*>(held + 2048 + lane * 8);
  uint4 four[4];
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) four[pair] = *reinterpret_cast<const uint4*>(held + pair * 512 + lane * 16);
  int sum[2][4] = {};
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const bool is_mine = g / 2 == pair;
    const unsigned words[4] = {four[pair].x, four[pair].y, four[pair].z, four[pair].w};
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const unsigned low = words[2 * which], high = words[2 * which + 1];
      // The upper nibbles count 16 times; that is taken back where the sums are scaled.
      const unsigned w[4] = {low & 0x0f0f0f0fu, low & 0xf0f0f0f0u, high & 0x0f0f0f0fu, high & 0xf0f0f0f0u};
      const uint2& x = which ? x1 : x0;
      multiply_bytes(sum[which], w, is_mine ? x.x : 0u, is_mine ? x.y : 0u);
    }
  }
  const float2 upper = __half22float2(*reinterpret_cast<const __half2*>(&scales.x));
  const float2 lower = __half22float2(*reinterpret_cast<const __half2*>(&scales.y));
  float total[2] = {0, 0};
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const int(&s)[4] = sum[which];
    const float scale = __int_as_float(int(which ? with.z : with.x));
    const int zero = int(which ? with.w : with.y);
    const float a = __int_as_float(s[0] * 256 + s[1] + zero) - ZERO;
    const float b = __int_as_float((s[2] * 256 + s[3] >> 4) + zero) - ZERO;
    total[0] = fmaf(a, (which ? upper.y : upper.x) * scale, total[0]);
    total[1] = fmaf(b, (which ? lower.y : lower.x) * scale, total[1]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    if (q == 0) to[g + 8 * half] = total[half];
  }
}

// Numbers on their way from block to block, each with the number of the layer that they are of: whoever reads them waits
// until they have come, so there is no barrier. Two words, which are written together. Before a place is written again, all
// blocks have read it, since what comes after took something of all of them.
struct Exchange {
  unsigned* words;
  unsigned epoch;

  DEVICE void put(int place, unsigned value) const {
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(words + 2 * (size_t)place), "r"(value), "r"(epoch) : "memory");
  }
  DEVICE void put(int place, float value) const { put(place, bits_of(value)); }
  DEVICE uint4 look(int place) const {
    uint4 two;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(two.x), "=r"(two.y), "=r"(two.z), "=r"(two.w)
                 : "l"(words + 2 * (size_t)place)
                 : "memory");
    return two;
  }
  DEVICE bool is_here(const uint4& two) const { return two.y == epoch && two.w == epoch; }
  // Waits for two numbers that were looked for before.
  DEVICE uint2 take(uint4 two, int place) const {
    while (!is_here(two)) two = look(place);
    return uint2{two.x, two.z};
  }
  DEVICE float4 take4(int place) const {
    const uint4 first = look(place), second = look(place + 2);
    const uint2 a = take(first, place), b = take(second, place + 2);
    return float4{__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(b.x), __uint_as_float(b.y)};
  }
  // What all lanes are about to take is waited for by one of them at first, so that waiting is not what the memory does most.
  DEVICE void expect(int place) const {
    if (threadIdx.x % 32 == 0) take(look(place), place);
    WARP_BARRIER();
  }
};

// Four outputs of attention of several parts of the positions.
DEVICE float4 joined4(const Exchange& from, int output, int parts) {
  const int first = output / SIZE * parts * SLOT, d = output % SIZE;
  float most = MINUS_INFINITY, weight = 0;
#pragma unroll 1
  for (int part = 0; part < parts; ++part) most = fmaxf(most, from.take4(first + part * SLOT + SIZE).x);
  float4 mixed = {0, 0, 0, 0};
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    const float4 ends = from.take4(first + part * SLOT + SIZE), value = from.take4(first + part * SLOT + d);
    const float share = exponential(ends.x - most);
    mixed.x = fmaf(share, value.x, mixed.x), mixed.y = fmaf(share, value.y, mixed.y);
    mixed.z = fmaf(share, value.z, mixed.z), mixed.w = fmaf(share, value.w, mixed.w);
    weight = fmaf(share, ends.y, weight);
  }
  return float4{mixed.x / weight, mixed.y / weight, mixed.z / weight, mixed.w / weight};
}

// Multiplies by all tiles of the block: `put(tile, output, value)` is called by the lanes that have one, or, where gates and
// ups are in turn, `put(tile of the gate, output, gate, up, first)` by two lanes for each, the first of which `first`. `chunk` is the first one of the matrix, and then of the next.
template <bool PAIRED, class F>
DEVICE void multiply_flow(const Ring& ring, int& chunk, const Work& work, const unsigned char* planes, const Group* groups,
                          float* sums, F put) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = work.steps;
#pragma unroll 1
  for (int tile = 0; tile < work.tiles; tile += work.round) {
    const int from = tile * steps, tiles = work.tiles - tile < work.round ? work.tiles - tile : work.round, until = from + tiles * steps;
    int step = work.start;
    if (tile) BARRIER();
#pragma unroll 1
    for (int unit = from + warp; unit < until; unit += WARPS) {
      const int at = chunk + unit / CHUNK_UNITS, place = at % CHUNKS;
      ring.wait_full(at);
      multiply_unit(ring.places + place * CHUNK_BYTES + unit % CHUNK_UNITS * UNIT_BYTES, step, planes, groups, sums + (unit - from) * 16);
      WARP_BARRIER();
      if (lane == 0) arrive(ring.empty + 8 * place, 1);
      step += work.further;
      step -= step >= steps ? steps : 0;
    }
    BARRIER();
    const int output = lane % 16, side = lane / 16;
    if constexpr (PAIRED) {
      for (int pair = warp; pair < tiles / 2; pair += WARPS) {
        const float* own = sums + (size_t)(2 * pair + side) * steps * 16 + output;
        float total = 0;
#pragma unroll 8
        for (int s = 0; s < steps; ++s) total += own[s * 16];
        const float other = shuffle_xor(total, 16);
        put(work.first + tile + 2 * pair, output, side ? other : total, side ? total : other, side == 0);
      }
    } else {
      for (int one = warp; one < tiles; one += WARPS) {
        const float* own = sums + (size_t)one * steps * 16 + output;
        float total = 0;
#pragma unroll 8
        for (int s = side; s < steps; s += 2) total += own[s * 16];
        total += shuffle_xor(total, 16);
        if (side == 0) put(work.first + tile + one, output, total);
      }
    }
  }
  chunk += work.chunks();
}

}  // namespace specdec
