// ROWS rows times a share of a matrix of which every row takes whole inputs, on the tensor cores, for a step in one kernel.
// The weights of an input to 64 outputs are a line of 128 bytes, so lines of inputs that no row takes are not read: they
// count as zeros, and so do the activations of rows that do not take an input. Products lie where they lie at effort 1, so
// a row's bits depend neither on what the others take nor on what was read.
namespace specdec {

using act_t = weight_t;

// Nothing is asked for before it is known which inputs are taken.
DEVICE void fill(const Matrix&, int, const void*, const void*, char*) {}

// Which inputs the rows take of the matrices that are joined: a bit for each, a word for every step.
struct Taken {
  const unsigned* words;  // (joined, ROWS, steps)
  int rows, steps, first;
  unsigned mine;  // of step first + lane, all rows'

  DEVICE Taken(const unsigned* words_, int rows_, int steps_) : words(words_), rows(rows_), steps(steps_), first(-1), mine(0) {}
  DEVICE void look(int matrix, int step) {
    first = step;
    mine = 0;
    const int at = step + int(threadIdx.x % 32);
    if (at >= steps) return;
#pragma unroll 1
    for (int row = 0; row < rows; ++row) mine |= words[(size_t)(matrix * ROWS + row) * steps + at];
  }
  // Of a step from `first` on, at most 31 behind it.
  DEVICE unsigned at(int step) const { return __shfl_sync(EVERY_LANE, mine, step - first); }
};

// Eight outputs of four inputs, as two registers of a product for every two outputs.
DEVICE void pair_up(const uint4& a, const uint4& b, const uint4& c, const uint4& d, unsigned (&to)[4][4]) {
  const unsigned* word[4] = {&a.x, &b.x, &c.x, &d.x};
#pragma unroll
  for (int two = 0; two < 4; ++two) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      to[two][half] = __byte_perm(word[0][two], word[1][two], half ? 0x7632 : 0x5410);
      to[two][2 + half] = __byte_perm(word[2][two], word[3][two], half ? 0x7632 : 0x5410);
    }
  }
}

// `lines` (tiles, inputs, 64); `activation` (joined, ROWS, SPLIT, width), zeros where a row does not take an input;
// `words`: see `Taken`.
DEVICE void multiply_exact(const Matrix& m, int, int joined, const void* lines, const void*, const act_t* activation,
                           const unsigned char* words, int rows, float* parts, float* exchange, char*) {
  constexpr int UNROLL = STEP_UNROLL;
  const int steps = m.steps, width = steps * 32;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  int tile = share.begin / steps, step = share.begin % steps;
  Taken taken(reinterpret_cast<const unsigned*>(words), rows, steps);
  float sum[4][BANDS][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = band * 8 + 2 * q + e;
        if (column >= rows) continue;
        float4* eight = reinterpret_cast<float4*>(to + column * TILE + g * 8);
        eight[0] = float4{sum[0][band][e], sum[0][band][e + 2], sum[1][band][e], sum[1][band][e + 2]};
        eight[1] = float4{sum[2][band][e], sum[2][band][e + 2], sum[3][band][e], sum[3][band][e + 2]};
      }
#pragma unroll
      for (int two = 0; two < 4; ++two) sum[two][band][0] = sum[two][band][1] = sum[two][band][2] = sum[two][band][3] = 0;
    }
  };

  const char* from = reinterpret_cast<const char*>(lines) + (size_t)share.begin * 4096 + q * 1024 + g * 16;
#pragma unroll 1
  for (int unit = share.begin; unit < share.end;) {
    // Units of one tile and of the words at hand.
    const int matrix = matrix_of_tile(joined, tile);
    if (taken.first < 0 || step >= taken.first + 32) taken.look(matrix, step);
    const int left = min(min(share.end - unit, steps - step), taken.first + 32 - step), count = min(left, UNROLL);
    const act_t* rows_at = activation + (size_t)matrix * ROWS * SPLIT * width + step * 32 + q * 8;
    uint4 held[UNROLL][8], x[UNROLL][BANDS][SPLIT];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const unsigned bits = u < count ? taken.at(step + u) >> (q * 8) : 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        held[u][j] = bits >> j & 1 ? stream16(from + u * 4096 + j * 128) : uint4{0, 0, 0, 0};
      }
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          x[u][band][part] = u < count && row < rows
                                 ? *reinterpret_cast<const uint4*>(rows_at + (size_t)(row * SPLIT + part) * width + u * 32)
                                 : uint4{0, 0, 0, 0};
        }
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (u >= count) break;
#pragma unroll
      for (int product = 0; product < 2; ++product) {
        unsigned w[4][4];
        const uint4* four = &held[u][product * 4];
        pair_up(four[0], four[1], four[2], four[3], w);
#pragma unroll
        for (int band = 0; band < BANDS; ++band) {
#pragma unroll
          for (int part = 0; part < SPLIT; ++part) {
            const uint4 v = x[u][band][part];
#pragma unroll
            for (int two = 0; two < 4; ++two) {
              multiply_tile(sum[two][band], w[two], product ? v.z : v.x, product ? v.w : v.y, weight_t());
            }
          }
        }
      }
    }
    unit += count, step += count, from += count * 4096;
    if (step == steps) {
      flush();
      ++tile, step = 0, taken.first = -1;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, rows);
}

}  // namespace specdec
