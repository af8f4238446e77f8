// How the threads of a grid run on the host: fibers, blocks as far as they get one after the other, in either order, so
// that a block which overtakes others is seen to.
#undef _FORTIFY_SOURCE  // which takes a jump from one fiber to another for a mistake
#include "cuda_host.h"

#include <csetjmp>
#include <cstdio>
#include <ucontext.h>

namespace host {

constexpr std::size_t STACK = 64 << 10;
int self = 0, threads_of_block = 0, first_block = 0, blocks = 0, lines = 1, layers = 1;
std::vector<char*> shared;
std::uint32_t *slots = nullptr, *tiles = nullptr;

enum Waiting : char { NOTHING, LANES, PAIR, BLOCK, GRID_ };
struct Fiber {
  ucontext_t context;
  jmp_buf here;
  bool fresh = true, done = false;
  Waiting waiting = NOTHING;
};
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static void (*body)();

[[noreturn]] static void fail(const char* why) {
  std::fprintf(stderr, "cuda_host: %s\n", why);
  std::abort();
}
static void wait(Waiting what) {
  const int me = self;
  fibers[me].waiting = what;
  if (!_setjmp(fibers[me].here)) _longjmp(scheduler, 1);
  self = me;
}
void wait_lanes() { wait(LANES); }
void wait_block() { wait(BLOCK); }
void wait_pair() { wait(PAIR); }
void wait_grid() { wait(GRID_); }

static void enter() {
  body();
  fibers[self].done = true;
  _longjmp(scheduler, 1);
}
static void resume(int index) {
  self = index;
  Fiber& fiber = fibers[index];
  fiber.waiting = NOTHING;
  if (_setjmp(scheduler)) return;
  if (std::exchange(fiber.fresh, false)) setcontext(&fiber.context);
  _longjmp(fiber.here, 1);
}

// Runs 32 lanes while they wait for one another only; whether any ran.
static bool run_lanes(int first) {
  bool moved = false;
  for (;;) {
    int waiting = 0, done = 0;
    for (int i = first; i < first + 32; ++i) {
      if (!fibers[i].done && fibers[i].waiting == NOTHING) resume(i), moved = true;
    }
    for (int i = first; i < first + 32; ++i) {
      waiting += !fibers[i].done && fibers[i].waiting == LANES;
      done += fibers[i].done;
    }
    if (waiting && waiting < 32) fail("lanes wait for others that wait elsewhere, or have left");
    if (!waiting) return moved;
    for (int i = first; i < first + 32; ++i) fibers[i].waiting = NOTHING;
  }
}

// Wakes the threads that all wait for one another as pairs of warps; whether there are any.
static bool release_pairs(int first, int threads) {
  bool moved = false;
  for (int pair = first; pair + 64 <= first + threads; pair += 64) {
    const auto waits = [&](int i) { return !fibers[i].done && fibers[i].waiting == PAIR; };
    int waiting = 0;
    for (int i = pair; i < pair + 64; ++i) waiting += waits(i);
    if (waiting < 64) continue;
    for (int i = pair; i < pair + 64; ++i) fibers[i].waiting = NOTHING;
    moved = true;
  }
  return moved;
}

// Runs a block until all of its threads wait for the grid or have left; whether any ran.
static bool run_block(int first, int threads) {
  bool moved = false;
  for (;;) {
    for (int warp = first; warp < first + threads; warp += 32) moved |= run_lanes(warp);
    if (release_pairs(first, threads)) {
      moved = true;
      continue;
    }
    int waiting = 0;
    for (int i = first; i < first + threads; ++i) waiting += !fibers[i].done && fibers[i].waiting == BLOCK;
    if (waiting && waiting < threads) fail("threads wait for others that wait elsewhere, or have left");
    if (!waiting) return moved;
    for (int i = first; i < first + threads; ++i) fibers[i].waiting = NOTHING;
    moved = true;
  }
}

void run(int grid, int threads, std::size_t shared_bytes, bool backwards, void (*what)()) {
  const int count = grid * threads;
  static std::vector<char*> stacks;
  while (int(stacks.size()) < count) stacks.push_back(static_cast<char*>(std::malloc(STACK)));
  fibers.assign(count, Fiber());
  body = what, threads_of_block = threads, blocks = grid;
  std::vector<std::uint32_t> words(count), held(count / 32 * 192);
  slots = words.data(), tiles = held.data();
  for (char* memory : shared) std::free(memory);
  shared.clear();
  for (int block = 0; block < grid; ++block) {
    shared.push_back(static_cast<char*>(std::aligned_alloc(16, (shared_bytes + 31) / 16 * 16)));
    std::memset(shared.back(), 0xff, shared_bytes);  // NaN: nothing may read what nothing wrote
  }
  for (int i = 0; i < count; ++i) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = stacks[i];
    fibers[i].context.uc_stack.ss_size = STACK;
    fibers[i].context.uc_link = nullptr;
    makecontext(&fibers[i].context, enter, 0);
  }
  for (;;) {
    bool moved = false;
    for (int turn = 0; turn < grid; ++turn) moved |= run_block((backwards ? grid - 1 - turn : turn) * threads, threads);
    int done = 0, waiting = 0;
    for (const Fiber& fiber : fibers) done += fiber.done, waiting += !fiber.done && fiber.waiting == GRID_;
    if (done == count) return;
    if (waiting == count) {
      for (Fiber& fiber : fibers) fiber.waiting = NOTHING;
    } else if (!moved) {
      fail("the grid cannot go on");
    }
  }
}

}  // namespace host
