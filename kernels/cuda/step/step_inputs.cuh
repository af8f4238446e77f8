// ROWS rows times a share of a matrix of which every row takes whole inputs, on the tensor cores, for a step in one kernel.
// The weights of an input to TILE outputs are a line, so lines of inputs that no row takes are not read: they
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
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      if (row < rows && at < steps) mine |= words[(size_t)(matrix * ROWS + row) * steps + at];
    }
  }
  // Of a step from `first` on, at most 31 behind it.
  DEVICE unsigned at(int step) const { return __shfl_sync(EVERY_LANE, mine, step - first); }
};

// Products of eight outputs of each of eight lanes g and of four inputs of each of four lanes q: the inputs' words are
// turned into pairs of inputs for every output.
template <int N>
DEVICE void multiply_lines(float (&sum)[N][BANDS][4], int at, const uint4 (&line)[4], const uint2 (&x)[BANDS][SPLIT]) {
  const unsigned* word[4] = {&line[0].x, &line[1].x, &line[2].x, &line[3].x};
#pragma unroll
  for (int two = 0; two < 4; ++two) {
    const unsigned w[4] = {
        __byte_perm(word[0][two], word[1][two], 0x5410), __byte_perm(word[0][two], word[1][two], 0x7632),
        __byte_perm(word[2][two], word[3][two], 0x5410), __byte_perm(word[2][two], word[3][two], 0x7632)};
#pragma unroll
    for (int band = 0; band < BANDS; ++band) {
#pragma unroll
      for (int part = 0; part < SPLIT; ++part) {
        multiply_tile(sum[at + two][band], w, x[band][part].x, x[band][part].y, weight_t());
      }
    }
  }
}

// `lines` (tiles, inputs, TILE); `activation` (joined, ROWS, SPLIT, width), zeros where a row does not take an input;
// `words`: see `Taken`. A lane (g, q) has outputs 8 g to 8 g + 7 of every 64 and inputs 8 q to 8 q + 7 of every 32.
DEVICE void multiply_exact(const Matrix& m, int, int joined, const void* lines, const void*, const act_t* activation,
                           const unsigned char* words, int rows, float* parts, float* exchange, char*) {
  constexpr int HALVES = TILE / 64, LINE_BYTES = TILE * 2, UNIT_BYTES = 32 * LINE_BYTES;
  const int steps = m.steps, width = steps * 32;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Shares share(m, threadIdx.x / 32);
  int tile = share.begin / steps, step = share.begin % steps;
  Taken taken(reinterpret_cast<const unsigned*>(words), rows, steps);
  float sum[4 * HALVES][BANDS][4] = {};

  auto flush = [&]() {
    float* to = share.place(tile, parts, exchange);
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        float(*s)[BANDS][4] = sum + half * 4;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = band * 8 + 2 * q + e;
          if (column >= rows) continue;
          float4* eight = reinterpret_cast<float4*>(to + column * TILE + half * 64 + g * 8);
          eight[0] = float4{s[0][band][e], s[0][band][e + 2], s[1][band][e], s[1][band][e + 2]};
          eight[1] = float4{s[2][band][e], s[2][band][e + 2], s[3][band][e], s[3][band][e + 2]};
        }
#pragma unroll
        for (int two = 0; two < 4; ++two) s[two][band][0] = s[two][band][1] = s[two][band][2] = s[two][band][3] = 0;
      }
    }
  };

  const char* from = reinterpret_cast<const char*>(lines) + (size_t)share.begin * UNIT_BYTES + q * 8 * LINE_BYTES + g * 16;
  const act_t* rows_at = activation;
#pragma unroll 1
  for (int unit = share.begin; unit < share.end; ++unit, from += UNIT_BYTES) {
    if (taken.first < 0 || step == taken.first + 32) {
      const int matrix = matrix_of_tile(joined, tile);
      taken.look(matrix, step);
      rows_at = activation + (size_t)matrix * ROWS * SPLIT * width + q * 8;
    }
    const unsigned bits = taken.at(step) >> (q * 8);
    uint4 held[2][HALVES][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < HALVES; ++half) {
        held[j / 4][half][j % 4] = bits >> j & 1 ? stream16(from + j * LINE_BYTES + half * 128) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      uint2 x[BANDS][SPLIT];
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
#pragma unroll
        for (int part = 0; part < SPLIT; ++part) {
          const act_t* at = rows_at + (size_t)(row * SPLIT + part) * width + step * 32 + product * 4;
          x[band][part] = row < rows ? *reinterpret_cast<const uint2*>(at) : uint2{0, 0};
        }
      }
#pragma unroll
      for (int half = 0; half < HALVES; ++half) multiply_lines(sum, half * 4, held[product][half], x);
    }
    if (++step == steps) {
      flush();
      ++tile, step = 0, taken.first = -1;
    }
  }
  if (share.begin < share.end && step) flush();
  share.gather(exchange, parts, rows);
}

}  // namespace specdec
