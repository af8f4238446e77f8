#include "pool.h"

#include <algorithm>
#include <chrono>
#include <map>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace specdec {
namespace {

constexpr int kPartBits = 20;
constexpr uint64_t kPartMask = (uint64_t{1} << kPartBits) - 1;
static_assert(Pool::kMaxParts == kPartMask);

// Longer than the pause between two passes of a generation, short enough that an idle program uses no processor.
constexpr auto kSpin = std::chrono::microseconds(1000);
// A thread that waits longer lets others have its processor in between.
constexpr auto kSpinBeforeYield = std::chrono::microseconds(50);
// Looks for a region's end, or the next region, before a thread takes parts of other shares: about a microsecond. Looking
// at a share takes its line of memory from the thread that works on it.
constexpr int kLooksBeforeHelp = 24;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // some tens of nanoseconds, where `yield` takes one cycle
#endif
}

// Lets other threads run once a wait has lasted; reads the clock now and then alone.
class Patience {
 public:
  // Whether the wait has lasted longer than kSpin.
  bool over() {
    relax();
    if (++looks_ % kLooksBeforeClock != 0) return false;
    const auto now = std::chrono::steady_clock::now();
    if (looks_ == kLooksBeforeClock) start_ = now;
    if (now - start_ > kSpinBeforeYield) std::this_thread::yield();
    return now - start_ > kSpin;
  }
  int looks() const { return looks_; }

 private:
  static constexpr int kLooksBeforeClock = 64;  // most waits are shorter
  std::chrono::steady_clock::time_point start_;
  int looks_ = 0;
};

}  // namespace

Pool::Pool(int threads)
    : threads_(std::max(1, threads)),
      shares_(new Share[static_cast<size_t>(threads_)]),
      signals_(new Signal[static_cast<size_t>((threads_ + kReaders - 1) / kReaders)]) {
  for (int t = 1; t < threads_; ++t) workers_.emplace_back([this, t] { worker(t); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& thread : workers_) thread.join();
}

std::shared_ptr<Pool> Pool::shared(int threads) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<Pool>> pools;
  std::lock_guard<std::mutex> lock(mutex);
  auto pool = pools[threads].lock();
  if (!pool) pools[threads] = pool = std::make_shared<Pool>(threads);
  return pool;
}

void Pool::run_erased(int parts, Erased body, void* self) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  body_ = body;
  self_ = self;
  started_ += static_cast<uint64_t>(parts);
  const uint64_t number = (region_.load(std::memory_order_relaxed) >> kPartBits) + 1;
  const uint64_t region = number << kPartBits | static_cast<uint64_t>(parts);
  region_.store(region, std::memory_order_seq_cst);
  for (int t = 0; t < threads_; t += kReaders)
    signals_[static_cast<size_t>(t / kReaders)].region.store(region, std::memory_order_release);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> sleep_lock(sleep_mutex_);
    wake_.notify_all();
  }
  work(region, 0, 0, false);
  wait_for_parts(region);
}

void Pool::wait_for_parts(uint64_t region) {
  for (Patience patience; !all_done(); patience.over())
    if (patience.looks() == kLooksBeforeHelp) help(region, 0);
}

bool Pool::all_done() const {
  uint64_t done = 0;
  for (int t = 0; t < threads_; ++t) done += shares_[static_cast<size_t>(t)].done.load(std::memory_order_acquire);
  return done == started_;
}

// Runs what is left of a share. `each_counts`: others may be waiting for single parts.
void Pool::work(uint64_t region, int share, int thread, bool each_counts) {
  std::atomic<uint64_t>& done = shares_[static_cast<size_t>(thread)].done;
  uint64_t count = done.load(std::memory_order_relaxed);
  for (int part; claim(region, share, &part);) {
    body_(self_, part, thread);
    ++count;
    if (each_counts) done.store(count, std::memory_order_release);
  }
  if (!each_counts) done.store(count, std::memory_order_release);
}

void Pool::help(uint64_t region, int thread) {
  for (int k = 1; k < threads_; ++k) work(region, (thread + k) % threads_, thread, true);
}

bool Pool::claim(uint64_t region, int share, int* part) {
  const auto parts = static_cast<int64_t>(region & kPartMask);
  const auto first = static_cast<int>(parts * share / threads_), last = static_cast<int>(parts * (share + 1) / threads_);
  std::atomic<uint64_t>& taken = shares_[static_cast<size_t>(share)].taken;
  const uint64_t number = region >> kPartBits;
  for (uint64_t word = taken.load(std::memory_order_acquire);;) {
    if (word >> kPartBits > number) return false;
    const int next = first + (word >> kPartBits == number ? static_cast<int>(word & kPartMask) : 0);
    if (next >= last) return false;
    const uint64_t claimed = number << kPartBits | static_cast<uint64_t>(next + 1 - first);
    if (taken.compare_exchange_weak(word, claimed, std::memory_order_acq_rel, std::memory_order_acquire)) {
      *part = next;
      return true;
    }
  }
}

void Pool::worker(int thread) {
  for (uint64_t last = 0;;) {
    last = wait_for_region(last, thread);
    if (stop_.load(std::memory_order_relaxed)) return;
    work(last, thread, thread, false);
  }
}

uint64_t Pool::wait_for_region(uint64_t last, int thread) {
  const std::atomic<uint64_t>& signal = signals_[static_cast<size_t>(thread / kReaders)].region;
  for (Patience patience;;) {
    const uint64_t region = signal.load(std::memory_order_acquire);
    if (region > last) return region;  // whoever has slept may know more than the signal
    if (patience.over()) return sleep(last);
    if (patience.looks() == kLooksBeforeHelp) help(last, thread);
  }
}

// Until there is another region, or the pool ends.
uint64_t Pool::sleep(uint64_t last) {
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return stop_.load() || region_.load(std::memory_order_seq_cst) != last; });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return region_.load(std::memory_order_acquire);
}

}  // namespace specdec
