// Weights on their way to a step in one kernel. Every warp has a ring of its own in shared memory, and asks for the next piece
// as soon as it has used one, whatever multiplication that piece belongs to: while a row is made, or GPUs wait for each other,
// the weights that come next arrive.
//
// Warps work in two teams of eight. A team makes a tile of 16 outputs; its warps share the inputs at places fixed by their
// number, as in dense.cu, whose bits these are. Tiles go round the blocks; of gates and ups, each team takes one of a pair.
namespace specdec {

constexpr int WARPS = THREADS / 32, TEAM = 8, TEAMS = WARPS / TEAM;
constexpr int BANDS = ROWS > 8 ? 2 : 1, COLUMNS = ROWS == 1 ? 1 : 8 * BANDS, APART = COLUMNS == 1 ? 16 : 20;
#if INT4
using act_t = half_t;
constexpr int STEP_BYTES = 2304, STEP_INPUTS = 256;  // of a tile: nibbles, and a scale for each 32 inputs and output
#else
using act_t = weight_t;
constexpr int STEP_BYTES = 1024, STEP_INPUTS = 32;
#endif
constexpr int PIECE_BYTES = PIECE_STEPS * STEP_BYTES, SUMS = WARPS * COLUMNS * APART;
static_assert(TEAMS == 2, "two tiles at a time");

// What a block multiplies by at a site; the logits layer is site 4.
struct Work {
  int tiles, steps, begin;
  bool paired;

  DEVICE explicit Work(int site) : paired(site == 2) {
    constexpr int counts[5] = {TILE_COUNTS}, lengths[5] = {STEP_COUNTS};
    tiles = site == 0 ? counts[0] : site == 1 ? counts[1] : site == 2 ? counts[2] : site == 3 ? counts[3] : counts[4];
    steps = site == 1 ? lengths[1] : site == 3 ? lengths[3] : lengths[0];
    // Blocks that have a tile more than others at one site have fewer at another.
    begin = int(blockIdx.x) - (site * (GRID / 4 + 1)) % GRID;
    begin += begin < 0 ? GRID : 0;
  }
  DEVICE bool has(int turn) const { return paired ? 2 * (begin + turn * GRID) < tiles : begin + turn * TEAMS * GRID < tiles; }
  DEVICE int tile(int turn, int team) const {
    return paired ? 2 * (begin + turn * GRID) + team : begin + (turn * TEAMS + team) * GRID;
  }
};

DEVICE unsigned shared_address(const void* from) { return unsigned(__cvta_generic_to_shared(from)); }

// The pieces of a warp in the order of use: one lane asks for them.
struct Feed {
  const unsigned long long* address;
  int number, last_number, turn, step, last;
  const char* from;

  // Up to multiplication `last_number`.
  DEVICE Feed(const unsigned long long* address_, int last_number_)
      : address(address_), number(0), last_number(last_number_), turn(0) {
    open();
  }
  DEVICE bool is_over() const { return number > last_number; }

  // Goes to the first piece of the turn, or of the next one that has any.
  DEVICE void open() {
    const int team = threadIdx.x / 32 / TEAM, part = threadIdx.x / 32 % TEAM;
    for (; number <= last_number; ++number, turn = 0) {
      const int site = number == 4 * LAYERS ? 4 : number % 4;
      const Work work(site);
      step = work.steps * part / TEAM, last = work.steps * (part + 1) / TEAM;
      const int tile = work.tile(turn, team);
      if (step == last || tile >= work.tiles) continue;
      const unsigned long long base = site == 4 ? address[LAYERS * ENTRIES] : address[number / 4 * ENTRIES + 4 + site];
      from = reinterpret_cast<const char*>(base) + (size_t)tile * work.steps * STEP_BYTES;
      return;
    }
  }
  // Asks for the next piece.
  DEVICE void next(unsigned to, unsigned arrived) {
    if (is_over()) return;
    const int count = last - step < PIECE_STEPS ? last - step : PIECE_STEPS;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(count * STEP_BYTES) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from + (size_t)step * STEP_BYTES), "r"(count * STEP_BYTES), "r"(arrived)
                 : "memory");
    step += count;
    if (step < last) return;
    ++turn;
    open();
  }
};

// A warp's ring.
struct Ring {
  const char* pieces;
  unsigned to, arrived;  // shared addresses of the pieces, and of what counts their bytes
  int at, asked;
  unsigned phase;
  Feed feed;

  DEVICE Ring(char* rings, unsigned long long* counters, const Feed& first)
      : at(0), asked(0), phase(0), feed(first) {
    const int warp = threadIdx.x / 32;
    pieces = rings + (size_t)warp * STAGES * PIECE_BYTES;
    to = shared_address(pieces), arrived = shared_address(counters + warp * STAGES);
  }
  // Asks for the first pieces of `feed`; every piece that came before has been used.
  DEVICE void fill() {
    asked = 0;
    if (threadIdx.x % 32) return;
    for (; asked < STAGES && !feed.is_over(); ++asked) {
      const int n = at + asked < STAGES ? at + asked : at + asked - STAGES;
      feed.next(to + n * PIECE_BYTES, arrived + 8 * n);
    }
  }
  // Waits for pieces that nobody uses: a block may not end before they have come.
  DEVICE void drop() {
    for (; asked > 0; --asked) {
      wait();
      if (++at == STAGES) at = 0, phase ^= 1;
    }
  }
  // Waits for the piece in turn.
  DEVICE const uint4* wait() const {
    asm volatile(
        "{\n.reg .pred there;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n@!there bra AGAIN_%=;\n}"
        ::"r"(arrived + 8 * at), "r"(phase)
        : "memory");
    return reinterpret_cast<const uint4*>(pieces + (size_t)at * PIECE_BYTES);
  }
  // The piece was used by all lanes.
  DEVICE void release() {
    WARP_BARRIER();
    if (threadIdx.x % 32 == 0) feed.next(to + at * PIECE_BYTES, arrived + 8 * at);
    if (++at == STAGES) at = 0, phase ^= 1;
  }
};

#if INT4
// This warp's part of a tile of 4-bit weights for one row. A step has eight groups of 32 inputs: column c of the tensor-core
// product takes the inputs of group c alone, so that the groups' sums stay apart until they are scaled.
// Lane (g, q) holds of two steps of 32 inputs the nibbles of outputs g and g + 8 and inputs 8 q .. 8 q + 7, 16 bytes; after
// eight of those the scales of outputs g and g + 8 in groups 2 q and 2 q + 1.
DEVICE void multiply_part(Ring& ring, int steps, int width, const act_t* activation, int, float* sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, part = warp % TEAM;
  const int first = steps * part / TEAM, last = steps * (part + 1) / TEAM;
  float total[2] = {0, 0};
#pragma unroll 1
  for (int step = first; step < last; step += PIECE_STEPS) {
    uint4 x[PIECE_STEPS];
#pragma unroll
    for (int u = 0; u < PIECE_STEPS; ++u) {
      const int at = (step + u) * STEP_INPUTS + g * 32 + q * 8;
      x[u] = step + u < last && at < width ? *reinterpret_cast<const uint4*>(activation + at) : uint4{0, 0, 0, 0};
    }
    const char* held = reinterpret_cast<const char*>(ring.wait());
#pragma unroll
    for (int u = 0; u < PIECE_STEPS; ++u) {
      if (step + u >= last) break;
      const uint4* nibbles = reinterpret_cast<const uint4*>(held + u * STEP_BYTES) + lane;
      float sum[4] = {};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const uint4 four = nibbles[pair * 32];
        const unsigned words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const bool mine = g == pair * 2 + word / 2;
          const unsigned x0 = mine ? (word % 2 ? x[u].z : x[u].x) : 0u, x1 = mine ? (word % 2 ? x[u].w : x[u].y) : 0u;
          unsigned a[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const unsigned bits = (words[word] >> (4 * r) & 0x000f000fu) | 0x64006400u;  // 1024 and the level
            const __half2 value = __hsub2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(1032.0f));
            a[r] = *reinterpret_cast<const unsigned*>(&value);
          }
          multiply_tile(sum, a, x0, x1, __half());
        }
      }
      const uint2 scales = *(reinterpret_cast<const uint2*>(held + u * STEP_BYTES + 2048) + lane);
      const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&scales.x));
      const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&scales.y));
      total[0] = fmaf(low.y, sum[1], fmaf(low.x, sum[0], total[0]));
      total[1] = fmaf(high.y, sum[3], fmaf(high.x, sum[2], total[1]));
    }
    ring.release();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    if (q == 0) sums[warp * APART + g + 8 * half] = total[half];
  }
}
#else
// This warp's part of a tile: rows times weights in the order of dense.cu. Sums go to `sums`.
DEVICE void multiply_part(Ring& ring, int steps, int width, const act_t* activation, int rows, float* sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, part = warp % TEAM;
  const int first = steps * part / TEAM, last = steps * (part + 1) / TEAM;
  float sum[BANDS][4] = {};
#pragma unroll 1
  for (int step = first; step < last; step += PIECE_STEPS) {
    uint4 x[PIECE_STEPS][BANDS][SPLIT];
#pragma unroll
    for (int u = 0; u < PIECE_STEPS; ++u) {
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
        const int row = band * 8 + g;
#pragma unroll
        for (int half = 0; half < SPLIT; ++half) {
          x[u][band][half] = step + u < last && row < rows
                                 ? *reinterpret_cast<const uint4*>(activation + (size_t)(row * SPLIT + half) * width +
                                                                   (step + u) * 32 + q * 8)
                                 : uint4{0, 0, 0, 0};
        }
      }
    }
    const uint4* held = ring.wait() + lane;
#pragma unroll
    for (int u = 0; u < PIECE_STEPS; ++u) {
      if (step + u >= last) break;
      const uint4 w0 = held[u * 64], w1 = held[u * 64 + 32];
      const unsigned a0[4] = {w0.x, w0.y, w0.z, w0.w}, a1[4] = {w1.x, w1.y, w1.z, w1.w};
#pragma unroll
      for (int band = 0; band < BANDS; ++band) {
#pragma unroll
        for (int half = 0; half < SPLIT; ++half) {
          const uint4 v = x[u][band][half];
          multiply_tile(sum[band], a0, v.x, v.y, weight_t());
          multiply_tile(sum[band], a1, v.z, v.w, weight_t());
        }
      }
    }
    ring.release();
  }
  float* to = sums + warp * COLUMNS * APART;
#pragma unroll
  for (int band = 0; band < BANDS; ++band) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = band * 8 + 2 * q + e % 2;
      if (column < COLUMNS) to[column * APART + g + e / 2 * 8] = sum[band][e];
    }
  }
}

#endif

// An output of a tile of a team, by rising warp.
DEVICE float team_sum(const float* sums, int team, int column, int output) {
  float total = 0;
#pragma unroll
  for (int part = 0; part < TEAM; ++part) total += sums[((team * TEAM + part) * COLUMNS + column) * APART + output];
  return total;
}

// Multiplies by all tiles of the block; `put(is there, tile, column, output, gate or value, up)` is called for each output
// and row, once for both teams where tiles are in pairs, by whole warps: some of their outputs are not there.
template <class F>
DEVICE void multiply_all(Ring& ring, const Work& work, int width, const act_t* activation, int rows, float* both,
                         int& turns, F put) {
  const int team = threadIdx.x / 32 / TEAM;
#pragma unroll 1
  for (int turn = 0; work.has(turn); ++turn, ++turns) {
    float* sums = both + (turns & 1) * SUMS;
    if (work.tile(turn, team) < work.tiles) multiply_part(ring, work.steps, width, activation, rows, sums);
    BARRIER();
    // The warps take turns at adding up.
    const int mine = (threadIdx.x + THREADS - turns % WARPS * 32) % THREADS, each = 16 * COLUMNS;
    const int count = work.paired ? (each + 31) / 32 * 32 : TEAMS * each;
    for (int at = mine; at < count; at += THREADS) {
      const int which = work.paired ? 0 : at / each, column = at % each / 16, output = at % 16, tile = work.tile(turn, which);
      const bool there = column < rows && tile < work.tiles && (!work.paired || at < each);
      const float value = team_sum(sums, which, column, output), up = work.paired ? team_sum(sums, 1, column, output) : 0.0f;
      put(there, tile, column, output, value, up);
    }
  }
}

}  // namespace specdec
