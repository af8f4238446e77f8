// Barriers of a step in one kernel on several GPUs: over this GPU's grid, and over the grids of all; and the numbers of what
// GPUs send each other without a barrier.
namespace specdec {

// Counters only grow, by the same numbers on all GPUs; where they stand is kept in the memory from one launch to the next.
struct GridsBarrier {
  unsigned* own;  // of this GPU: [0] of all grids, [32] of this one, [64] and [65] where they stand, [66] the last number
  unsigned all, here, number;

  DEVICE explicit GridsBarrier(unsigned* own_)
      : own(own_), all(__ldcg(own + 64)), here(__ldcg(own + 65)), number(__ldcg(own + 66)) {}

  // Says that this block is here, after a barrier over it. Every block does.
  DEVICE void arrive() {
    here += GRID;
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(own + 32) : "memory");
  }
  // One thread waits until every block of this grid has arrived; it sees what they wrote before.
  DEVICE void wait_for_others() const {
    wait_until([&] {
      unsigned value;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(own + 32) : "memory");
      return int(value - here) >= 0;
    });
  }
  // Waits until every block of this grid is here; what they wrote before is seen after.
  DEVICE void wait() {
    BARRIER();
    arrive();
    if (threadIdx.x == 0) wait_for_others();
    BARRIER();
  }
  // The same of the grids of all GPUs. `counter_of(rank)` is the memory of each.
  template <class F>
  DEVICE void wait_all(F counter_of) {
    all += GRID * RANKS;
    BARRIER();
    if (threadIdx.x == 0) {
      if (RANKS > 1) {
        __threadfence_system();
#pragma unroll
        for (int rank = 0; rank < RANKS; ++rank) {
          asm volatile("red.relaxed.sys.global.add.u32 [%0], 1;" ::"l"(counter_of(rank)) : "memory");
        }
      } else {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(own) : "memory");
      }
      wait_until([&] {
        unsigned value;
        if (RANKS > 1) {
          asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(own) : "memory");
        } else {
          asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(own) : "memory");
        }
        return int(value - all) >= 0;
      });
    }
    BARRIER();
  }
  // Keeps where the counters stand, when all blocks have read them.
  DEVICE void leave() {
    if (blockIdx.x == 0 && threadIdx.x == 0) own[64] = all, own[65] = here, own[66] = number;
  }
};

}  // namespace specdec
