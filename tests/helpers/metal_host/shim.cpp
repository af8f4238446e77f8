// How the threads of a threadgroup run, and files. Every thread is a fiber, or with SHIM_THREADS a std::thread (for the
// thread sanitizer); threadgroups run one after another.
#undef _FORTIFY_SOURCE  // which takes a jump from one fiber to another for a mistake
#include <condition_variable>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#ifndef SHIM_THREADS
#include <ucontext.h>
#endif

#include "shim.h"
#undef thread

#if defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__
#endif
#endif

namespace shim {

constexpr std::size_t MOST_BYTES = 32768;
std::uint32_t* slots = nullptr;

[[noreturn]] static void fail(const char* why) {
  std::fprintf(stderr, "shim: %s\n", why);
  std::exit(3);
}

void check_memory(std::size_t bytes) {
  if (bytes <= MOST_BYTES) return;
  char why[64];
  std::snprintf(why, sizeof why, "threadgroup memory is %zu bytes", bytes);
  fail(why);
}

#ifdef SHIM_THREADS
thread_local int self = 0;

// A barrier that sleeps: hundreds of threads that spin on a few cores would take minutes.
class Meeting {
 public:
  explicit Meeting(int count) : count_(count) {}
  void arrive() {
    std::unique_lock<std::mutex> lock(mutex_);
    const long turn = turn_;
    if (++here_ == count_) {
      here_ = 0, ++turn_;
      woken_.notify_all();
    } else {
      woken_.wait(lock, [&] { return turn != turn_; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable woken_;
  int count_, here_ = 0;
  long turn_ = 0;
};
struct Group {
  explicit Group(int count) : all(count) {
    for (int first = 0; first < count; first += LANES) lanes.push_back(std::make_unique<Meeting>(LANES));
  }
  Meeting all;
  std::vector<std::unique_ptr<Meeting>> lanes;
};
static Group* current = nullptr;
void wait_all() { current->all.arrive(); }
void wait_lanes() { current->lanes[self / LANES]->arrive(); }

void run_threads(int threads, void (*body)(const void*, int), const void* data) {
  Group group(threads);
  std::vector<std::uint32_t> words(threads);
  slots = words.data();
  current = &group;
  std::vector<std::thread> members;
  for (int index = 0; index < threads; ++index) {
    members.emplace_back([=] {
      self = index;
      body(data, index);
      // One that leaves early does so with its whole threadgroup (the fibers check that), so no one waits for it.
    });
  }
  for (auto& member : members) member.join();
}
#else
int self = 0;

// Where a fiber, or the scheduler, goes on. A jump takes a fraction of the time of swapcontext, which asks the system for
// the signal mask; the address sanitizer knows the latter only.
struct Place {
#ifdef __SANITIZE_ADDRESS__
  void leave_for(Place& other) { swapcontext(&context, &other.context); }
#else
  void leave_for(Place& other) {
    if (_setjmp(here)) return;
    if (std::exchange(other.is_new, false)) setcontext(&other.context);
    _longjmp(other.here, 1);
  }
  jmp_buf here;
#endif
  ucontext_t context;
  bool is_new = false;
};
struct Group {
  explicit Group(int count) : fibers(count), done(count), waiting(count, 0) {}
  // A fiber that waits hands over to the scheduler; 1 is for its simdgroup, 2 for the threadgroup.
  void wait(char what) {
    waiting[self] = what;
    const int me = self;
    fibers[me].leave_for(scheduler);
    self = me;
  }
  Place scheduler;
  std::vector<Place> fibers;
  std::vector<char> done, waiting;
  void (*body)(const void*, int) = nullptr;
  const void* data = nullptr;
};
static Group* current = nullptr;
void wait_all() { current->wait(2); }
void wait_lanes() { current->wait(1); }

static void enter(int index) {
  current->body(current->data, index);
  current->done[index] = 1;
  current->fibers[index].leave_for(current->scheduler);
}

static void prepare(Group& group, int threads) {
  constexpr std::size_t STACK = 256 << 10;
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (int(stacks.size()) < threads) stacks.push_back(std::make_unique_for_overwrite<char[]>(STACK));
  for (int index = 0; index < threads; ++index) {
    Place& fiber = group.fibers[index];
    fiber.is_new = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks[index].get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 1, index);
  }
}

static void resume(Group& group, int index) {
  self = index;
  group.waiting[index] = 0;
  group.scheduler.leave_for(group.fibers[index]);
}

// Run the lanes of a simdgroup on while they wait for one another only; returns whether any ran.
static bool run_lanes(Group& group, int first) {
  bool moved = false;
  for (bool ready = true; ready;) {
    int at_lanes = 0, finished = 0;
    for (int index = first; index < first + LANES; ++index) {
      if (!group.done[index] && group.waiting[index] == 0) resume(group, index), moved = true;
    }
    for (int index = first; index < first + LANES; ++index) {
      at_lanes += !group.done[index] && group.waiting[index] == 1;
      finished += group.done[index];
    }
    if (at_lanes && at_lanes + finished < LANES) fail("lanes of a simdgroup wait for others that wait elsewhere");
    if (at_lanes && finished) fail("a lane has left while others of its simdgroup exchange values");
    ready = at_lanes == LANES;
    for (int index = first; ready && index < first + LANES; ++index) group.waiting[index] = 0;
  }
  return moved;
}

void run_threads(int threads, void (*body)(const void*, int), const void* data) {
  Group group(threads);
  std::vector<std::uint32_t> words(threads);
  slots = words.data();
  group.body = body;
  group.data = data;
  current = &group;
  prepare(group, threads);
  for (;;) {
    bool moved = false;
    for (int first = 0; first < threads; first += LANES) moved |= run_lanes(group, first);
    int at_barrier = 0, finished = 0;
    for (int index = 0; index < threads; ++index) {
      finished += group.done[index];
      at_barrier += !group.done[index] && group.waiting[index] == 2;
    }
    if (finished == threads) return;
    if (at_barrier == threads) {
      std::fill(group.waiting.begin(), group.waiting.end(), 0);
    } else if (at_barrier && at_barrier + finished == threads) {
      fail("a thread has left while others wait at a barrier");
    } else if (!moved) {
      fail("the threadgroup cannot go on");
    }
  }
}
#endif

// A buffer of exactly the file's size, so that the address sanitizer sees the first byte past it.
char* read_file(const char* path, std::size_t& size) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file || std::fseek(file, 0, SEEK_END)) fail("cannot read a file");
  size = std::size_t(std::ftell(file));
  std::rewind(file);
  char* data = static_cast<char*>(std::malloc(size));
  if (std::fread(data, 1, size, file) != size) fail("cannot read a file");
  std::fclose(file);
  return data;
}
void write_file(const char* path, const char* data, std::size_t size) {
  std::FILE* file = std::fopen(path, "wb");
  if (!file || std::fwrite(data, 1, size, file) != size || std::fclose(file)) fail("cannot write a file");
}

}  // namespace shim
