// ROWS rows times a share of a matrix on the tensor cores, for a step in one kernel; effort 1.0. Arithmetic and packing are
// those of dense.cu: a column of a product does not see its neighbours, so a row's bits do not depend on the others.
namespace specdec {

using act_t = weight_t;

// A ring in shared memory, as in step_verify.cuh, was measured here too, and was slower.
DEVICE void fill(const Matrix&, int, const void*, const void*, char*) {}

DEVICE void multiply_exact(const Matrix& m, int, int, const void* weights, const void*, const act_t* activation, const unsigned char*, int rows,
                           float* parts, float* exchange, char*) {
  constexpr int UNROLL = STEP_UNROLL;  // at most the steps of a tile: a batch passes one end of a tile
  const int steps = m.steps, width = steps * 32;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  const uint4* w = reinterpret_cast<const uint4*>(weights) + (size_t)share.begin * 64 + lane;
  int tile = share.begin / steps, step = share.begin % steps;
  float sum[BANDS][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
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
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const bool within = unit + u < share.end, wraps = step + u >= steps;
      const int place = (wraps ? step + u - steps : step + u) * 32 + q * 8;
      held[u][0] = within ? stream16(w + u * 64) : uint4{0, 0, 0, 0};
      held[u][1] = within ? stream16(w + u * 64 + 32) : uint4{0, 0, 0, 0};
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          x[u][band][part] =
              within && row < rows
                  ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + part) * width + place)
                  : uint4{0, 0, 0, 0};
        }
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (unit + u >= share.end) break;
      const unsigned all[8] = {held[u][0].x, held[u][0].y, held[u][0].z, held[u][0].w,
                               held[u][1].x, held[u][1].y, held[u][1].z, held[u][1].w};
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
      if (++step == steps) {
        flush();
        ++tile, step = 0;
      }
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, rows);
}

}  // namespace specdec
