// Enough of the Metal standard library to run a compute kernel on the host: types, math, simdgroups of 32, threadgroup
// memory and barriers. For tests only. Every thread of a threadgroup is a fiber, or with SHIM_THREADS a std::thread (for
// the thread sanitizer); threadgroups run one after another.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#ifndef SHIM_THREADS
#include <ucontext.h>
#endif

using uint = unsigned;
using ushort = unsigned short;
using uchar = unsigned char;
using ulong = unsigned long;
using half = _Float16;
using float16_t = half;

struct bfloat16_t {  // round to nearest even, as the hardware does
  std::uint16_t bits = 0;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {
    const std::uint32_t raw = std::bit_cast<std::uint32_t>(value);
    bits = std::uint16_t((raw + 0x7fff + ((raw >> 16) & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(std::uint32_t(bits) << 16); }
};

struct uint3 {
  uint x, y, z;
};

template <typename To, typename From>
To as_type(From value) {
  return std::bit_cast<To>(value);
}
using std::abs;
using std::exp;
using std::max;
using std::min;
using std::sqrt;
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

namespace shim {

constexpr int LANES = 32, MOST_BYTES = 32768;

// Meeting points of one threadgroup. `wait` returns once all its members have come.
struct Group;
inline thread_local Group* current = nullptr;
inline thread_local int self = 0;

#ifdef SHIM_THREADS
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
  void wait_all() { all.arrive(); }
  void wait_lanes() { lanes[self / LANES]->arrive(); }
  Meeting all;
  std::vector<std::unique_ptr<Meeting>> lanes;
  std::vector<std::uint32_t> slots;
};
#else
struct Group {
  explicit Group(int count) : contexts(count), done(count), waiting(count, 0) {}
  // A fiber that waits hands over to the scheduler; 1 is for its simdgroup, 2 for the threadgroup.
  void wait(char what) {
    waiting[self] = what;
    const int me = self;
    swapcontext(&contexts[me], &scheduler);
    self = me;
  }
  void wait_all() { wait(2); }
  void wait_lanes() { wait(1); }
  ucontext_t scheduler;
  std::vector<ucontext_t> contexts;
  std::vector<char> done, waiting;
  std::vector<std::uint32_t> slots;
  std::function<void(int)> body;
};
inline void enter(int index) {
  current->body(index);
  current->done[index] = 1;
  swapcontext(&current->contexts[index], &current->scheduler);
}
#endif

inline void fail(const std::string& why) {
  std::fprintf(stderr, "shim: %s\n", why.c_str());
  std::exit(3);
}

// What lane `from` put in: everyone writes, meets, reads, meets again.
template <typename T>
T exchange(T value, int from) {
  static_assert(sizeof(T) == 4);
  Group& group = *current;
  group.slots[self] = std::bit_cast<std::uint32_t>(value);
  group.wait_lanes();
  const T other = std::bit_cast<T>(group.slots[self / LANES * LANES + from]);
  group.wait_lanes();
  return other;
}
template <typename T, typename Join>
T reduce(T value, Join join) {
  Group& group = *current;
  group.slots[self] = std::bit_cast<std::uint32_t>(value);
  group.wait_lanes();
  const int first = self / LANES * LANES;
  T total = std::bit_cast<T>(group.slots[first]);
  for (int lane = 1; lane < LANES; ++lane) total = join(total, std::bit_cast<T>(group.slots[first + lane]));
  group.wait_lanes();
  return total;
}

#ifdef SHIM_THREADS
inline void run_group(int threads, const std::function<void(int)>& body) {
  Group group(threads);
  group.slots.resize(threads);
  std::vector<std::thread> members;
  for (int index = 0; index < threads; ++index) {
    members.emplace_back([&, index] {
      current = &group;
      self = index;
      body(index);
      // One that leaves early does so with its whole threadgroup (the fibers check that), so no one waits for it.
    });
  }
  for (auto& member : members) member.join();
}
#else
inline void run_group(int threads, const std::function<void(int)>& body) {
  constexpr std::size_t STACK = 256 << 10;
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (int(stacks.size()) < threads) stacks.push_back(std::make_unique<char[]>(STACK));
  Group group(threads);
  group.slots.resize(threads);
  group.body = body;
  current = &group;
  for (int index = 0; index < threads; ++index) {
    getcontext(&group.contexts[index]);
    group.contexts[index].uc_stack.ss_sp = stacks[index].get();
    group.contexts[index].uc_stack.ss_size = STACK;
    group.contexts[index].uc_link = nullptr;
    makecontext(&group.contexts[index], reinterpret_cast<void (*)()>(enter), 1, index);
  }
  const auto resume = [&](int index) {
    self = index;
    group.waiting[index] = 0;
    swapcontext(&group.scheduler, &group.contexts[index]);
  };
  for (;;) {
    bool moved = false;
    for (int first = 0; first < threads; first += LANES) {
      // Lanes run on while they wait for one another only.
      for (bool ready = true; ready;) {
        int at_lanes = 0, finished = 0;
        for (int index = first; index < first + LANES; ++index) {
          if (!group.done[index] && group.waiting[index] == 0) resume(index), moved = true;
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
    }
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

// A buffer read from a file, of exactly its size, so that the address sanitizer sees the first byte past it.
inline std::unique_ptr<char[]> read_file(const std::string& path, std::size_t& size) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail("cannot read " + path);
  size = std::size_t(file.tellg());
  auto data = std::make_unique<char[]>(size);
  file.seekg(0);
  file.read(data.get(), std::streamsize(size));
  return data;
}
inline void write_file(const std::string& path, const char* data, std::size_t size) {
  std::ofstream(path, std::ios::binary).write(data, std::streamsize(size));
}

}  // namespace shim

inline void threadgroup_barrier(mem_flags) { shim::current->wait_all(); }
inline void simdgroup_barrier(mem_flags) { shim::current->wait_lanes(); }
template <typename T>
T simd_shuffle_xor(T value, ushort mask) {
  return shim::exchange(value, (shim::self % shim::LANES) ^ mask);
}
template <typename T>
T simd_shuffle_up(T value, ushort delta) {
  const int lane = shim::self % shim::LANES;
  return shim::exchange(value, lane >= delta ? lane - delta : lane);
}
template <typename T>
T simd_sum(T value) {
  return shim::reduce(value, [](T a, T b) { return a + b; });
}
template <typename T>
T simd_max(T value) {
  return shim::reduce(value, [](T a, T b) { return a > b ? a : b; });
}

// One address space. Threadgroup memory is static, shared by all fibers or threads, in a section of its own, so that
// its size is known.
#define ONE_ADDRESS_SPACE
#define SHARED_POINTER(T) T*
#define device
#define constant
#define thread
#define threadgroup static __attribute__((section("threadgroup_memory")))
#define kernel
