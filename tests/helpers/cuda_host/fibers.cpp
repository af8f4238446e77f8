// Runs the blocks of several grids side by side, each thread of them a fiber: see shim.h.
#include "shim.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <memory>
#include <vector>

namespace {
constexpr int MOST_THREADS = 1024;
int threads_of_block;
constexpr std::size_t STACK = 96 << 10, SHARED = 228 << 10;
struct Warp {
  unsigned value[2][32];
  int given = 0, waiting = 0;
  unsigned exchanges = 0, meetings = 0;
};
struct Block {
  Warp warps[MOST_THREADS / 32];
  int waiting = 0, some_waiting = 0, number = 0, line = 0;
  unsigned meetings = 0, some_meetings = 0;
  uint4* shared = nullptr;
};
struct Fiber {
  ucontext_t context;
  Block* block;
  int thread;
  bool done = false;
  void (*kernel)(void**);
  void** given;
};
Fiber* running;
ucontext_t scheduler;

void begin() {
  running->kernel(running->given);
  running->done = true;
  swapcontext(&running->context, &scheduler);
}
}  // namespace

Place threadIdx, blockIdx;
uint4* shared_of_block;

void let_others_run() { swapcontext(&running->context, &scheduler); }

// A barrier of `threads` threads, whose state is in `waiting` and `meetings`.
static void meet(int threads, int& waiting, unsigned& meetings) {
  const unsigned turn = meetings;
  if (++waiting == threads) {
    waiting = 0, ++meetings;
  } else {
    while (meetings == turn) let_others_run();
  }
}
void __syncthreads() { meet(threads_of_block, running->block->waiting, running->block->meetings); }
void meet_some(int threads) { meet(threads, running->block->some_waiting, running->block->some_meetings); }
void __syncwarp() {
  Warp& warp = running->block->warps[running->thread / 32];
  meet(32, warp.waiting, warp.meetings);
}
const unsigned* of_all_lanes(unsigned value) {
  Warp& warp = running->block->warps[running->thread / 32];
  const unsigned turn = warp.exchanges;
  warp.value[turn & 1][running->thread % 32] = value;
  meet(32, warp.given, warp.exchanges);
  return warp.value[turn & 1];
}

// Runs the blocks from `first` on of every grid, in `line` of those that have several. 0, or 1 where threads still wait after `most` turns of all.
extern "C" int run_grids(int grids, int blocks, int threads, int first, int line,
                         void (**kernels)(void**), void*** given, long most) {
  threads_of_block = threads;
  std::vector<std::unique_ptr<Block>> all_blocks;
  std::vector<std::unique_ptr<Fiber>> all;
  for (int grid = 0; grid < grids; ++grid) {
    for (int number = 0; number < blocks; ++number) {
      Block& block = *all_blocks.emplace_back(std::make_unique<Block>());
      block.number = first + number, block.line = line;
      block.shared = static_cast<uint4*>(std::aligned_alloc(1024, SHARED));
      std::memset(static_cast<void*>(block.shared), 0xff, SHARED);  // NaN, wherever it is read too early
      for (int thread = 0; thread < threads; ++thread) {
        Fiber& fiber = *all.emplace_back(std::make_unique<Fiber>());
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        fiber.context.uc_stack.ss_size = STACK;
        fiber.block = &block, fiber.thread = thread, fiber.kernel = kernels[grid], fiber.given = given[grid];
        makecontext(&fiber.context, begin, 0);
      }
    }
  }
  bool stuck = false;
  for (std::size_t left = all.size(); left && !stuck; stuck = --most < 0) {
    left = 0;
    for (auto& fiber : all) {
      if (fiber->done) continue;
      running = fiber.get();
      threadIdx.x = fiber->thread, blockIdx.x = fiber->block->number, blockIdx.y = fiber->block->line, shared_of_block = fiber->block->shared;
      swapcontext(&scheduler, &fiber->context);
      left += !fiber->done;
    }
    if (!left) break;
  }
  for (auto& fiber : all) munmap(fiber->context.uc_stack.ss_sp, STACK);
  for (auto& block : all_blocks) std::free(block->shared);
  return stuck;
}
