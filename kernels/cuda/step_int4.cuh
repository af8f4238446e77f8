// One row times a share of a matrix of 4-bit weights, for a step in one kernel; arithmetic and packing of int4.cu. The
// activation lies in shared memory; inputs whose activation is 0 are not read.
namespace specdec {

// A unit is 128 x 32 weights, 2048 bytes; four of them share 1024 bytes of scales. They go through a ring for each warp,
// STAGES units and twice the scales, filled as soon as the matrix before is done: the memory works on while the blocks wait for
// each other. What is asked for before the activation is known is asked for whole.
constexpr int STAGE_BYTES = 2048, RING_BYTES = STAGES * STAGE_BYTES + 2048;

// (value & mask) | bits in one instruction: two constants are one too many for the compiler to see that.
DEVICE unsigned and_or(unsigned value, unsigned mask, unsigned bits) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
  return result;
}

DEVICE void issue(const Shares& share, const void* levels, const void* scales, const __half* activation, char* ring,
                  int stage) {
  const int lane = threadIdx.x % 32, unit = share.begin + stage;
  char* own = ring + share.warp * RING_BYTES;
  if (unit < share.end) {
    const char* from = reinterpret_cast<const char*>(levels) + (size_t)unit * STAGE_BYTES + lane * 16;
    char* to = own + stage % STAGES * STAGE_BYTES + lane % 4 * 16;
    const __half* x = activation ? activation + unit % share.m.steps * 32 : nullptr;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i * 8 + lane / 4;
      const bool taken = !x || (reinterpret_cast<const unsigned short*>(x)[row] & 0x7fff);
      if (taken) copy16(to + (row * 64 ^ (i & 1) * 64), from + i * 512);  // odd eights swapped: fewer conflicts below
    }
    if (unit % 4 == 0 || stage == 0) {
      const char* scale = reinterpret_cast<const char*>(scales) + (size_t)(unit / 4) * 1024 + lane * 16;
      char* place = own + STAGES * STAGE_BYTES + (unit / 4 & 1) * 1024;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = j * 4 + lane / 8;  // the outputs g and g + 8 of every tile of 16
        copy16(place + row * 128 + (lane % 8 ^ row) * 16, scale + j * 512);
      }
    }
  }
  end_stage();
}

DEVICE void fill(const Matrix& m, const void* levels, const void* scales, char* ring) {
  const Shares share(m, threadIdx.x / 32);
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) issue(share, levels, scales, nullptr, ring, stage);
}

DEVICE void multiply_draft(const Matrix& m, const void* levels, const void* scales, const __half* activation, const unsigned char*,
                           float* parts, char* room, char* ring) {
  float* meeting = reinterpret_cast<float*>(room);
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  const char* own = ring + share.warp * RING_BYTES;
  int tile = share.begin / m.steps, step = share.begin % m.steps;
  float total[8][2] = {}, sum[8][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, meeting);
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float both = total[t][half] + shuffle_xor(total[t][half], 1);
        if (q == 0) to[t * 16 + half * 8 + g] = both;
        total[t][half] = 0;
      }
    }
  };

  for (int stage = 0; share.begin + stage < share.end; ++stage) {
    const int unit = share.begin + stage, group = unit % 4;
    const uint4 x = *reinterpret_cast<const uint4*>(activation + step * 32 + q * 8);
    const unsigned pairs[4] = {x.x, x.y, x.z, x.w};
    const char* from = own + stage % STAGES * STAGE_BYTES + g * 8;
    wait_stage();
    WARP_BARRIER();
    uint2 held[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      held[e] = *reinterpret_cast<const uint2*>(from + ((q * 8 + e) * 64 ^ (q & 1) * 64));
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const unsigned x0 = g == group ? pairs[2 * j] : 0u, x1 = g == group ? pairs[2 * j + 1] : 0u;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        // Sixteen bits of each of two inputs side by side: see int4.cu.
        const int e = 4 * j;
        const unsigned select = word % 2 ? 0x7632u : 0x5410u;
        const unsigned low = word < 2 ? __byte_perm(held[e].x, held[e + 1].x, select)
                                      : __byte_perm(held[e].y, held[e + 1].y, select);
        const unsigned high = word < 2 ? __byte_perm(held[e + 2].x, held[e + 3].x, select)
                                       : __byte_perm(held[e + 2].y, held[e + 3].y, select);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // A nibble is a float16 once the exponent of 1024 is put in front of it; one of the upper four bits of a byte
          // counts 16 times, which the same instruction undoes that takes 1032 (64 + 8) away.
          const unsigned pair[2] = {half ? low >> 8 : low, half ? high >> 8 : high};
          unsigned a[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const unsigned bits = and_or(pair[r / 2], r % 2 ? 0x00f000f0u : 0x000f000fu, 0x64006400u);
            const __half2 raw = *reinterpret_cast<const __half2*>(&bits);
            const __half2 value = r % 2 ? __hfma2(raw, __float2half2_rn(0.0625f), __float2half2_rn(-72.0f))
                                        : __hsub2(raw, __float2half2_rn(1032.0f));
            a[r] = *reinterpret_cast<const unsigned*>(&value);
          }
          multiply_tile(sum[word * 2 + half], a, x0, x1, __half());
        }
      }
    }
    if (group == 3 || unit + 1 == share.end) {
      // Columns 2 q and 2 q + 1 are groups that share scales where they are below 4; those of other warps are 0.
      const char* scale = own + STAGES * STAGE_BYTES + (unit / 4 & 1) * 1024 + g * 128;
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        const uint4 four = *reinterpret_cast<const uint4*>(scale + (t ^ g) * 16);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned bits = half ? (q ? four.w : four.z) : (q ? four.y : four.x);
          const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&bits));
          total[t][half] = fmaf(pair.x, q < 2 ? sum[t][2 * half] : 0.0f, total[t][half]);
          total[t][half] = fmaf(pair.y, q < 2 ? sum[t][2 * half + 1] : 0.0f, total[t][half]);
          sum[t][2 * half] = 0, sum[t][2 * half + 1] = 0;
        }
      }
    }
    WARP_BARRIER();
    issue(share, levels, scales, activation, ring, stage + STAGES);
    if (++step == m.steps) {
      flush();
      ++tile, step = 0;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(meeting, parts, 1);
}

}  // namespace specdec
