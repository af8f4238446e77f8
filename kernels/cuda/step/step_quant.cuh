// Rows times a share of a quantised matrix, for a step in one kernel; layouts and loads are in step_quant_units.cuh.
// Products of 8-bit numbers on the tensor cores take the codes as they are: the sum over a group is exact, so a row's
// bits do not depend on the other rows of its pass.
namespace specdec {

// Sums of whole numbers: 16 outputs by 32 inputs, or by 16.
DEVICE void multiply_bytes(int (&sum)[4], const unsigned (&w)[4], const uint2& x) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x.x), "r"(x.y));
}
DEVICE void multiply_bytes(int (&sum)[4], unsigned w0, unsigned w1, unsigned x) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(w0), "r"(w1), "r"(x));
}

// A number of a head.
template <int F>
DEVICE float factor(unsigned bits) {
  constexpr bool BFLOAT = FORMS[F].bfloat;
  if (BFLOAT) return __uint_as_float(bits << 16);
  const unsigned short half = bits;
  return __half2float(*reinterpret_cast<const __half*>(&half));
}
template <int F>
DEVICE float2 factors(unsigned both) {
  constexpr bool BFLOAT = FORMS[F].bfloat;
  if (BFLOAT) return float2{__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
  return __half22float2(*reinterpret_cast<const __half2*>(&both));
}

// Codes of a unit as a lane of a product holds them, for outputs t of the tile; upper nibbles 16 times too large where the
// codes have four bits.
template <int SEEN>
struct Codes {
  unsigned low[2][4], rest_low[SEEN ? 2 : 1][4];

  // Eight outputs' worth: `word` 0 or 1.
  DEVICE void load(const char* at, int word, int even, int odd, int g, int q) {
    unsigned held[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      held[e] = *reinterpret_cast<const unsigned*>(at + (e % 2 ? odd : even) + e % 4 / 2 * 128 + e / 4 * 1024 + word * 4);
    }
    turn_bytes(held[0], held[1], held[2], held[3], low[0]);
    turn_bytes(held[4], held[5], held[6], held[7], low[1]);
    if constexpr (SEEN == 4) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        held[e] = *reinterpret_cast<const unsigned*>(at + 2048 + (e % 2 ? odd : even) + e % 4 / 2 * 128 + e / 4 * 1024 + word * 4);
      }
      turn_bytes(held[0], held[1], held[2], held[3], rest_low[0]);
      turn_bytes(held[4], held[5], held[6], held[7], rest_low[1]);
    }
    if constexpr (SEEN == 2 || SEEN == 1) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        unsigned word_of[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int input = half * 16 + 4 * q + e;
          if (SEEN == 2) {
            word_of[e] = *reinterpret_cast<const unsigned short*>(at + 2048 + (input ^ input / 4 % 4) * 32 + g * 4 + word * 2);
          } else {
            word_of[e] = *reinterpret_cast<const unsigned char*>(at + 2048 + input * 16 + g * 2 + word);
          }
        }
        turn_bytes(word_of[0], word_of[1], word_of[2], word_of[3], rest_low[half]);
      }
    }
  }
  // Of outputs b of the four: registers of both halves of 16 outputs, inputs 0 to 15 and 16 to 31.
  DEVICE void take(int b, unsigned (&w)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned codes = low[half][b];
      unsigned &first = w[2 * half], &second = w[2 * half + 1];
      if constexpr (SEEN == 4) {
        const unsigned more = rest_low[half][b];
        first = (codes & 0x0f0f0f0fu) << 4 | (more & 0x0f0f0f0fu);
        second = (codes & 0xf0f0f0f0u) | (more >> 4 & 0x0f0f0f0fu);
      } else if constexpr (SEEN == 2) {
        const unsigned more = rest_low[half][b / 2] >> (b % 2 * 4);
        first = (codes & 0x0f0f0f0fu) << 2 | (more & 0x03030303u);
        second = (codes & 0xf0f0f0f0u) >> 2 | (more >> 2 & 0x03030303u);
      } else if constexpr (SEEN == 1) {
        const unsigned more = rest_low[half][0] >> (b * 2);
        first = (codes & 0x0f0f0f0fu) << 1 | (more & 0x01010101u);
        second = (codes & 0xf0f0f0f0u) >> 3 | (more >> 1 & 0x01010101u);
      } else {
        first = codes & 0x0f0f0f0fu, second = codes & 0xf0f0f0f0u;
      }
    }
  }
};

// Where the sums of a tile go that several warps of a block share. The warp that reaches the tile's end leaves its sums
// in `ends`, the others in a place of their own when all have done multiplying.
struct Gathering {
  float *ends, *own;  // (ENDS, ROWS, APART), (WARPS, ROWS, APART)
};
DEVICE int end_place(const Portion& share, int warp, int tile) { return ENDS == WARPS ? warp : tile - share.block_tile; }

DEVICE void gather_quant(const Portion& share, const Gathering& gathering, float* parts, int rows) {
  BARRIER();
  if (share.count <= 0) return;
  const Matrix& m = share.m;
  constexpr int EACH = ROWS * APART;
  const int low = share.block_tile, until = share.from + share.count;
  const int quads = rows * (TILE / 4);
  for (int at = threadIdx.x; at < share.tiles * quads; at += THREADS) {
    const int tile = low + at / quads, quad = at % quads, row = quad / (TILE / 4), output = quad % (TILE / 4) * 4;
    const int place = row * APART + output;
    const int unit = tile * m.steps, end_of = unit + m.steps - 1;
    const int first = share.warp_of(unit > share.from ? unit : share.from);
    const int last = share.warp_of(end_of < until ? end_of : until - 1);
    if (first == last) continue;
    float4 sum = *reinterpret_cast<const float4*>(gathering.own + first * EACH + place);
    for (int w = first + 1; w < last; ++w) {
      if (share.start(w) < share.start(w + 1)) add(sum, *reinterpret_cast<const float4*>(gathering.own + w * EACH + place));
    }
    const bool ended = end_of < until;
    const float* from = ended ? gathering.ends + end_place(share, last, tile) * EACH : gathering.own + last * EACH;
    add(sum, *reinterpret_cast<const float4*>(from + place));
    *reinterpret_cast<float4*>(parts + ((size_t)m.slot(blockIdx.x, tile) * ROWS + row) * TILE + output) = sum;
  }
}

// What a number of a product is worth: scale and offset of two outputs, of a head or of what every group has of its own.
template <int F>
struct Worth {
  float by[2], off[2];

  Worth() = default;
  // Of outputs (t, 0) and (t, 1), from one or two words of the head and one of the group's own.
  DEVICE Worth(const unsigned* head, unsigned own) {
    constexpr Form form = FORMS[F];
    if (form.offset) {
      const float2 first = factors<F>(head[0]), second = factors<F>(head[1]);
      by[0] = first.x, off[0] = first.y, by[1] = second.x, off[1] = second.y;
    } else {
      const float2 both = factors<F>(head[0]);
      by[0] = both.x, by[1] = both.y, off[0] = off[1] = 0;
    }
    if (form.own == SIX_BIT) {
      by[0] *= float(own & 255), off[0] *= float(own >> 8 & 255);
      by[1] *= float(own >> 16 & 255), off[1] *= float(own >> 24);
    }
  }
};

// Sums of whole numbers of one row and 16 outputs (t, .), and what becomes of them: places 0 and 1 of a register hold upper
// and lower bytes of the first eight outputs, 2 and 3 those of the others.
template <int F>
struct Sums {
  static constexpr int PARTS = FORMS[F].own == INT8 ? 2 : 1;  // by inputs 0 to 15 and 16 to 31
  static constexpr bool BEGINS = Place<F>::SHIFT == 0;  // a sum begins with what the code of zero comes to
  int of[PARTS][4];

  // `centre`: what the code of zero comes to.
  DEVICE Sums(const int (&centre)[PARTS]) : of() {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      if (BEGINS) of[part][1] = centre[part], of[part][3] = Place<F>::SEEN == 0 ? centre[part] * 16 : centre[part];
    }
  }
  DEVICE void multiply(const unsigned (&w)[4], const uint2& x) {
    if constexpr (PARTS == 2) {
      multiply_bytes(of[0], w[0], w[1], x.x);
      multiply_bytes(of[1], w[2], w[3], x.y);
    } else {
      multiply_bytes(of[0], w, x);
    }
  }
  // `scale`: of the activation; `weight`: its sum.
  DEVICE void add_to(float (&total)[2], const Worth<F>& worth, unsigned own, float scale, float weight,
                     const int (&centre)[PARTS]) const {
    using P = Place<F>;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        int sum = of[part][2 * half] * 256 + of[part][2 * half + 1];
        if (P::SEEN == 0 && half == 1) sum >>= 4;
        if (!BEGINS) sum = (sum << P::SHIFT) + centre[part];
        float by = worth.by[half];
        if (PARTS == 2) by *= float(int(own << (24 - 16 * half - 8 * part)) >> 24);
        total[half] = fmaf(float(sum), by * scale, total[half]);
      }
      if (P::form.offset) total[half] = fmaf(-worth.off[half], weight, total[half]);
    }
  }
};

// `words` and `groups`: the rows' inputs from the block's first step on; `scales`: of the rows. The ring has been filled.
// A lane has row q of every four and all t; a row alone lies in other columns for every t of four, so that a lane has t = q
// of its sums. What is done for an output is the same.
template <int F>
DEVICE void multiply_form(const Portion& share, const char* data, const unsigned* words, const Group* groups,
                          const float* scales, int rows, float* parts, const Gathering& gathering, char* ring) {
  using P = Place<F>;
  constexpr int PARTS = Sums<F>::PARTS;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Matrix& m = share.m;
  const Packed from = packed_of<F>(m, data);
  char* own = ring + share.warp * RING_BYTES;
  int tile = share.tile, step = share.step, ahead_tile = tile, ahead_step = step + STAGES;
  while (ahead_step >= m.steps) ++ahead_tile, ahead_step -= m.steps;
  const int base = share.block_step;
  auto local = [&](int at) { return at >= base ? at - base : at - base + m.steps; };
  const int even = q * 256 + (g * 8 ^ q / 2 * 32) + q % 2 * 64, odd = even ^ 64;
  float total[FULL ? FULL : 1][8][2] = {}, single[2][2] = {}, row_scale[ROW_BANDS];
  auto row_of = [&](int band) { return band < FULL ? band * 4 + q : FULL * 4; };
#pragma unroll
  for (int band = 0; band < ROW_BANDS; ++band) row_scale[band] = scales[row_of(band)] * (P::HIDDEN_BITS ? 0.5f : 1.0f);

  auto leave = [&](float* to, int apart) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int band = 0; band < FULL; ++band) {
#pragma unroll
        for (int t = 0; t < 8; ++t) {
          if (row_of(band) < rows) to[row_of(band) * apart + t * 16 + half * 8 + g] = total[band][t][half];
          total[band][t][half] = 0;
        }
      }
#pragma unroll
      for (int word = 0; word < 2 * SINGLE; ++word) {
        if (FULL * 4 < rows) to[FULL * 4 * apart + (word * 4 + q) * 16 + half * 8 + g] = single[word][half];
        single[word][half] = 0;
      }
    }
  };
  // Whether this warp is the only one of its block with a part of a tile.
  auto alone = [&](int which) {
    const int low = which * m.steps, high = low + m.steps, until = share.from + share.count;
    return share.begin <= (low > share.from ? low : share.from) && share.end >= (high < until ? high : until);
  };
  auto leave_tile = [&](float* shared) {
    if (alone(tile)) {
      leave(parts + (size_t)m.slot(blockIdx.x, tile) * ROWS * TILE, TILE);
    } else {
      leave(shared, APART);
    }
  };

#pragma unroll 1
  for (int stage = 0; share.begin + stage < share.end; ++stage) {
    const int here = local(step) * rows;
    const char* at = own + stage % STAGES * STAGE_BYTES;
    const char* head = P::SLOT ? own + STAGES * STAGE_BYTES + (tile * from.spans + step / P::form.span) % HEAD_SLOTS * 512
                              : at + P::HEAD_AT;
    uint2 x[ROW_BANDS];
    float scale[ROW_BANDS], weight[ROW_BANDS];
    int centre[ROW_BANDS][PARTS];
#pragma unroll
    for (int band = 0; band < ROW_BANDS; ++band) {
      x[band] = *reinterpret_cast<const uint2*>(words + (here + band * 4) * GROUP_WORDS + (band < FULL ? g : g % 2) * 8 + q * 2);
      const Group group = groups[here + row_of(band)];
      scale[band] = group.scale * row_scale[band];
      weight[band] = (P::HIDDEN_BITS ? 2.0f : 1.0f) * scale[band] * float(group.sum[0] + group.sum[1]);
      centre[band][0] = (PARTS == 2 ? group.sum[0] : group.sum[0] + group.sum[1]) * P::CENTRE;
      if constexpr (PARTS == 2) centre[band][1] = group.sum[1] * P::CENTRE;
    }
    wait_stage();
    WARP_BARRIER();
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      Codes<P::SEEN> codes;
      codes.load(at, word, even, odd, g, q);
      unsigned w[4];
      uint4 pieces[P::form.offset ? 2 : 1], owned = {0, 0, 0, 0};  // of four t
      if (FULL) {
#pragma unroll
        for (int j = 0; j < (P::form.offset ? 2 : 1); ++j) {
          pieces[j] = *reinterpret_cast<const uint4*>(head + ((P::form.offset ? 2 * word + j : word) * 8 + g) * 16);
        }
        if (P::form.own) owned = *reinterpret_cast<const uint4*>(at + P::OWN_AT + (word * 8 + g) * 16);
      }
      const unsigned* heads = reinterpret_cast<const unsigned*>(pieces);
      const unsigned* owns = reinterpret_cast<const unsigned*>(&owned);
      Sums<F> alone_sums(centre[ROW_BANDS - 1]);
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        codes.take(b, w);
        if constexpr (FULL > 0) {
          const Worth<F> worth(heads + (P::form.offset ? 2 * b : b), owns[b]);
#pragma unroll
          for (int band = 0; band < FULL; ++band) {
            Sums<F> sums(centre[band]);
            sums.multiply(w, x[band]);
            sums.add_to(total[band][word * 4 + b], worth, owns[b], scale[band], weight[band], centre[band]);
          }
        }
        if (SINGLE) alone_sums.multiply(w, g / 2 == b ? x[ROW_BANDS - 1] : uint2{0, 0});
      }
      if constexpr (SINGLE > 0) {
        constexpr int LAST = ROW_BANDS - 1;
        const char* of = head + (P::form.offset ? ((2 * word + q / 2) * 8 + g) * 16 + q % 2 * 8 : (word * 8 + g) * 16 + q * 4);
        const unsigned own_bits = P::form.own ? *reinterpret_cast<const unsigned*>(at + P::OWN_AT + (word * 8 + g) * 16 + q * 4) : 0;
        unsigned own_heads[2];
        if (P::form.offset) {
          const uint2 both = *reinterpret_cast<const uint2*>(of);
          own_heads[0] = both.x, own_heads[1] = both.y;
        } else {
          own_heads[0] = *reinterpret_cast<const unsigned*>(of);
        }
        alone_sums.add_to(single[word], Worth<F>(own_heads, own_bits), own_bits, scale[LAST], weight[LAST], centre[LAST]);
      }
    }
    WARP_BARRIER();
    unsigned taken = EVERY_LANE;
#if TIERS
    if (share.begin + stage + STAGES < share.end) taken = any_takes(groups + local(ahead_step) * rows, rows);
#endif
    issue<F>(share, from, ahead_tile, ahead_step, taken, own, stage + STAGES);
    if (++ahead_step == m.steps) ++ahead_tile, ahead_step = 0;
    if (++step == m.steps) {
      leave_tile(gathering.ends + end_place(share, share.warp, tile) * ROWS * APART);
      ++tile, step = 0;
    }
  }
  BARRIER();  // the rows are no longer read
  if (share.begin < share.end && step) leave_tile(gathering.own + share.warp * ROWS * APART);
  gather_quant(share, gathering, parts, rows);
}

// One of the types at run time: calls `act` with its number as a type.
template <int N>
struct Number {
  static constexpr int value = N;
};
template <int F = 0, class Do>
DEVICE void with_form(int form, Do act) {
  if constexpr (F + 1 < FORM_COUNT) {
    if (form != F) {
      with_form<F + 1>(form, act);
      return;
    }
  }
  act(Number<F>());
}

// One weight: output `o` and input `i` of a tile. All that is there of a code is seen, in NESTED too.
template <int F>
DEVICE float quant_weight(const Matrix& m, const char* data, int o, int i) {
  constexpr Form form = FORMS[F];
  constexpr int HEAD = form.offset ? 512 : 256, STRIDE = HEAD + (form.own ? 2048 : 0), REST = form.rest;
  const int spans = (m.steps + form.span - 1) / form.span, tile = o / TILE, step = i / 32;
  const int t = o % TILE / 16, half = o % 16 / 8, g = o % 8;
  const char* head = data + ((size_t)tile * spans + step / form.span) * STRIDE;
  const unsigned char* upper = reinterpret_cast<const unsigned char*>(data + (size_t)m.tiles * spans * STRIDE);
  const unsigned char* rest = upper + (size_t)m.units() * 2048;
  const size_t input = (size_t)tile * m.steps * 32 + i;
  int code = upper[input * 64 + 8 * g + t] >> (4 * half) & 15;
  if (REST == 4) code = code << 4 | (rest[input * 64 + 8 * g + t] >> (4 * half) & 15);
  if (REST == 2) code = code << 2 | (rest[input * 32 + 4 * g + t / 2] >> (t % 2 * 4 + half * 2) & 3);
  if (REST == 1) code = code << 1 | (rest[input * 16 + 2 * g + t / 4] >> (t % 4 * 2 + half) & 1);
  const unsigned short* factor_of = reinterpret_cast<const unsigned short*>(head);
  const int place = (g * 8 + t) * 2 + half;
  float by = factor<F>(factor_of[form.offset ? 2 * place : place]), off = 0;
  if (form.offset) off = factor<F>(factor_of[2 * place + 1]);
  const unsigned char* own = reinterpret_cast<const unsigned char*>(head) + HEAD + step % form.span * 256 + 2 * place;
  if (form.own == SIX_BIT) by *= float(own[0]), off *= float(own[1]);
  if (form.own == INT8) by *= float((signed char)own[i % 32 / 16]);
  // Rounded as the definition has it: a difference of two rounded numbers.
  constexpr float HALF = ((1 << form.absent) - 1) * 0.5f;  // of what is not there
  const float weight = __fmul_rn(by, float((code << form.absent) - form.zero) + HALF);
  return form.offset ? __fsub_rn(weight, off) : weight;
}

}  // namespace specdec
