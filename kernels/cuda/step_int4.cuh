// One row times a share of a matrix of 4-bit weights, for a step in one kernel; arithmetic and packing of int4.cu. The
// activation lies in shared memory; inputs whose activation is 0 are not read.
namespace specdec {

template <int OUTPUTS, int PADDED>
using Draft = Matrix<(OUTPUTS + 127) / 128, PADDED / 128, 128>;
constexpr int INT4_BYTES = 8192, SCALE_BYTES = 1024;  // of a unit: 128 x 128 weights

template <class M>
DEVICE void multiply_draft(const void* levels, const void* scales, const __half* activation, const unsigned char*,
                           float* parts, float* meeting, float*) {
  constexpr int STEPS = M::STEPS, together = GROUPS_AHEAD;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares<M> share(threadIdx.x / 32);
  int tile = share.begin / STEPS, step = share.begin % STEPS;
  float total[8][2] = {};

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

  for (int unit = share.begin; unit < share.end; ++unit) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(levels) + (size_t)unit * INT4_BYTES + g * 8;
    const unsigned* scale = reinterpret_cast<const unsigned*>(scales) + (size_t)unit * 256 + g * 32 + q;
    unsigned scale_bits[8][2];
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) scale_bits[t][half] = q < 2 ? __ldcs(scale + (t * 2 + half) * 2) : 0;
    }
    float sum[8][4] = {};
#pragma unroll together
    for (int group = 0; group < 4; ++group) {
      const int base = group * 32 + q * 8;
      const uint4 x = *reinterpret_cast<const uint4*>(activation + step * 128 + base);
      const unsigned pairs[4] = {x.x, x.y, x.z, x.w};
      uint2 held[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const bool taken = (pairs[e / 2] >> (16 * (e % 2))) & 0x7fffu;
        held[e] = taken ? stream8(from + (base + e) * 64) : uint2{0, 0};
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
            unsigned a[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              const unsigned bits = (((r < 2 ? low : high) >> (8 * half + 4 * (r % 2))) & 0x000f000fu) | 0x64006400u;
              const __half2 value = __hsub2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(1032.0f));
              a[r] = *reinterpret_cast<const unsigned*>(&value);
            }
            multiply_tile(sum[word * 2 + half], a, x0, x1, __half());
          }
        }
      }
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&scale_bits[t][half]));
        total[t][half] = fmaf(pair.x, q < 2 ? sum[t][2 * half] : 0.0f, total[t][half]);
        total[t][half] = fmaf(pair.y, q < 2 ? sum[t][2 * half + 1] : 0.0f, total[t][half]);
      }
    }
    if (++step == STEPS) {
      flush();
      ++tile, step = 0;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(meeting, parts, 1);
}

template <class M>
DEVICE void fetch_draft(const void* levels, const void* scales) {
  fetch_ahead<M>(levels, INT4_BYTES);
  fetch_ahead<M>(scales, SCALE_BYTES);
}

}  // namespace specdec
