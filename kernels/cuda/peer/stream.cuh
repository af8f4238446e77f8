// Weights on their way to a step in one kernel. Every warp has a ring of its own in shared memory, and asks for the next piece
// as soon as it has used one, whatever multiplication that piece belongs to: while a row is made, or GPUs wait for each other,
// the weights that come next arrive.
//
// Warps work in two teams of eight. A team makes a tile of 16 outputs; its warps share the inputs at places fixed by their
// number, as in dense.cu, whose bits these are. Tiles go round the blocks; of gates and ups, each team takes one of a pair.
namespace specdec {

constexpr int WARPS = THREADS / 32, TEAM = 8, TEAMS = WARPS / TEAM;
constexpr int BANDS = ROWS > 8 ? 2 : 1, COLUMNS = ROWS == 1 ? 1 : 8 * BANDS, APART = COLUMNS == 1 ? 16 : 20;
constexpr int PIECE_BYTES = PIECE_STEPS * 1024, SUMS = WARPS * COLUMNS * APART;
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
  int number, last_number, turn, step, first, last;
  Work work;
  const char* from;

  // Up to multiplication `last_number`.
  DEVICE Feed(const unsigned long long* address_, int last_number_)
      : address(address_), number(0), last_number(last_number_), turn(0), work(0) {
    open();
  }
  DEVICE int team() const { return threadIdx.x / 32 / TEAM; }
  DEVICE bool is_over() const { return number > last_number; }

  // Goes to the first piece of the turn, or of the next one that has any.
  DEVICE void open() {
    for (; number <= last_number; ++number, turn = 0) {
      const int site = number == 4 * LAYERS ? 4 : number % 4, part = threadIdx.x / 32 % TEAM;
      work = Work(site);
      first = work.steps * part / TEAM, last = work.steps * (part + 1) / TEAM, step = first;
      const int tile = work.tile(turn, team());
      if (first == last || tile >= work.tiles) continue;
      const unsigned long long base = site == 4 ? address[LAYERS * ENTRIES] : address[number / 4 * ENTRIES + 4 + site];
      from = reinterpret_cast<const char*>(base) + (size_t)tile * work.steps * 1024;
      return;
    }
  }
  // Asks for the next piece, to be in the L2 cache.
  DEVICE void look_ahead() {
    if (is_over()) return;
    const int count = last - step < PIECE_STEPS ? last - step : PIECE_STEPS;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from + (size_t)step * 1024), "r"(count * 1024) : "memory");
    pass(count);
  }
  // The same, to be in the ring.
  DEVICE void next(unsigned to, unsigned arrived) {
    if (is_over()) return;
    const int count = last - step < PIECE_STEPS ? last - step : PIECE_STEPS;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(count * 1024) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from + (size_t)step * 1024), "r"(count * 1024), "r"(arrived)
                 : "memory");
    pass(count);
  }
  DEVICE void pass(int count) {
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
  int at;
  unsigned phase;
  Feed feed, far;  // `far` goes ahead of the ring, in the L2 cache

  DEVICE Ring(char* rings, unsigned long long* counters, const Feed& feed_) : at(0), phase(0), feed(feed_), far(feed_) {
    const int warp = threadIdx.x / 32;
    pieces = rings + (size_t)warp * STAGES * PIECE_BYTES;
    to = shared_address(pieces), arrived = shared_address(counters + warp * STAGES);
  }
  DEVICE void fill() {
    if (threadIdx.x % 32) return;
    for (int n = 0; n < STAGES; ++n) feed.next(to + n * PIECE_BYTES, arrived + 8 * n);
    far = feed;
    for (int n = 0; n < L2_AHEAD; ++n) far.look_ahead();
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
    if (threadIdx.x % 32 == 0) {
      feed.next(to + at * PIECE_BYTES, arrived + 8 * at);
      if (L2_AHEAD) far.look_ahead();
    }
    if (++at == STAGES) at = 0, phase ^= 1;
  }
};

// This warp's part of a tile: rows times weights in the order of dense.cu. Sums go to `sums`.
DEVICE void multiply_part(Ring& ring, int steps, const weight_t* activation, int rows, float* sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, part = warp % TEAM;
  const int first = steps * part / TEAM, last = steps * (part + 1) / TEAM, width = steps * 32;
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

// An output of a tile of a team, by rising warp.
DEVICE float team_sum(const float* sums, int team, int column, int output) {
  float total = 0;
#pragma unroll
  for (int part = 0; part < TEAM; ++part) total += sums[((team * TEAM + part) * COLUMNS + column) * APART + output];
  return total;
}

// Multiplies by all tiles of the block; `put(team, tile, column, output, gate or value, up)` is called for each output and
// row that there is, once for both teams where tiles are in pairs.
template <class F>
DEVICE void multiply_all(Ring& ring, const Work& work, const weight_t* activation, int rows, float* both, int& turns,
                         F put) {
  const int team = threadIdx.x / 32 / TEAM;
#pragma unroll 1
  for (int turn = 0; work.has(turn); ++turn, ++turns) {
    float* sums = both + (turns & 1) * SUMS;
    if (work.tile(turn, team) < work.tiles) multiply_part(ring, work.steps, activation, rows, sums);
    BARRIER();
    // The warps take turns at adding up.
    const int mine = (threadIdx.x + THREADS - turns % WARPS * 32) % THREADS, each = 16 * COLUMNS;
    if (work.paired) {
      for (int at = mine; at < each; at += THREADS) {
        const int column = at / 16, output = at % 16;
        if (column < rows) put(0, work.tile(turn, 0), column, output, team_sum(sums, 0, column, output), team_sum(sums, 1, column, output));
      }
    } else {
      for (int at = mine; at < TEAMS * each; at += THREADS) {
        const int which = at / each, column = at % each / 16, output = at % 16, tile = work.tile(turn, which);
        if (column < rows && tile < work.tiles) put(which, tile, column, output, team_sum(sums, which, column, output), 0.0f);
      }
    }
  }
}

}  // namespace specdec
