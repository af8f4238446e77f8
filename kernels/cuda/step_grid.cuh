// What the kernels of a whole step share: a barrier over the grid, fair shares of a matrix, and sums of what the blocks
// left behind. Every block of the grid is on a multiprocessor at the same time: GRID blocks, one on each.
namespace specdec {

constexpr int WARPS = THREADS / 32, BANDS = ROWS > 8 ? 2 : 1, COLUMNS = ROWS == 1 ? 1 : 8 * BANDS;

// A barrier over the grid. The top bit of `arrived` turns over at every meeting, so nothing has to be reset, neither here
// nor between launches.
struct Meeting {
  unsigned* arrived;
  unsigned side;

  DEVICE explicit Meeting(unsigned* arrived_) : arrived(arrived_), side(threadIdx.x == 0 ? look() : 0) {}

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

// Asks for a piece of memory that will be read after the next meeting.
DEVICE void ahead(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// A matrix as units in the order of memory: TILES tiles of TILE outputs, STEPS units each. Blocks take equal runs of
// units, warps equal runs of their block's. A tile's products lie in one slot for every block that has a part of it,
// number block + tile, and are added by rising block. All of this follows from the shape and GRID alone.
template <int TILES_, int STEPS_, int TILE_>
struct Matrix {
  static constexpr unsigned TILES = TILES_, STEPS = STEPS_, TILE = TILE_, UNITS = TILES * STEPS;
  static constexpr int MOST = GRID / TILES_ + 2;  // blocks that share a tile, at most
  static_assert(UNITS < 0xffffffffu / (GRID + 1), "the matrix is too large for 32-bit numbers");

  DEVICE static int first(int block) { return int(UNITS * unsigned(block) / GRID); }
  DEVICE static int block_of(int unit) { return int((unsigned(unit + 1) * GRID - 1) / UNITS); }
  DEVICE static bool idle(int block) { return UNITS < GRID && first(block) == first(block + 1); }
};

DEVICE float4 load_float4(const float* from) { return __ldcg(reinterpret_cast<const float4*>(from)); }
DEVICE void add(float4& sum, const float4& value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}

// Four outputs of one row of a product, from the four-aligned `output` on.
template <class M>
DEVICE float4 sum4(const float* parts, int row, int output) {
  const int tile = output / int(M::TILE);
  const int first = M::block_of(tile * M::STEPS), last = M::block_of(tile * M::STEPS + M::STEPS - 1);
  const float* from = parts + ((size_t)(first + tile) * ROWS + row) * M::TILE + output % int(M::TILE);
  float4 sum = load_float4(from);
  if constexpr (M::MOST <= 8) {
    float4 more[M::MOST];  // all loads first
#pragma unroll
    for (int j = 1; j < M::MOST; ++j) {
      const bool there = first + j <= last && !M::idle(first + j);
      more[j] = there ? load_float4(from + (size_t)j * ROWS * M::TILE) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 1; j < M::MOST; ++j) add(sum, more[j]);
  } else {
#pragma unroll 4
    for (int block = first + 1; block <= last; ++block) {
      if (!M::idle(block)) add(sum, load_float4(from + (size_t)(block - first) * ROWS * M::TILE));
    }
  }
  return sum;
}

// Where the warps of a block leave tiles that they share, two for each: its first and its last.
template <class M>
struct Shares {
  int from, count, warp, begin, end;

  DEVICE explicit Shares(int warp_) : warp(warp_) {
    from = M::first(blockIdx.x), count = M::first(blockIdx.x + 1) - from;
    begin = from + start(warp), end = from + start(warp + 1);
  }
  DEVICE int start(int w) const { return count * w / WARPS; }
  DEVICE int warp_of(int unit) const { return ((unit - from + 1) * WARPS - 1) / count; }

  // Where this warp's sums of a tile go: to the slot when nobody else of the block has a part of it.
  DEVICE float* place(int tile, float* parts, float* meeting) const {
    const int low = tile * int(M::STEPS), high = low + int(M::STEPS), until = from + count;
    const bool alone = begin <= (low > from ? low : from) && end >= (high < until ? high : until);
    return alone ? parts + (size_t)(blockIdx.x + tile) * ROWS * M::TILE
                 : meeting + (size_t)(2 * warp + (begin / int(M::STEPS) != tile)) * COLUMNS * M::TILE;
  }

  // Adds the warps' sums of every tile that they share, by rising warp.
  DEVICE void gather(const float* meeting, float* parts, int rows) const {
    BARRIER();
    if (count <= 0) return;
    constexpr int EACH = COLUMNS * int(M::TILE);
    const int low = from / int(M::STEPS), tiles = (from + count - 1) / int(M::STEPS) - low + 1;
    for (int at = threadIdx.x; at < tiles * EACH; at += THREADS) {
      const int tile = low + at / EACH, place = at % EACH, row = place / int(M::TILE);
      const int unit = tile * int(M::STEPS), end_of = unit + int(M::STEPS) - 1;
      const int first = warp_of(unit > from ? unit : from);
      const int last = warp_of(end_of < from + count ? end_of : from + count - 1);
      if (first == last || row >= rows) continue;
      float sum = meeting[(size_t)(2 * first + ((from + start(first)) / int(M::STEPS) != tile)) * EACH + place];
      for (int w = first + 1; w <= last; ++w) {
        if (start(w) < start(w + 1)) sum += meeting[(size_t)(2 * w) * EACH + place];
      }
      parts[(size_t)(blockIdx.x + tile) * ROWS * M::TILE + place] = sum;
    }
  }
};

// Copies of 16 and 4 bytes from device to shared memory that a warp does not wait for until it needs them.
DEVICE void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}
DEVICE void copy4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}
DEVICE void end_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for the oldest of STAGES stages under way.
DEVICE void wait_stage() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory"); }

}  // namespace specdec
