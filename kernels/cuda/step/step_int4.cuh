// One row times a share of a matrix of 4-bit weights, for a step in one kernel; packing of int4.cu. Groups of 32 inputs of
// the activation are whole numbers of 15 bits with a scale each, in shared memory as two planes of bytes, so that a product
// of 8-bit numbers on the tensor cores takes the nibbles as they are: sums are exact, and unpacking costs two
// instructions for 8 weights. Inputs that are not taken are not read.
namespace specdec {

// A unit is 128 x 32 weights, 2048 bytes; four of them share 1024 bytes of scales. They go through a ring for each warp,
// STAGES units and twice the scales, filled as soon as the matrix before is done: the memory works on while the blocks
// wait for each other. What is asked for before the activation is known is asked for whole.
constexpr int STAGE_BYTES = 2048, RING_BYTES = STAGES * STAGE_BYTES + 2048;
static_assert(8 * 32 * Whole::LARGEST < 1 << 22);
constexpr int ZERO_BITS = 0x4b400000;                    // 1.5 * 2^23: whole numbers below 2^22 added to its bits are
constexpr float ZERO = 12582912.0f;                      // added to it

// What goes with 32 inputs.
struct Group {
  float scale;
  int zero;        // ZERO_BITS less 8 times the sum: takes the 8 out of every nibble
  unsigned taken;  // a bit for each input
  int unused;
};

// Puts four inputs of every thread where `multiply_draft` finds them; eight threads that follow each other have a group.
DEVICE void put_whole(unsigned char* planes, Group* groups, int i, const float (&v)[4], bool inside) {
  const Whole whole(v, i % 32 / 4);
  int sum = whole.sum;
#pragma unroll
  for (int mask = 1; mask < 8; mask *= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, mask);
  const unsigned taken = whole.all_taken();
  if (!inside) return;
  *reinterpret_cast<unsigned*>(planes + i) = whole.high;
  *reinterpret_cast<unsigned*>(planes + WIDEST + i) = whole.low;
  if (i % 32 == 0) groups[i / 32] = Group{whole.scale, ZERO_BITS - 8 * sum, taken, 0};
}

DEVICE void issue(const Shares& share, const void* levels, const void* scales, unsigned taken, char* ring, int stage) {
  const int lane = threadIdx.x % 32, unit = share.begin + stage;
  char* own = ring + share.warp * RING_BYTES;
  if (unit < share.end) {
    const char* from = reinterpret_cast<const char*>(levels) + (size_t)unit * STAGE_BYTES + lane * 16;
    // Bits 5 and 6 of a place are turned by the fours of inputs, so that lanes below read from different banks.
    char* to = own + stage % STAGES * STAGE_BYTES;
    const int place = lane * 16 ^ lane / 16 * 64;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (taken >> (i * 8 + lane / 4) & 1) copy16(to + i * 512 + (place ^ (i & 1) * 32), from + i * 512);
    }
    if (unit % 4 == 0 || stage == 0) {
      const char* scale = reinterpret_cast<const char*>(scales) + (size_t)(unit / 4) * 1024 + lane * 16;
      char* there = own + STAGES * STAGE_BYTES + (unit / 4 & 1) * 1024 + lane * 16;
      copy16(there, scale);
      copy16(there + 512, scale + 512);
    }
  }
  end_stage();
}

DEVICE void fill(const Matrix& m, const void* levels, const void* scales, char* ring) {
  const Shares share(m, threadIdx.x / 32);
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) issue(share, levels, scales, EVERY_LANE, ring, stage);
}

DEVICE void multiply_bytes(int (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x0), "r"(x1));
}

DEVICE void multiply_draft(const Matrix& m, const void* levels, const void* scales, const unsigned char* planes,
                           const Group* groups, float* parts, char* room, char* ring) {
  float* exchange = reinterpret_cast<float*>(room);
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  const char* own = ring + share.warp * RING_BYTES;
  int tile = share.begin / m.steps, step = share.begin % m.steps, ahead_step = (step + STAGES) % m.steps;
  float total[8][2] = {};
  int sum[8][4] = {};
  const int even = q * 256 + (g * 8 ^ q / 2 * 32) + q % 2 * 64, odd = even ^ 64;
  const unsigned* words = reinterpret_cast<const unsigned*>(planes + g % 2 * WIDEST) + q;

  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float all = total[t][half] + shuffle_xor(total[t][half], 1);
        all += shuffle_xor(all, 2);
        if (q == 0) to[t * 16 + half * 8 + g] = all;
        total[t][half] = 0;
      }
    }
  };

  int lowest = step % 4;
#pragma unroll 1
  for (int stage = 0; share.begin + stage < share.end; ++stage) {
    const int group = step % 4;
    // Columns 2 q and 2 q + 1 of a product are the upper and the lower bytes of group q of four.
    const bool mine = g / 2 == group;
    const unsigned x0 = mine ? words[step * 8] : 0u, x1 = mine ? words[step * 8 + 4] : 0u;
    const char* from = own + stage % STAGES * STAGE_BYTES;
    wait_stage();
    WARP_BARRIER();
    uint2 held[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      held[e] = *reinterpret_cast<const uint2*>(from + (e % 2 ? odd : even) + e % 4 / 2 * 128 + e / 4 * 1024);
    }
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      unsigned low[4], high[4];
      if (word == 0) {
        turn_bytes(held[0].x, held[1].x, held[2].x, held[3].x, low);
        turn_bytes(held[4].x, held[5].x, held[6].x, held[7].x, high);
      } else {
        turn_bytes(held[0].y, held[1].y, held[2].y, held[3].y, low);
        turn_bytes(held[4].y, held[5].y, held[6].y, held[7].y, high);
      }
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        // The upper nibbles count 16 times; that is taken back where the sums are scaled.
        const unsigned w[4] = {low[b] & 0x0f0f0f0fu, low[b] & 0xf0f0f0f0u, high[b] & 0x0f0f0f0fu, high[b] & 0xf0f0f0f0u};
        multiply_bytes(sum[word * 4 + b], w, x0, x1);
      }
    }
    const bool last = share.begin + stage + 1 == share.end;
    if (group == 3 || last) {
      const bool inside = q >= lowest && q <= group;
      const Group with = groups[step - group + q];
      const float scale = inside ? with.scale : 0.0f;
      const int zero = inside ? with.zero : ZERO_BITS;
      const char* place = own + STAGES * STAGE_BYTES + ((share.begin + stage) / 4 & 1) * 1024 + lane * 16;
#pragma unroll
      for (int t = 0; t < 8; t += 4) {
        const uint4 sixteen = *reinterpret_cast<const uint4*>(place + t / 4 * 512);
        const unsigned bits[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&bits[j]));
          int(&s)[4] = sum[t + j];
          const float upper = __int_as_float(s[0] * 256 + (s[1] + zero)) - ZERO;
          const float lower = __int_as_float((s[2] * 256 + s[3] >> 4) + zero) - ZERO;
          total[t + j][0] = fmaf(upper, pair.x * scale, total[t + j][0]);
          total[t + j][1] = fmaf(lower, pair.y * scale, total[t + j][1]);
          s[0] = 0, s[1] = 0, s[2] = 0, s[3] = 0;
        }
      }
      lowest = 0;
    }
    WARP_BARRIER();
    issue(share, levels, scales, TIERS && !last ? groups[ahead_step].taken : EVERY_LANE, ring, stage + STAGES);
    if (++ahead_step == m.steps) ahead_step = 0;
    if (++step == m.steps) {
      flush();
      ++tile, step = 0;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, 1);
}

}  // namespace specdec
