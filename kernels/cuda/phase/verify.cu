// ROWS rows times a matrix in the exact view, each row with its own choice of tiers; weights are read once.
//
// As dense.cu, with two bits for each weight that name its tier. The matrix is the sum of its tiers, so for every tier
// the weights of the others are set to zero in the registers, and the activations of rows that do not take the tier: a
// product that does not take part adds zero, and the order of those that do is fixed by the shape.
// weights, planes (one word per lane and step), activation (ROWS, SPLIT, PADDED), prefix (JOINED, ROWS, PADDED), state,
// residual (ROWS, OUTPUTS) when EPILOGUE == 1 -> y (ROWS, OUTPUTS); of a mixture, as dense.cu
#include "tiles_begin"
const unsigned* plane = planes + (size_t)expert * (STRIDE / 16) + (size_t)block * PER_BLOCK * STEPS * 32 + lane;
constexpr int ahead = UNROLL;
float sum[PER_BLOCK][BANDS][4] = {};

#pragma unroll ahead
for (int step = first; step < last; ++step) {
  uint4 x[BANDS][SPLIT];
#pragma unroll
  for (int band = 0; band < BANDS; ++band) {
#pragma unroll
    for (int part = 0; part < SPLIT; ++part) {
      const int row = band * 8 + g;
      x[band][part] = row < rows ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + part) * PADDED +
                                                                   step * 32 + q * 8)
                                 : uint4{0, 0, 0, 0};
    }
  }
#pragma unroll
  for (int t = 0; t < PER_BLOCK; ++t) {
    const int tile = block * PER_BLOCK + t;
    const int matrix = JOINED == 1 ? 0 : JOINED == 2 ? tile % 2 : (tile >= SECOND_TILE) + (tile >= THIRD_TILE);
    const uint4 w0 = stream16(w + ((size_t)t * STEPS + step) * 64), w1 = stream16(w + ((size_t)t * STEPS + step) * 64 + 32);
    const unsigned held[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
    const unsigned tiers = plane[((size_t)t * STEPS + step) * 32];
    unsigned taken[BANDS][4];
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
      const int row = band * 8 + g;
      const uint4 n = row < rows ? *reinterpret_cast<const uint4*>(prefix + ((size_t)(matrix * ROWS + row) * JOBS + job) * PADDED +
                                                                   step * 32 + q * 8)
                                 : uint4{0, 0, 0, 0};
      taken[band][0] = n.x, taken[band][1] = n.y, taken[band][2] = n.z, taken[band][3] = n.w;
    }
#pragma unroll
    for (int k = 0; k < TIERS; ++k) {
      unsigned a[2][4];
      const unsigned wanted = k * 0x00010001u;  // compared as tiny float16 numbers, both halves at once
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const unsigned bits = tiers >> (7 - r);  // of a pair of weights: both lower bits, both upper bits
        const unsigned tier = (bits & 1) | (bits >> 15 & 2) | (bits << 8 & 0x10000) | (bits >> 7 & 0x20000);
        a[r / 4][r % 4] = held[r] & __heq2_mask(*reinterpret_cast<const __half2*>(&tier),
                                                *reinterpret_cast<const __half2*>(&wanted));
      }
      const __half2 level = __float2half2_rn(float(k));
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        unsigned mask[4];
#pragma unroll
        for (int p = 0; p < 4; ++p) mask[p] = __hgt2_mask(*reinterpret_cast<const __half2*>(&taken[band][p]), level);
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const uint4 v = x[band][part];
          multiply_tile(sum[t][band], a[0], v.x & mask[0], v.y & mask[1], weight_t());
          multiply_tile(sum[t][band], a[1], v.z & mask[2], v.w & mask[3], weight_t());
        }
      }
    }
  }
}
#include "tiles_out"
