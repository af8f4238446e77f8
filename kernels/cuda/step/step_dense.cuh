// ROWS rows times a share of a matrix on the tensor cores, for a step in one kernel; effort 1.0. Arithmetic and packing are
// those of dense.cu: a column of a product does not see its neighbours, so a row's bits do not depend on the others.
namespace specdec {

using act_t = weight_t;

// Asks for the first weights of a warp's share, STEP_AHEAD units, while others come to a grid barrier. A ring in shared
// memory, as in step_verify.cuh, was measured here too, and was slower.
DEVICE void fill([[maybe_unused]] const Matrix& m, int, [[maybe_unused]] const void* weights, const void*, char*) {
#if STEP_AHEAD
  static_assert(STEP_AHEAD <= 4, "a lane asks for 128 bytes, a unit has 1024");
  const Shares share(m, threadIdx.x / 32);
  const int lane = threadIdx.x % 32, units = share.end - share.begin;
  if (lane / 8 < (units < STEP_AHEAD ? units : STEP_AHEAD)) {
    ahead(reinterpret_cast<const char*>(weights) + (size_t)share.begin * 1024 + lane * 128);
  }
#endif
}

DEVICE void multiply_exact(const Matrix& m, int, int, const void* weights, const void*, const act_t* activation, const unsigned char*, int rows,
                           float* parts, float* exchange, char*) {
  constexpr int UNROLL = STEP_UNROLL;  // at most the steps of a tile: a batch passes one end of a tile
  constexpr int AT_ONCE = UNROLL * BANDS * SPLIT > 4 ? 4 / BANDS / SPLIT : UNROLL;  // units whose rows are read together
  const int steps = m.steps, width = steps * 32 + ROW_GAP;  // of a row and what is left between rows
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
    uint4 held[UNROLL][2];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const bool within = unit + u < share.end;
      held[u][0] = within ? stream16(w + u * 64) : uint4{0, 0, 0, 0};
      held[u][1] = within ? stream16(w + u * 64 + 32) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int begin = 0; begin < UNROLL; begin += AT_ONCE) {
      uint4 x[AT_ONCE][BANDS][SPLIT];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const bool within = unit + begin + u < share.end;
        const int place = (step + u >= steps ? step + u - steps : step + u) * 32 + q * 8;
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
      for (int u = 0; u < AT_ONCE; ++u) {
        if (unit + begin + u >= share.end) break;
        const uint4(&of)[2] = held[begin + u];
        const unsigned a0[4] = {of[0].x, of[0].y, of[0].z, of[0].w}, a1[4] = {of[1].x, of[1].y, of[1].z, of[1].w};
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
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, rows);
}

}  // namespace specdec
