// Rows of activations for a step in one kernel: a block makes a row, a thread OWN inputs of it one after the other.
namespace specdec {

// Inputs of a thread for rows of PADDED inputs: fours, so that they are read in one piece.
template <int PADDED>
constexpr int OWN = (PADDED + 4 * THREADS - 1) / (4 * THREADS) * 4;

// RMS norm of x (WIDTH,) plus the product `parts` when it is not null; the sum goes to `to` unless that is null. M says how
// the product lies: `sum4`.
template <int WIDTH, int PADDED, class M>
DEVICE void norm_row(const M& m, const float* x, const float* parts, int row, float* to, const float* weight, float* scratch,
                     float (&value)[OWN<PADDED>]) {
  const int tid = threadIdx.x;
  float square = 0;
#pragma unroll
  for (int j = 0; j < OWN<PADDED>; j += 4) {
    const int i = tid * OWN<PADDED> + j;
    float4 four = {0, 0, 0, 0};
    if (i < WIDTH) {
      four = load_float4(x + i);
      if (parts) add(four, sum4(m, parts, row, i));
      if (to) *reinterpret_cast<float4*>(to + i) = four;
    }
    value[j] = four.x, value[j + 1] = four.y, value[j + 2] = four.z, value[j + 3] = four.w;
    square += four_squares(four);
  }
  const float scale = rms_scale(block_sum<WARPS>(square, scratch, tid), WIDTH, EPSILON);
#pragma unroll
  for (int j = 0; j < OWN<PADDED>; j += 4) {
    const int i = tid * OWN<PADDED> + j;
    if (i < WIDTH) {
      const float4 w = *reinterpret_cast<const float4*>(weight + i);
      value[j] *= scale * w.x, value[j + 1] *= scale * w.y, value[j + 2] *= scale * w.z, value[j + 3] *= scale * w.w;
    }
  }
}

// silu(gate) * up of four inputs; gates and ups lie in turn by PAIR, unless they are matrices of their own.
template <class M>
DEVICE float4 gated4([[maybe_unused]] const M& m, const float* parts, int row, int i) {
#if SEGMENTED
  const float4 gate = sum4(segment_at(4), parts, row, i), up = sum4(segment_at(5), parts, row, i);
#else
  const int column = i / PAIR * (2 * PAIR) + i % PAIR;
  const float4 gate = sum4(m, parts, row, column), up = sum4(m, parts, row, column + PAIR);
#endif
  return float4{silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w};
}

// Four activations side by side.
DEVICE void put4(__half* to, int row, int width, int i, const float4& v) {
  put_activation(to, row, width, i, v.x), put_activation(to, row, width, i + 1, v.y);
  put_activation(to, row, width, i + 2, v.z), put_activation(to, row, width, i + 3, v.w);
}
DEVICE void put4(__nv_bfloat16* to, int row, int width, int i, const float4& v) {
  put_activation(to, row, width, i, v.x), put_activation(to, row, width, i + 1, v.y);
  put_activation(to, row, width, i + 2, v.z), put_activation(to, row, width, i + 3, v.w);
}

// Four inputs as whole numbers of 15 bits, in two bytes each; eight threads that follow each other have a group of 32, which
// shares a scale.
struct Whole {
  static constexpr int LARGEST = 15000;
  float scale;
  unsigned high, low;  // bytes: a number is 256 times the upper and the lower, both with a sign
  unsigned taken;      // bits of the group's inputs that are not 0, of these four
  int sum;             // of these four

  DEVICE Whole(const float (&v)[4], int quad) : high(0), low(0), taken(0), sum(0) {
    float most = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
    const float inverse = most > 0 ? LARGEST / most : 0.0f;
    scale = most / LARGEST;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int whole = __float2int_rn(fminf(fmaxf(v[e] * inverse, -LARGEST), LARGEST)), upper = (whole + 128) >> 8;
      high |= (unsigned(upper) & 255) << (8 * e);
      low |= (unsigned(whole - 256 * upper) & 255) << (8 * e);
      sum += whole;
      taken |= unsigned(whole != 0) << (quad * 4 + e);
    }
  }
  // The same bits of the whole group.
  DEVICE unsigned all_taken() const {
    unsigned all = taken;
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) all |= __shfl_xor_sync(EVERY_LANE, all, mask);
    return all;
  }
};

// Byte b of four words, side by side, for every b.
DEVICE void turn_bytes(unsigned r0, unsigned r1, unsigned r2, unsigned r3, unsigned (&to)[4]) {
  const unsigned a = __byte_perm(r0, r1, 0x5140), b = __byte_perm(r2, r3, 0x5140);
  const unsigned c = __byte_perm(r0, r1, 0x7362), d = __byte_perm(r2, r3, 0x7362);
  to[0] = __byte_perm(a, b, 0x5410), to[1] = __byte_perm(a, b, 0x7632);
  to[2] = __byte_perm(c, d, 0x5410), to[3] = __byte_perm(c, d, 0x7632);
}

// Input i of the embedding of `token`, from a plain table or from the packed logits layer: see embed.cu.
DEVICE float embedded(const weight_t* table, size_t token, int i) {
#if TIED
  const size_t step = (token / 16) * (HIDDEN_PAD / 32) + i / 32;
  const int k = i % 32, o = token % 16;
  const int lane = o % 8 * 4 + k / 8;
  const size_t place = step * 512 + (k / 4 % 2) * 256 + lane * 8 + (k / 2 % 2) * 4 + o / 8 * 2 + k % 2;
#else
  const size_t place = token * HIDDEN + i;
#endif
  return to_float(table[place]);
}
DEVICE void embed_row(const weight_t* table, size_t token, float* x) {
  for (int i = threadIdx.x; i < HIDDEN; i += THREADS) x[i] = embedded(table, token, i);
}

}  // namespace specdec
