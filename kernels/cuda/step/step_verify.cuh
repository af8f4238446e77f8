// ROWS rows times a share of a matrix in the exact view at any effort, on the tensor cores, for a step in one kernel.
// Packing is that of verify.cu. A row's products are sums over the tiers that it takes of an input; with the two bits of
// a weight's tier as masks, upper and lower, four products give them for any choice:
//   all weights      x where a tier is taken
//   upper            -x where one or two are
//   lower            -x where one is
//   both             x where one is, -x where three are
// A column of a product does not see its neighbours, so a row's bits do not depend on the others.
namespace specdec {

using act_t = weight_t;
// A unit is 2 tiles of 16 outputs by 32 inputs. Units go through a ring of STAGES for each warp, filled as soon as the
// matrix before is done, so the memory works on while the blocks wait for each other.
// The rows' activations and counts come the same way, once they are made: read when they are needed, they would be waited
// for behind the weights.
constexpr int HELD_ROWS = 8 * BANDS, WEIGHT_BYTES = 2 * (1024 + 128), ROW_BYTES = HELD_ROWS * 64 * SPLIT;
constexpr int STAGE_BYTES = WEIGHT_BYTES + ROW_BYTES + 2 * HELD_ROWS * 32;

DEVICE void issue_weights(const Shares& share, const void* weights, const void* planes, int outputs, int tile, int step,
                          char* to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    if ((2 * tile + t) * 16 >= outputs) break;
    const size_t unit = (size_t)(2 * tile + t) * share.m.steps + step;
    const char* from = reinterpret_cast<const char*>(weights) + unit * 1024 + lane * 16;
    copy16(to + t * 1024 + lane * 16, from);
    copy16(to + t * 1024 + 512 + lane * 16, from + 512);
    copy4(to + 2048 + t * 128 + lane * 4, reinterpret_cast<const char*>(planes) + unit * 128 + lane * 4);
  }
}
DEVICE void issue_rows(const act_t* activation, const unsigned char* prefix, int rows, int joined, int width, int tile,
                       int step, char* to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int at = lane; at < ROW_BYTES / 16; at += 32) {
    const int row = at / 4;
    if (row < rows * SPLIT) copy16_shared(to + WEIGHT_BYTES + at * 16, activation + (size_t)row * width + step * 32 + at % 4 * 8);
  }
#pragma unroll
  for (int at = lane; at < 4 * HELD_ROWS; at += 32) {
    const int matrix = matrix_of_tile(joined, 2 * tile + at / (2 * HELD_ROWS)), row = at / 2 % HELD_ROWS;
    if (row < rows) {
      copy16_shared(to + WEIGHT_BYTES + ROW_BYTES + at * 16,
                    prefix + ((size_t)matrix * ROWS + row) * width + step * 32 + at % 2 * 16);
    }
  }
}

DEVICE void fill(const Matrix& m, int outputs, const void* weights, const void* planes, char* ring) {
  const Shares share(m, threadIdx.x / 32);
  int tile = share.begin / m.steps, step = share.begin % m.steps;
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) {
    char* to = ring + (share.warp * STAGES + stage) * STAGE_BYTES;
    if (share.begin + stage < share.end) issue_weights(share, weights, planes, outputs, tile, step, to);
    end_stage();
    if (++step == m.steps) ++tile, step = 0;
  }
}

// All bits of a half where the sign of its byte of `word` is set: bytes 0 and 1, or 2 and 3.
DEVICE unsigned lower_mask(unsigned word) {
  unsigned mask;
  asm("prmt.b32 %0, %1, %1, 0x9988;" : "=r"(mask) : "r"(word));
  return mask;
}
DEVICE unsigned upper_mask(unsigned word) {
  unsigned mask;
  asm("prmt.b32 %0, %1, %1, 0xbbaa;" : "=r"(mask) : "r"(word));
  return mask;
}

DEVICE __half2 tiny(unsigned number) {
  const unsigned both = number * 0x00010001u;
  return *reinterpret_cast<const __half2*>(&both);
}

// `planes`: tiers of the weights; `prefix`: how many each row takes, (joined, ROWS, width). The ring has been filled.
DEVICE void multiply_exact(const Matrix& m, int outputs, int joined, const void* weights, const void* planes,
                           const act_t* activation, const unsigned char* prefix, int rows, float* parts, float* exchange,
                           char* ring) {
  const int steps = m.steps, width = steps * 32;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  int tile = share.begin / steps, step = share.begin % steps;
  float sum[2][BANDS][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = band * 8 + 2 * q + e % 2;
          if (column < rows) to[column * TILE + t * 16 + g + e / 2 * 8] = sum[t][band][e];
          sum[t][band][e] = 0;
        }
      }
    }
  };
  int later_tile = tile, later_step = step;
  auto later = [&](int stage, bool weights_too) {
    if (share.begin + stage < share.end) {
      char* to = ring + (share.warp * STAGES + stage % STAGES) * STAGE_BYTES;
      if (weights_too) issue_weights(share, weights, planes, outputs, later_tile, later_step, to);
      issue_rows(activation, prefix, rows, joined, width, later_tile, later_step, to);
    }
    end_stage();
    if (++later_step == steps) ++later_tile, later_step = 0;
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) later(stage, false);

#pragma unroll 1
  for (int stage = 0; share.begin + stage < share.end; ++stage) {
    const char* at = ring + (share.warp * STAGES + stage % STAGES) * STAGE_BYTES;
    const char* held = at + lane * 16;
    wait_stage();
    WARP_BARRIER();
    uint4 x[BANDS][SPLIT];
    uint2 taken[2][BANDS];
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
#pragma unroll
      for (int part = 0; part < SPLIT; ++part) {
        const int row = (band * 8 + g) * SPLIT + part;
        x[band][part] = *reinterpret_cast<const uint4*>(at + WEIGHT_BYTES + row * 64 + q * 16);
      }
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int row = t * HELD_ROWS + band * 8 + g;
        taken[t][band] = *reinterpret_cast<const uint2*>(at + WEIGHT_BYTES + ROW_BYTES + row * 32 + q * 8);
      }
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const uint4 w0 = *reinterpret_cast<const uint4*>(held + t * 1024);
      const uint4 w1 = *reinterpret_cast<const uint4*>(held + t * 1024 + 512);
      const unsigned tiers = *reinterpret_cast<const unsigned*>(held - lane * 12 + 2048 + t * 128);
#pragma unroll
      for (int product = 0; product < 2; ++product) {
        const uint4 four = product ? w1 : w0;
        const unsigned all[4] = {four.x, four.y, four.z, four.w};
        unsigned upper[4], lower[4], both[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const unsigned word = tiers << (product * 4 + r), high = upper_mask(word), low = lower_mask(word);
          upper[r] = all[r] & high, lower[r] = all[r] & low, both[r] = all[r] & high & low;
        }
#pragma unroll
        for (int band = 0; band < BANDS; ++band) {
          const unsigned n4 = product ? taken[t][band].y : taken[t][band].x;
          unsigned any[2], three_up[2], one[2], three[2];
#pragma unroll
          for (int p = 0; p < 2; ++p) {
            // Counts are compared as tiny float16 numbers, two at once.
            const unsigned pair = __byte_perm(n4, 0, p ? 0x4342u : 0x4140u);
            const __half2 count = *reinterpret_cast<const __half2*>(&pair);
            any[p] = __hgt2_mask(count, tiny(0));
            three_up[p] = __hgt2_mask(count, tiny(2));
            one[p] = __heq2_mask(count, tiny(1));
            three[p] = __heq2_mask(count, tiny(3));
          }
#pragma unroll
          for (int part = 0; part < SPLIT; ++part) {
            const uint4 v4 = x[band][part];
            const unsigned v[2] = {product ? v4.z : v4.x, product ? v4.w : v4.y};
            constexpr unsigned SIGNS = 0x80008000u;
            unsigned a[2], b[2], c[2], d[2];
#pragma unroll
            for (int p = 0; p < 2; ++p) {
              a[p] = v[p] & any[p];
              b[p] = (a[p] & ~three_up[p]) ^ SIGNS;
              c[p] = (v[p] & one[p]) ^ SIGNS;
              d[p] = (v[p] & one[p]) | ((v[p] ^ SIGNS) & three[p]);
            }
            multiply_tile(sum[t][band], all, a[0], a[1], weight_t());
            multiply_tile(sum[t][band], upper, b[0], b[1], weight_t());
            multiply_tile(sum[t][band], lower, c[0], c[1], weight_t());
            multiply_tile(sum[t][band], both, d[0], d[1], weight_t());
          }
        }
      }
    }
    WARP_BARRIER();
    later(stage + STAGES, true);
    if (++step == steps) {
      flush();
      ++tile, step = 0;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, rows);
}

}  // namespace specdec
