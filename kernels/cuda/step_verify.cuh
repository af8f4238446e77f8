// ROWS rows times a share of a matrix in the exact view at any effort, on the tensor cores, for a step in one kernel: two
// bits for each weight name its tier. Arithmetic and packing are those of verify.cu: a column of a product does not see its neighbours, so a row's bits do not depend on its company.
namespace specdec {

using act_t = weight_t;

// Weights go through a ring of STAGES stages of two units for each warp. The ring is filled as soon as the matrix before
// is done, so the memory works on while the blocks wait for each other.
constexpr int STAGE_BYTES = 2048 + 256;

DEVICE void issue(const Shares& share, const void* weights, const void* planes, char* ring, int stage) {
  const int lane = threadIdx.x % 32;
  char* to = ring + (share.warp * STAGES + stage % STAGES) * STAGE_BYTES;
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int unit = share.begin + 2 * stage + u;
    if (unit < share.end) {
      const char* from = reinterpret_cast<const char*>(weights) + (size_t)unit * 1024 + lane * 16;
      copy16(to + u * 1024 + lane * 16, from);
      copy16(to + u * 1024 + 512 + lane * 16, from + 512);
      copy4(to + 2048 + u * 128 + lane * 4, reinterpret_cast<const char*>(planes) + (size_t)unit * 128 + lane * 4);
    }
  }
  end_stage();
}

DEVICE void fill(const Matrix& m, const void* weights, const void* planes, char* ring) {
  const Shares share(m, threadIdx.x / 32);
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) issue(share, weights, planes, ring, stage);
}

// `planes`: tiers of the weights; `prefix`: how many each row takes, (joined, ROWS, width). The ring has been filled.
DEVICE void multiply_exact(const Matrix& m, int joined, const void* weights, const void* planes, const act_t* activation, const __half* prefix,
                           int rows, float* parts, float* meeting, char* ring) {
  const int steps = m.steps, width = steps * 32;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  int tile = share.begin / steps, step = share.begin % steps;
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

  // Activations of a stage, asked for one stage ahead.
  struct Rows {
    uint4 x[2][BANDS][SPLIT];
    uint4 taken[2][BANDS];
  };
  auto look = [&](int stage, Rows& to) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int unit = share.begin + 2 * stage + u, place = unit % steps * 32 + q * 8;
      const int of = unit / steps;
      const int matrix = joined == 1 ? 0 : joined == 2 ? of % 2 : (of >= SECOND_TILE) + (of >= THIRD_TILE);
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
        const bool wanted = unit < share.end && row < rows;
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          to.x[u][band][part] =
              wanted ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + part) * width + place)
                     : uint4{0, 0, 0, 0};
        }
        to.taken[u][band] =
            wanted ? *reinterpret_cast<const uint4*>(prefix + ((size_t)matrix * ROWS + row) * width + place)
                   : uint4{0, 0, 0, 0};
      }
    }
  };

  Rows now;
  look(0, now);
  for (int stage = 0; share.begin + 2 * stage < share.end; ++stage) {
    const char* held = ring + (share.warp * STAGES + stage % STAGES) * STAGE_BYTES + lane * 16;
    Rows next;
    look(stage + 1, next);
    wait_stage();
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (share.begin + 2 * stage + u >= share.end) break;
      const uint4 w0 = *reinterpret_cast<const uint4*>(held + u * 1024);
      const uint4 w1 = *reinterpret_cast<const uint4*>(held + u * 1024 + 512);
      const unsigned all[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
      const unsigned tiers = *reinterpret_cast<const unsigned*>(held - lane * 16 + 2048 + u * 128 + lane * 4);
      // The matrix is the sum of its tiers: a product takes the weights of one tier and the rows that want it.
#pragma unroll
      for (int k = 0; k < TIERS; ++k) {
        unsigned a[2][4];
        const unsigned wanted = k * 0x00010001u;  // compared as tiny float16 numbers, both halves at once
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          const unsigned tier = (tiers >> (2 * r)) & 0x00030003u;
          a[r / 4][r % 4] = all[r] & __heq2_mask(*reinterpret_cast<const __half2*>(&tier),
                                                 *reinterpret_cast<const __half2*>(&wanted));
        }
        const __half2 level = __float2half2_rn(float(k));
#pragma unroll
        for (int band = 0; band < BANDS; ++band) {
          const unsigned n[4] = {now.taken[u][band].x, now.taken[u][band].y, now.taken[u][band].z,
                                 now.taken[u][band].w};
          unsigned mask[4];
#pragma unroll
          for (int p = 0; p < 4; ++p) mask[p] = __hgt2_mask(*reinterpret_cast<const __half2*>(&n[p]), level);
#pragma unroll
          for (int part = 0; part < SPLIT; ++part) {
            const uint4 v = now.x[u][band][part];
            multiply_tile(sum[band], a[0], v.x & mask[0], v.y & mask[1], weight_t());
            multiply_tile(sum[band], a[1], v.z & mask[2], v.w & mask[3], weight_t());
          }
        }
      }
      if (++step == steps) {
        flush();
        ++tile, step = 0;
      }
    }
    issue(share, weights, planes, ring, stage + STAGES);
    now = next;
  }
  if (share.begin < share.end && step) flush();
  share.gather(meeting, parts, rows);
}

}  // namespace specdec
