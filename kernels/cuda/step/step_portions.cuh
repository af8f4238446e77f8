// Shares of matrices as every layer has them, for a step in one kernel whose matrices have blocks of their own.
namespace specdec {

// The shares of a block and its warps in the multiplications of a layer and in the logits layer. They are the same in every
// layer, and take divisions: so they are kept.
struct Portions {
  struct Block {
    Matrix m;
    int from, count, tile, step;  // and where the share begins
    int tiles;                    // of which it has a part
  } block[5];
  int tile[5][WARPS];  // of the warp's first unit

  // Called by all lanes of all warps.
  DEVICE void find() {
    const int which = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (which >= 5) return;
    const Matrix m = segment_at(segment_of_block(which, which == 4, blockIdx.x));
    const Shares share(m, warp);
    tile[which][warp] = unsigned(share.begin) / unsigned(m.steps);
    if (warp > 0) return;
    const int first = unsigned(share.from) / unsigned(m.steps), until = share.from + share.count;
    block[which] = Block{m, share.from, share.count, first, share.from - first * m.steps,
                         share.count > 0 ? int(unsigned(until - 1) / unsigned(m.steps)) - first + 1 : 0};
  }
};
static_assert(sizeof(Portions) <= PORTIONS_BYTES, "memory for them is set aside");

// A warp's share of a matrix, and where it and its block's begin.
struct Portion : Shares {
  int tile, step;              // of the warp's first unit
  int block_tile, block_step;  // of the block's
  int tiles;                   // of which the block has a part

  DEVICE Portion(const Portions& all, int which)
      : Shares(all.block[which].m, all.block[which].from, all.block[which].count, threadIdx.x / 32),
        tile(all.tile[which][warp]), step(begin - tile * m.steps), block_tile(all.block[which].tile),
        block_step(all.block[which].step), tiles(all.block[which].tiles) {}
  // Steps of a row that the block multiplies by.
  DEVICE int length() const { return count < m.steps ? count : m.steps; }
};

}  // namespace specdec
