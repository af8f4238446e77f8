// Quantised matrices as specdec/runtimes/mlx/quant.py lays them out, and a tile of 128 outputs times some rows.
//
// Half a simdgroup reads the 64 bytes that an input has for the outputs' upper bits, a lane 8 outputs' 32 bits; the halves
// share the 32 inputs of a group. Numbers become weights in registers, once for all rows, by one multiply-add, and a lane
// adds up by rising input for each row by itself: a row's bits do not depend on other rows, nor on what is not read
// because its activation is 0.
// Needs ROWS, BAND (rows that a lane adds up), WARPS, GROUPS (of 32 inputs), PADDED (of activations), AHEAD (inputs that are
// asked for at once), NESTED, SELECTS.
#define INPUTS (GROUPS * 32)

// A type: bits of a code; its zero; groups of 32 inputs that share a head; whether that has offsets; whether its numbers are
// bfloat16; what a group has of its own: 1 for 6-bit scales and offsets, 2 for two signed scales; lower bits of a code that
// are not there. What is not seen of a code counts as half its range.
template <int BITS_, int ZERO_, int SPAN_, int OFFSET_, int BFLOAT_, int OWN_, int ABSENT_>
struct Form {
  enum { BITS = BITS_, ZERO = ZERO_, SPAN = SPAN_, OFFSET = OFFSET_, BFLOAT = BFLOAT_, OWN = OWN_ };
  enum { FACTORS = OFFSET_ ? 512 : 256, HEAD = BITS_ == 16 ? 0 : FACTORS + (OWN_ ? 2048 : 0) };  // bytes
  enum { UPPER = BITS_ == 16 ? 256 : 64, REST = BITS_ == 16 ? 0 : 16 * (BITS_ - 4 - ABSENT_) };  // bytes of an input
  enum { SEEN = NESTED && BITS_ < 16 ? 4 : BITS_ - ABSENT_, HIDDEN = BITS_ - SEEN };
  enum { HEADS = (GROUPS + SPAN_ - 1) / SPAN_ };
};

template <typename F>
inline float sixteen(uint bits) {
  return F::BFLOAT ? as_type<float>(bits << 16) : float(as_type<half>(ushort(bits)));
}

// Scales and shifts of 8 outputs: a weight is scale * code + shift, of the bits that are seen.
template <typename F>
inline void read_factors(device const uchar* heads, int group, int side, int part, thread float (&scale)[8],
                         thread float (&shift)[8]) {
  device const uchar* head = heads + (ulong)(group / F::SPAN) * F::HEAD;
  device const uint* words = (device const uint*)(head) + part * (F::FACTORS / 64);
  device const uint* own = (device const uint*)(head + F::FACTORS + group % 8 * 256) + part * 4;
  const float centre = F::ZERO - ((1 << F::HIDDEN) - 1) * 0.5f;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const uint word = F::OFFSET ? words[n] : words[n / 2] >> (16 * (n % 2));
    float factor = sixteen<F>(word & 0xffff), offset = F::OFFSET ? sixteen<F>(word >> 16) : 0.0f;
    if (F::OWN) {
      const uint pair = own[n / 2] >> (16 * (n % 2));
      if (F::OWN == 1) {
        factor *= float(pair & 255);
        offset *= float(pair >> 8 & 255);
      } else {
        factor *= float(int((pair >> (8 * side) & 255) ^ 128) - 128);
      }
    }
    scale[n] = factor * float(1 << F::HIDDEN);
    shift[n] = -fma(factor, centre, offset);
  }
}

// What 8 outputs have of one input, as it lies in memory.
template <typename F>
inline void read_codes(device const uchar* upper, device const uchar* rest, int input, int part, thread uint (&held)[4]) {
  device const uint* words = (device const uint*)(upper + (ulong)input * F::UPPER) + part * (F::UPPER / 64);
#pragma unroll
  for (int n = 0; n < F::UPPER / 64; ++n) held[n] = words[n];
  if (F::SEEN > 4 && F::SEEN < 16) {
    device const uchar* lower = rest + (ulong)input * F::REST;
    if (F::REST == 64) held[1] = ((device const uint*)(lower))[part];
    if (F::REST == 32) held[1] = ((device const ushort*)(lower))[part];
    if (F::REST == 16) held[1] = lower[part];
  }
}

template <typename F>
inline void make_weights(thread const uint (&held)[4], thread const float (&scale)[8], thread const float (&shift)[8],
                         thread float (&weight)[8]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if (F::BITS == 16) {
      weight[n] = sixteen<F>(held[n / 2] >> (16 * (n % 2)) & 0xffff);
    } else {
      const int lower = F::SEEN == 16 ? 0 : F::SEEN - 4;
      uint code = held[0] >> (4 * n) & 15;
      if (lower) code = code << lower | (held[1] >> (lower * n) & ((1 << lower) - 1));
      weight[n] = fma(scale[n], float(code), shift[n]);
    }
  }
}

// Whether one of a band's rows takes an input: what none takes is not read.
inline bool any_takes(device const float* activation, int input, int rows) {
  bool any = false;
#pragma unroll
  for (int m = 0; m < BAND; ++m) any |= m < rows && activation[(ulong)m * PADDED + input] != 0;
  return any;
}

// Adds the products of one of `tiles` tiles and the groups first, first + WARPS, ... before last to `sum`.
template <typename F>
inline void quant_tile(device const uchar* data, int tiles, int tile, device const float* activation, int rows, int first,
                          int last, int lane, thread float (&sum)[BAND][8]) {
  const int side = lane / 16, part = lane % 16;
  device const uchar* heads = data + (ulong)tile * F::HEADS * F::HEAD;
  device const uchar* upper = data + (ulong)tiles * F::HEADS * F::HEAD;
  device const uchar* rest = upper + (ulong)tiles * INPUTS * F::UPPER + (ulong)tile * INPUTS * F::REST;
  upper += (ulong)tile * INPUTS * F::UPPER;
  for (int group = first; group < last; group += WARPS) {
    float scale[8], shift[8];
    if (F::BITS < 16) read_factors<F>(heads, group, side, part, scale, shift);
    for (int step = 0; step < 16; step += AHEAD) {
      const int base = group * 32 + side * 16 + step;
      uint held[AHEAD][4];
#pragma unroll
      for (int j = 0; j < AHEAD; ++j) {
        if (SELECTS && !any_takes(activation, base + j, rows)) {
#pragma unroll
          for (int n = 0; n < 4; ++n) held[j][n] = 0;
        } else {
          read_codes<F>(upper, rest, base + j, part, held[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < AHEAD; ++j) {
        float weight[8];
        make_weights<F>(held[j], scale, shift, weight);
#pragma unroll
        for (int m = 0; m < BAND; ++m) {
          if (m < rows) {
            const float x = activation[(ulong)m * PADDED + base + j];
#pragma unroll
            for (int n = 0; n < 8; ++n) sum[m][n] = fma(weight[n], x, sum[m][n]);
          }
        }
      }
    }
  }
}
