// What the kernels of a whole step share: a barrier over the grid, fair shares of a matrix, and sums of what the blocks
// left behind. Every block of the grid is on a multiprocessor at the same time: GRID blocks, one on each.
namespace specdec {

constexpr int WARPS = THREADS / 32, BANDS = ROWS > 8 ? 2 : 1, COLUMNS = ROWS == 1 ? 1 : 8 * BANDS;

// A barrier over the grid. The top bit of `arrived` flips at every use, so nothing has to be reset, neither here
// nor between launches.
struct GridBarrier {
  unsigned* arrived;
  unsigned side;

  DEVICE explicit GridBarrier(unsigned* arrived_) : arrived(arrived_), side(threadIdx.x == 0 ? look() : 0) {}

  DEVICE unsigned look() const {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(arrived) : "memory");
    return value & 0x80000000u;
  }
  // Waits until every block is here; what they wrote before is seen after. `meanwhile` may not need any of it.
  template <class F>
  DEVICE void wait(F meanwhile) {
    BARRIER();
    if (threadIdx.x == 0) {
      const unsigned share = blockIdx.x == 0 ? 0x80000000u - (GRID - 1) : 1u;
      asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(arrived), "r"(share) : "memory");
    }
    meanwhile();
    if (threadIdx.x == 0) {
      while (look() == side) {
      }
    }
    side ^= 0x80000000u;
    BARRIER();
  }
  DEVICE void wait() {
    wait([] {});
  }
};

// Waits for the kernels before this one, where it was begun ahead of their end, and lets the next one begin ahead of its own.
DEVICE void after_others() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Asks for a piece of memory that will be read after the next grid barrier.
DEVICE void ahead(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// An address that two words of a state hold.
template <class T>
DEVICE T* address_in(const int* words) {
  return reinterpret_cast<T*>((unsigned long long)(unsigned)words[1] << 32 | (unsigned)words[0]);
}

// A matrix as units in the order of memory: `tiles` tiles of TILE outputs, `steps` units each. Blocks take equal runs of
// units, warps equal runs of their block's. A tile's products lie in one slot for every block that has a part of it,
// number block + tile, and are added by rising block. All of this follows from the shape and GRID alone. Sizes are
// variables, so that one piece of code serves every matrix of a step: what does not fit the instruction cache, a layer
// reads from memory over and over.
struct Matrix {
  int tiles, steps;
#if SEGMENTED
  int begin, blocks, slots;  // its first block, how many blocks it has, and its first slot
#elif INPUTS
  int blocks;  // a small matrix leaves blocks idle: its sums would have more parts than they are worth
  static constexpr int begin = 0, slots = 0;
#else
  static constexpr int begin = 0, blocks = GRID, slots = 0;
#endif

  DEVICE unsigned units() const { return unsigned(tiles) * steps; }
  // Its blocks may be followed by some that have no part of any matrix.
  DEVICE int first(int block) const {
    const unsigned all = units(), unit = all * unsigned(block - begin) / blocks;
    return int(unit < all ? unit : all);
  }
  DEVICE int block_of(int unit) const { return begin + int((unsigned(unit + 1) * blocks - 1) / units()); }
  DEVICE int slot(int block, int tile) const { return slots + block - begin + tile; }
  // How many blocks have a part of a tile.
  DEVICE int sharing(int tile) const {
    if (units() < unsigned(blocks)) return steps;  // a unit each
    return block_of(tile * steps + steps - 1) - block_of(tile * steps) + 1;
  }
};
#if SEGMENTED
// Matrices that take the same row have blocks of their own: SEGMENT_TILES, _BEGIN and _BLOCKS of q, k, v, the output
// projection, gate, up, down, and the logits layer.
constexpr int TILES_OF[8] = {SEGMENT_TILES}, BEGIN_OF[8] = {SEGMENT_BEGIN}, BLOCKS_OF[8] = {SEGMENT_BLOCKS};
DEVICE constexpr Matrix segment_of(int which, int inputs) {
  return Matrix{TILES_OF[which], (inputs + 31) / 32, BEGIN_OF[which], BLOCKS_OF[which],
                which == 1 ? TILES_OF[0] + BLOCKS_OF[0]
                : which == 2 ? TILES_OF[0] + BLOCKS_OF[0] + TILES_OF[1] + BLOCKS_OF[1]
                : which == 5 ? TILES_OF[4] + BLOCKS_OF[4]
                             : 0};
}
// Matrix `which` of those above.
DEVICE Matrix segment_at(int which) {
  constexpr Matrix all[8] = {segment_of(0, HIDDEN), segment_of(1, HIDDEN), segment_of(2, HIDDEN), segment_of(3, MIXED),
                             segment_of(4, HIDDEN), segment_of(5, HIDDEN), segment_of(6, INNER), segment_of(7, HIDDEN)};
  switch (which) {
    case 0: return all[0];
    case 1: return all[1];
    case 2: return all[2];
    case 3: return all[3];
    case 4: return all[4];
    case 5: return all[5];
    case 6: return all[6];
    default: return all[7];
  }
}
// Which of them a block works on in the multiplication `site`, and the first one.
DEVICE constexpr int first_segment(int site) { return site == 0 ? 0 : site == 1 ? 3 : site == 2 ? 4 : 6; }
DEVICE int segment_of_block(int site, bool head, int block) {
  constexpr int K = BEGIN_OF[1], V = BEGIN_OF[2], UP = BEGIN_OF[5];
  if (head) return 7;
  if (site == 0) return (block >= K) + (block >= V);
  return site == 2 ? 4 + (block >= UP) : first_segment(site);
}
constexpr int MOST = MOST_BLOCKS;
#else
// Outputs of q, k and v, which may begin at whole tiles.
constexpr int QKV_SIZE = VALUES_AT + KV_HEADS * SIZE;
DEVICE constexpr Matrix matrix_of(int outputs, int padded_inputs) {
  const int tiles = (outputs + TILE - 1) / TILE, steps = padded_inputs / 32;
#if INPUTS
  const int busy = (tiles * steps + UNITS_EACH - 1) / UNITS_EACH;
  return Matrix{tiles, steps, busy < GRID ? busy : GRID};
#else
  return Matrix{tiles, steps};
#endif
}
// The multiplications of a block of the model in order of use, and the logits layer.
DEVICE Matrix matrix_at(int site, bool head) {
  constexpr Matrix all[5] = {matrix_of(QKV_SIZE, HIDDEN_PAD), matrix_of(HIDDEN, MIXED_PAD),
                             matrix_of(2 * INNER_PAD, HIDDEN_PAD), matrix_of(HIDDEN, INNER_PAD),
                             matrix_of(VOCAB, HIDDEN_PAD)};
  return head ? all[4] : site == 0 ? all[0] : site == 1 ? all[1] : site == 2 ? all[2] : all[3];
}
DEVICE int outputs_at(int site, bool head) {
  return head ? VOCAB : site == 0 ? QKV_SIZE : site == 2 ? 2 * INNER_PAD : HIDDEN;
}
// Blocks that share a tile, at most.
constexpr int least(int a, int b) { return a < b ? a : b; }
constexpr int FEWEST = least(least(HIDDEN, QKV_SIZE), least(VOCAB, 2 * INNER_PAD));
constexpr int MOST = GRID / ((FEWEST + TILE - 1) / TILE) + 2;
#endif

DEVICE void add(float4& sum, const float4& value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}

// Four outputs of one row of a product, from the four-aligned `output` on.
DEVICE float4 sum4(const Matrix& m, const float* parts, int row, int output) {
  const int tile = output / TILE;
  const int first = m.block_of(tile * m.steps), last = m.block_of(tile * m.steps + m.steps - 1);
  const float* from = parts + ((size_t)m.slot(first, tile) * ROWS + row) * TILE + output % TILE;
  float4 sum = load_float4(from);
  // Where there are fewer units than blocks, some have none: those at which units * block / blocks stays the same.
  const unsigned units = m.units(), blocks = m.blocks;
  unsigned rest = units * unsigned(first - m.begin) % blocks;
  constexpr int AT_ONCE = MOST < 9 ? MOST - 1 : 8;
#pragma unroll 1
  for (int block = first + 1; block <= last; block += AT_ONCE) {
    float4 more[AT_ONCE];  // these loads first
    from += (size_t)ROWS * TILE;
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      rest = units < blocks ? rest + units - (rest + units >= blocks ? blocks : 0) : 0;
      const bool there = block + j <= last && rest + units >= blocks;
      more[j] = there ? load_float4(from + (size_t)j * ROWS * TILE) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) add(sum, more[j]);
    from += (size_t)(AT_ONCE - 1) * ROWS * TILE;
  }
  return sum;
}

// Where the warps of a block leave tiles that they share, two for each: its first and its last.
struct Shares {
  Matrix m;
  int from, count, warp, begin, end;

  DEVICE Shares(const Matrix& m_, int from_, int count_, int warp_)
      : m(m_), from(from_), count(count_), warp(warp_), begin(from + start(warp)), end(from + start(warp + 1)) {}
  DEVICE Shares(const Matrix& m_, int warp_)
      : Shares(m_, m_.first(blockIdx.x), m_.first(blockIdx.x + 1) - m_.first(blockIdx.x), warp_) {}
  DEVICE int start(int w) const { return count * w / WARPS; }
  DEVICE int warp_of(int unit) const { return ((unit - from + 1) * WARPS - 1) / count; }

  // Where this warp's sums of a tile go: to the slot if no other warp of the block has a part of it.
  DEVICE float* place(int tile, float* parts, float* exchange) const {
    const int low = tile * m.steps, high = low + m.steps, until = from + count;
    const bool alone = begin <= (low > from ? low : from) && end >= (high < until ? high : until);
    return alone ? parts + (size_t)m.slot(blockIdx.x, tile) * ROWS * TILE
                 : exchange + (size_t)(2 * warp + (begin / m.steps != tile)) * COLUMNS * TILE;
  }

  // Adds the warps' sums of every tile that they share, by rising warp.
  DEVICE void gather(const float* exchange, float* parts, int rows) const {
    BARRIER();
    if (count <= 0) return;
    constexpr int EACH = COLUMNS * TILE;
    const int low = from / m.steps, tiles = (from + count - 1) / m.steps - low + 1;
    for (int at = threadIdx.x; at < tiles * EACH; at += THREADS) {
      const int tile = low + at / EACH, place = at % EACH, row = place / TILE;
      const int unit = tile * m.steps, end_of = unit + m.steps - 1;
      const int first = warp_of(unit > from ? unit : from);
      const int last = warp_of(end_of < from + count ? end_of : from + count - 1);
      if (first == last || row >= rows) continue;
      float sum = exchange[(size_t)(2 * first + ((from + start(first)) / m.steps != tile)) * EACH + place];
      for (int w = first + 1; w <= last; ++w) {
        if (start(w) < start(w + 1)) sum += exchange[(size_t)(2 * w) * EACH + place];
      }
      parts[(size_t)m.slot(blockIdx.x, tile) * ROWS * TILE + place] = sum;
    }
  }
};

// Copies of 16 and 4 bytes from device to shared memory that a warp does not wait for until it needs them.
DEVICE void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}
// The same by way of the first cache, for what other warps read too.
DEVICE void copy16_shared(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}
DEVICE void copy4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}
DEVICE void end_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for the oldest of STAGES stages under way, or for more.
template <int COUNT = 1>
DEVICE void wait_stage() {
  asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - COUNT) : "memory");
}

}  // namespace specdec
