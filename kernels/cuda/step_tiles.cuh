// ROWS rows times a share of a matrix in the exact view, on the tensor cores, for a step in one kernel; effort 1.0, or
// any effort with two bits for each weight that name its tier. Arithmetic and packing are those of dense.cu and
// verify.cu: a column of a product does not see its neighbours, so a row's bits do not depend on its company.
namespace specdec {

using act_t = weight_t;
template <int OUTPUTS, int PADDED>
using Exact = Matrix<(OUTPUTS + 15) / 16, PADDED / 32, 16>;

// `planes` and `prefix` are for TIERS > 0: tiers of the weights, and how many each row takes, (JOINED, ROWS, PADDED).
template <class M, int JOINED>
DEVICE void multiply_exact(const void* weights, const void* planes, const act_t* activation, const __half* prefix,
                           int rows, float* parts, float* meeting) {
  constexpr int STEPS = M::STEPS, PADDED = STEPS * 32, UNROLL = STEP_UNROLL;
  static_assert(UNROLL <= STEPS, "a batch of steps passes one end of a tile at most");
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares<M> share(threadIdx.x / 32);
  const uint4* w = reinterpret_cast<const uint4*>(weights) + (size_t)share.begin * 64 + lane;
#if TIERS
  const unsigned* plane = reinterpret_cast<const unsigned*>(planes) + (size_t)share.begin * 32 + lane;
#endif
  int tile = share.begin / STEPS, step = share.begin % STEPS;
  float sum[BANDS][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, meeting);
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = band * 8 + 2 * q + e % 2;
        if (column < rows) to[column * 16 + g + e / 2 * 8] = sum[band][e];
        sum[band][e] = 0;
      }
    }
  };

  for (int unit = share.begin; unit < share.end; unit += UNROLL, w += UNROLL * 64) {
    uint4 held[UNROLL][2], x[UNROLL][BANDS][SPLIT];
#if TIERS
    unsigned tiers_of[UNROLL];
    uint4 taken[UNROLL][BANDS];
#endif
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const bool within = unit + u < share.end, wraps = step + u >= STEPS;
      const int place = (wraps ? step + u - STEPS : step + u) * 32 + q * 8;
      held[u][0] = within ? stream16(w + u * 64) : uint4{0, 0, 0, 0};
      held[u][1] = within ? stream16(w + u * 64 + 32) : uint4{0, 0, 0, 0};
#if TIERS
      tiers_of[u] = within ? __ldcs(plane + u * 32) : 0;
      const int of = tile + (wraps ? 1 : 0);
      const int matrix = JOINED == 1 ? 0 : JOINED == 2 ? of % 2 : (of >= SECOND_TILE) + (of >= THIRD_TILE);
#endif
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          x[u][band][part] =
              within && row < rows
                  ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + part) * PADDED + place)
                  : uint4{0, 0, 0, 0};
        }
#if TIERS
        taken[u][band] = within && row < rows
                             ? *reinterpret_cast<const uint4*>(prefix + ((size_t)matrix * ROWS + row) * PADDED + place)
                             : uint4{0, 0, 0, 0};
#endif
      }
    }
#if TIERS
    plane += UNROLL * 32;
#endif
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (unit + u >= share.end) break;
      const unsigned all[8] = {held[u][0].x, held[u][0].y, held[u][0].z, held[u][0].w,
                               held[u][1].x, held[u][1].y, held[u][1].z, held[u][1].w};
#if TIERS
      // The matrix is the sum of its tiers: a product takes the weights of one tier and the rows that want it.
#pragma unroll
      for (int k = 0; k < TIERS; ++k) {
        unsigned a[2][4];
        const unsigned wanted = k * 0x00010001u;  // compared as tiny float16 numbers, both halves at once
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          const unsigned tier = (tiers_of[u] >> (2 * r)) & 0x00030003u;
          a[r / 4][r % 4] = all[r] & __heq2_mask(*reinterpret_cast<const __half2*>(&tier),
                                                 *reinterpret_cast<const __half2*>(&wanted));
        }
        const __half2 level = __float2half2_rn(float(k));
#pragma unroll
        for (int band = 0; band < BANDS; ++band) {
          const unsigned n[4] = {taken[u][band].x, taken[u][band].y, taken[u][band].z, taken[u][band].w};
          unsigned mask[4];
#pragma unroll
          for (int p = 0; p < 4; ++p) mask[p] = __hgt2_mask(*reinterpret_cast<const __half2*>(&n[p]), level);
#pragma unroll
          for (int part = 0; part < SPLIT; ++part) {
            const uint4 v = x[u][band][part];
            multiply_tile(sum[band], a[0], v.x & mask[0], v.y & mask[1], weight_t());
            multiply_tile(sum[band], a[1], v.z & mask[2], v.w & mask[3], weight_t());
          }
        }
      }
#else
      const unsigned a0[4] = {all[0], all[1], all[2], all[3]}, a1[4] = {all[4], all[5], all[6], all[7]};
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const uint4 v = x[u][band][part];
          multiply_tile(sum[band], a0, v.x, v.y, weight_t());
          multiply_tile(sum[band], a1, v.z, v.w, weight_t());
        }
      }
#endif
      if (++step == STEPS) {
        flush();
        ++tile, step = 0;
      }
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(meeting, parts, rows);
}

}  // namespace specdec
