// The choice of tiers in a step in one kernel, by all blocks together. Each counts the keys of its part of a row in a
// histogram of the whole grid (integers, so the order of arrival does not matter). After the next grid barrier a block
// that needs the cut-off finds it there. A bin is a 2^-BIN_BITS part of an octave; all of the bin at the cut-off is taken, so
// the share of weights is reached as in kernels/reference/selection.py and passed by less than a bin holds.
// A factor that a row's keys have in common does not change their order: rows are chosen from before their norm's scale.
namespace specdec {

constexpr int BIN_SHIFT = 23 - BIN_BITS, BINS = 32 << BIN_BITS;  // from 2^-24 to 2^8, the lowest and the highest open
constexpr int LOWEST_BIN = (127 - 24) << BIN_BITS;

#ifdef SECOND_TILE
// Which of the joined matrices a tile of outputs is of: gates and ups in turn, or q, k and v.
DEVICE int matrix_of_tile(int joined, int tile) {
  return joined == 1 ? 0 : joined == 2 ? tile % 2 : (tile >= SECOND_TILE) + (tile >= THIRD_TILE);
}
#endif

#if TIERS
DEVICE int bin_of(float key) {
  const int bin = (int(bits_of(key)) >> BIN_SHIFT) - LOWEST_BIN;
  return bin < 0 ? 0 : bin < BINS ? bin : BINS - 1;
}

// Where a bin's count lies: bins next to each other, which are counted in together, in different pieces of memory.
DEVICE int place_of(int bin) { return bin % (BINS / 8) * 8 + bin / (BINS / 8); }

DEVICE constexpr int size_of(int tier) { return (SIZES >> (8 * tier)) & 255; }

// Scores of an input, one for each tier.
DEVICE void load_scores(const float* scores, int input, float (&to)[TIERS]) {
  if constexpr (TIERS == 4) {
    const float4 four = *reinterpret_cast<const float4*>(scores + (size_t)input * 4);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
#pragma unroll
    for (int k = 0; k < TIERS; ++k) to[k] = scores[(size_t)input * TIERS + k];
  }
}

// Scores of four inputs of a row of `width`; 0 past its end.
DEVICE void load_scores4(const float* scores, int input, int width, float (&to)[4][TIERS]) {
  if constexpr (TIERS == 1 && (HIDDEN | MIXED | INNER) % 4 == 0) {  // no four begin within a row and end past it
    const float4 four = input < width ? *reinterpret_cast<const float4*>(scores + input) : float4{0, 0, 0, 0};
    to[0][0] = four.x, to[1][0] = four.y, to[2][0] = four.z, to[3][0] = four.w;
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
#pragma unroll
    for (int k = 0; k < TIERS; ++k) to[e][k] = 0;
    if (input + e < width) load_scores(scores, input + e, to[e]);
  }
}

// A histogram on its way: what is asked for early need not be waited for.
struct Counts {
  static constexpr int EACH = BINS / THREADS;
  static_assert(EACH % 4 == 0 && THREADS % 8 == 0, "bins are read in fours");
  uint4 four[EACH / 4];

  DEVICE explicit Counts(const unsigned* histogram) {
#pragma unroll
    for (int j = 0; j < EACH / 4; ++j) {
      four[j] = __ldcg(reinterpret_cast<const uint4*>(histogram) + j * THREADS + threadIdx.x);
    }
  }
};

// The lowest bin that is taken. `scratch` holds 33 numbers, `turned` BINS and a 64th more.
DEVICE int find_cut(const Counts& counts, int wanted, int* scratch, unsigned* turned) {
  constexpr int EACH = Counts::EACH;
  const int tid = threadIdx.x, first = BINS - (tid + 1) * EACH;
  int count[EACH], sum = 0;
#pragma unroll
  for (int j = 0; j < EACH / 4; ++j) {
    const int at = (j * THREADS + tid) * 4;
    unsigned* to = turned + at + at / 64;  // what threads next to each other read below is in different banks
    to[0] = counts.four[j].x, to[1] = counts.four[j].y, to[2] = counts.four[j].z, to[3] = counts.four[j].w;
  }
  BARRIER();
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int at = place_of(first + j);
    count[j] = turned[at + at / 64];
  }
#pragma unroll
  for (int j = 0; j < EACH; ++j) sum += count[j];
  int above = block_before<WARPS>(sum, scratch, tid);
  if (above < wanted && above + sum >= wanted) {
    int cut = first;
#pragma unroll
    for (int j = EACH - 1; j >= 0; --j) {
      if (above < wanted) cut = first + j;
      above += count[j];
    }
    scratch[32] = cut;
  }
  BARRIER();
  return scratch[32];
}

// Counts the keys of four inputs of a row of `width`, by the sizes of their tiers.
DEVICE void count_keys(unsigned* histogram, const float (&v)[4], const float (&score)[4][TIERS], int input, int width) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (input + e >= width) break;
#pragma unroll
    for (int k = 0; k < TIERS; ++k) atomicAdd(histogram + place_of(bin_of(fabsf(v[e]) * score[e][k])), size_of(k));
  }
}

// Calls `each(row, matrix, input, stride)` for every row and joined matrix of a choice: some blocks have each pair, a thread
// four inputs from `input` on, and again after every `stride`.
template <class F>
DEVICE void spread_pairs(int rows, int joined, F each) {
  const int block = blockIdx.x, pairs = rows * joined, step = pairs < GRID ? pairs : GRID;
#pragma unroll 1
  for (int pair = block % step; pair < pairs; pair += step) {
    const int sharing = (GRID - pair % step + step - 1) / step;
    each(pair / joined, pair % joined, (block / step * THREADS + int(threadIdx.x)) * 4, sharing * THREADS * 4);
  }
}

// Bits of four inputs of every lane, those of eight lanes in one word: given to all eight.
DEVICE unsigned word_of(unsigned four) {
  unsigned word = four << (threadIdx.x % 8 * 4);
#pragma unroll
  for (int mask = 1; mask < 8; mask *= 2) word |= __shfl_xor_sync(EVERY_LANE, word, mask);
  return word;
}

// Empties a histogram, or several next to each other.
DEVICE void clear(unsigned* histogram, int count) {
  for (int at = (blockIdx.x * THREADS + threadIdx.x) * 4; at < count * BINS; at += GRID * THREADS * 4) {
    *reinterpret_cast<uint4*>(histogram + at) = uint4{0, 0, 0, 0};
  }
}
#endif

// Calls `each(row, input)` for every four inputs of `rows` rows of `padded`; a warp has 128 inputs of a row at a time.
template <class F>
DEVICE void spread(int rows, int padded, F each) {
  const int jobs = padded / 128;
#pragma unroll 1
  for (int job = threadIdx.x / 32 * GRID + blockIdx.x; job < rows * jobs; job += WARPS * GRID) {
    const int row = job / jobs;
    each(row, (job - row * jobs) * 128 + int(threadIdx.x % 32) * 4);
  }
}

// Four inputs of a row that has a norm, before its scale, by a warp that has 128 of them: of the residual stream `x`, to which
// what `product` gives is added with `adds`. Their squares' sum goes to `squares`.
template <class F>
DEVICE float4 normed4(float* x, const float* weight, float* squares, int i, bool adds, F product) {
  float4 value = {0, 0, 0, 0}, w = value;
  if (i < HIDDEN) {
    w = *reinterpret_cast<const float4*>(weight + i);
    value = load_float4(x + i);
    if (adds) {
      add(value, product());
      *reinterpret_cast<float4*>(x + i) = value;
    }
  }
  const float square = lane_sum(four_squares(value));
  if (threadIdx.x % 32 == 0) squares[i / 128] = square;
  return float4{value.x * w.x, value.y * w.y, value.z * w.z, value.w * w.w};
}

// The scale of an RMS norm, from sums of squares of a row's parts of 128: first what a lane has of them.
DEVICE float load_squares(const float* squares) {
  float sum = 0;
#pragma unroll
  for (int job = 0; job < HIDDEN_PAD / 128; job += 32) {
    const int at = job + threadIdx.x % 32;
    sum += at < HIDDEN_PAD / 128 ? __ldcg(squares + at) : 0.0f;
  }
  return sum;
}
DEVICE float norm_scale(float part) { return rms_scale(lane_sum(part), HIDDEN, EPSILON); }

}  // namespace specdec
