// Quantised matrices as specdec/runtimes/mlx/quant.py lays them out, and a tile of 128 outputs times some rows.
//
// Half a warp reads the 64 bytes that an input has for the outputs' upper bits, a lane 8 outputs' 32 bits; the halves share
// the 32 inputs of a group. Numbers become weights in registers, once for all rows, by one multiply-add, and a lane adds up
// by rising input for each row by itself: a row's bits do not depend on other rows, nor on what is not read because its
// activation is 0.
// Needs ROWS, BAND (rows that a lane adds up), WARPS, GROUPS (of 32 inputs), PADDED (of activations), AHEAD (inputs that are
// asked for at once, a multiple of 4), NESTED, SELECTS.
namespace specdec {

constexpr int INPUTS = GROUPS * 32;

// A type: bits of a code; its zero; groups of 32 inputs that share a head; whether that has offsets; whether its numbers are
// bfloat16; what a group has of its own: 1 for 6-bit scales and offsets, 2 for two signed scales; lower bits of a code that
// are not there. What is not seen of a code counts as half its range.
template <int BITS_, int ZERO_, int SPAN_, int OFFSET_, int BFLOAT_, int OWN_, int ABSENT_>
struct Form {
  static constexpr int BITS = BITS_, ZERO = ZERO_, SPAN = SPAN_, OFFSET = OFFSET_, BFLOAT = BFLOAT_, OWN = OWN_;
  static constexpr int FACTORS = OFFSET ? 512 : 256, HEAD = BITS == 16 ? 0 : FACTORS + (OWN ? 2048 : 0);  // bytes
  static constexpr int UPPER = BITS == 16 ? 256 : 64, REST = BITS == 16 ? 0 : 16 * (BITS - 4 - ABSENT_);  // bytes of an input
  static constexpr int SEEN = NESTED && BITS < 16 ? 4 : BITS - ABSENT_, HIDDEN = BITS - SEEN;
  static constexpr int HEADS = (GROUPS + SPAN - 1) / SPAN;
};

template <typename F>
DEVICE float sixteen(unsigned bits) {
  return F::BFLOAT ? __uint_as_float(bits << 16) : __half2float(__ushort_as_half((unsigned short)(bits)));
}

DEVICE void read16(const void* from, unsigned* to) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  to[0] = raw.x, to[1] = raw.y, to[2] = raw.z, to[3] = raw.w;
}

// Scales and shifts of 8 outputs: a weight is scale * code + shift, of the bits that are seen.
template <typename F>
DEVICE void read_factors(const unsigned char* heads, int group, int side, int part, float (&scale)[8], float (&shift)[8]) {
  const unsigned char* head = heads + (size_t)(group / F::SPAN) * F::HEAD;
  unsigned words[8], own[4] = {};
  read16(head + part * (F::FACTORS / 16), words);
  if (F::OFFSET) read16(head + part * 32 + 16, words + 4);
  if (F::OWN) read16(head + F::FACTORS + group % 8 * 256 + part * 16, own);
  const float centre = F::ZERO - ((1 << F::HIDDEN) - 1) * 0.5f;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const unsigned word = F::OFFSET ? words[n] : words[n / 2] >> (16 * (n % 2));
    float factor = sixteen<F>(word & 0xffff), offset = F::OFFSET ? sixteen<F>(word >> 16) : 0.0f;
    const unsigned pair = own[n / 2] >> (16 * (n % 2));
    if (F::OWN == 1) {
      factor *= float(pair & 255);
      offset *= float(pair >> 8 & 255);
    }
    if (F::OWN == 2) factor *= float(int((pair >> (8 * side) & 255) ^ 128) - 128);
    scale[n] = factor * float(1 << F::HIDDEN);
    shift[n] = -fmaf(factor, centre, offset);
  }
}

// What 8 outputs have of one input, as it lies in memory.
template <typename F>
DEVICE void read_codes(const unsigned char* upper, const unsigned char* rest, int input, int part, unsigned (&held)[4]) {
  const unsigned char* from = upper + (size_t)input * F::UPPER + part * (F::UPPER / 16);
  if (F::BITS == 16) {
    const uint4 raw = stream16(from);
    held[0] = raw.x, held[1] = raw.y, held[2] = raw.z, held[3] = raw.w;
  } else {
    held[0] = __ldcs(reinterpret_cast<const unsigned*>(from));
  }
  if (F::SEEN > 4 && F::SEEN < 16) {
    const unsigned char* lower = rest + (size_t)input * F::REST + part * (F::REST / 16);
    if (F::REST == 64) held[1] = __ldcs(reinterpret_cast<const unsigned*>(lower));
    if (F::REST == 32) held[1] = __ldcs(reinterpret_cast<const unsigned short*>(lower));
    if (F::REST == 16) held[1] = __ldcs(lower);
  }
}

template <typename F>
DEVICE void make_weights(const unsigned (&held)[4], const float (&scale)[8], const float (&shift)[8], float (&weight)[8]) {
  constexpr int lower = F::BITS == 16 ? 0 : F::SEEN - 4;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if (F::BITS == 16) {
      weight[n] = sixteen<F>(held[n / 2] >> (16 * (n % 2)) & 0xffff);
    } else {
      unsigned code = held[0] >> (4 * n) & 15;
      if (lower) code = code << lower | (held[1] >> (lower * n) & ((1 << lower) - 1));
      weight[n] = fmaf(scale[n], float(code), shift[n]);
    }
  }
}

// Whether one of a band's rows takes an input: what none takes is not read.
DEVICE bool any_takes(const float* activation, int input, int rows) {
  bool any = false;
#pragma unroll
  for (int m = 0; m < BAND; ++m) any |= m < rows && activation[(size_t)m * PADDED + input] != 0;
  return any;
}

// Adds the products of one of `tiles` tiles and the groups first, first + WARPS, ... before last to `sum`.
template <typename F>
DEVICE void quant_tile(const unsigned char* data, int tiles, int tile, const float* activation, int rows, int first,
                       int last, int lane, float (&sum)[BAND][8]) {
  const int side = lane / 16, part = lane % 16;
  constexpr int ahead = F::BITS == 16 && AHEAD > 8 ? 8 : AHEAD;
  const unsigned char* heads = data + (size_t)tile * F::HEADS * F::HEAD;
  const unsigned char* upper = data + (size_t)tiles * F::HEADS * F::HEAD;
  const unsigned char* rest = upper + (size_t)tiles * INPUTS * F::UPPER + (size_t)tile * INPUTS * F::REST;
  upper += (size_t)tile * INPUTS * F::UPPER;
#pragma unroll 1
  for (int group = first; group < last; group += WARPS) {
    float scale[8], shift[8];
    if (F::BITS < 16) read_factors<F>(heads, group, side, part, scale, shift);
#pragma unroll
    for (int step = 0; step < 16; step += ahead) {
      const int base = group * 32 + side * 16 + step;
      unsigned held[ahead][4];
      float x[ahead];
#pragma unroll
      for (int j = 0; j < ahead; j += 4) {
        const float4 four = *reinterpret_cast<const float4*>(activation + base + j);
        x[j] = four.x, x[j + 1] = four.y, x[j + 2] = four.z, x[j + 3] = four.w;
      }
#pragma unroll
      for (int j = 0; j < ahead; ++j) {
        if (SELECTS && !(ROWS == 1 ? x[j] != 0 : any_takes(activation, base + j, rows))) {
          held[j][0] = 0, held[j][1] = 0, held[j][2] = 0, held[j][3] = 0;
        } else {
          read_codes<F>(upper, rest, base + j, part, held[j]);
        }
      }
#pragma unroll
      for (int four = 0; four < ahead; four += 4) {
        float weight[4][8];
#pragma unroll
        for (int j = 0; j < 4; ++j) make_weights<F>(held[four + j], scale, shift, weight[j]);
#pragma unroll
        for (int m = 0; m < BAND; ++m) {
          if (m >= rows) break;
          if (m > 0) {
            const float4 next = *reinterpret_cast<const float4*>(activation + (size_t)m * PADDED + base + four);
            x[four] = next.x, x[four + 1] = next.y, x[four + 2] = next.z, x[four + 3] = next.w;
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int n = 0; n < 8; ++n) sum[m][n] = fmaf(weight[j][n], x[four + j], sum[m][n]);
          }
        }
      }
    }
  }
}

}  // namespace specdec
