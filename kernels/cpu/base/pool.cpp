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
// A thread that waits longer takes parts of other shares. Reading a share's word takes its line of memory from the
// thread that works on it.
constexpr auto kSpinBeforeHelp = std::chrono::microseconds(2);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // some tens of nanoseconds, where `yield` takes one cycle
#endif
}

// Decides what a waiting thread does next; reads the clock only now and then.
class Patience {
 public:
  enum class Next { look, help, sleep };

  // `help` once, `sleep` when the wait has lasted longer than kSpin. Lets other threads run before that.
  Next next() {
    relax();
    if (++looks_ % kLooksBetweenClocks != 0) return Next::look;
    const auto now = std::chrono::steady_clock::now();
    if (looks_ == kLooksBetweenClocks) start_ = now;
    const auto waited = now - start_;
    if (waited > kSpinBeforeYield) std::this_thread::yield();
    if (waited > kSpin) return Next::sleep;
    if (helped_ || waited <= kSpinBeforeHelp) return Next::look;
    helped_ = true;
    return Next::help;
  }

 private:
  static constexpr int kLooksBetweenClocks = 16;
  std::chrono::steady_clock::time_point start_;
  int looks_ = 0;
  bool helped_ = false;
};

}  // namespace

// The rest of a range that a thread prefetches while it waits.
class Pool::Ahead {
 public:
  // Returns whether anything was left to prefetch.
  bool step() {
    if (left_ == 0) return false;
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(at_ + 64 * line, 0, 2);
    at_ += 64 * kLines;
    left_ -= std::min<size_t>(left_, 64 * kLines);
    return true;
  }
  void take(const Range& range) {
    at_ = static_cast<const char*>(range.data);
    left_ = range.bytes;
  }

 private:
  static constexpr int kLines = 4;
  const char* at_ = nullptr;
  size_t left_ = 0;
};

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

void Pool::run_erased(int parts, Erased body, void* self, const Range* ahead) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  started_ += static_cast<uint64_t>(parts);
  const uint64_t number = (region_.load(std::memory_order_relaxed) >> kPartBits) + 1;
  const uint64_t region = number << kPartBits | static_cast<uint64_t>(parts);
  // Claimed beforehand, as a claim waits until all that was written before has arrived.
  int first;
  const bool own = claim(region, 0, &first);
  publish(region, body, self, ahead);
  if (sleepers_.load(std::memory_order_relaxed) > 0) wake_sleepers();
  std::atomic<uint64_t>& done = shares_[0].done;
  if (own) {
    body(self, first, 0);
    done.store(done.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  Ahead rest;
  work(region, 0, 0, false);
  if (ahead != nullptr) rest.take(ahead[0]);
  // A thread that goes to sleep counts itself, then looks for a region. It and the caller both write the counter, so
  // one of the two sees the other.
  if (sleepers_.fetch_add(0, std::memory_order_acq_rel) > 0) wake_sleepers();
  wait_for_parts(region, rest);
}

void Pool::publish(uint64_t region, Erased body, void* self, const Range* ahead) {
  for (int t = 0; t < threads_; t += kReaders) {
    Signal& signal = signal_of(t);
    signal.body.store(body, std::memory_order_relaxed);
    signal.self.store(self, std::memory_order_relaxed);
    signal.ahead.store(ahead, std::memory_order_relaxed);
    signal.region.store(region, std::memory_order_release);
  }
  region_.store(region, std::memory_order_release);
}

void Pool::wake_sleepers() {
  std::lock_guard<std::mutex> lock(sleep_mutex_);
  wake_.notify_all();
}

void Pool::wait_for_parts(uint64_t region, Ahead& ahead) {
  for (Patience patience; !all_done();)
    if (!ahead.step() && patience.next() == Patience::Next::help) help(region, 0);
}

bool Pool::all_done() const {
  uint64_t done = 0;
  for (int t = 0; t < threads_; ++t) done += shares_[static_cast<size_t>(t)].done.load(std::memory_order_acquire);
  return done == started_;
}

// Runs what is left of a share. `each_counts`: others may be waiting for single parts.
void Pool::work(uint64_t region, int share, int thread, bool each_counts, Ahead* ahead) {
  std::atomic<uint64_t>& done = shares_[static_cast<size_t>(thread)].done;
  const Signal& signal = signal_of(thread);
  Erased body = nullptr;
  void* self = nullptr;
  uint64_t count = done.load(std::memory_order_relaxed);
  for (int part; claim(region, share, &part);) {
    if (body == nullptr) {
      body = signal.body.load(std::memory_order_relaxed);
      self = signal.self.load(std::memory_order_relaxed);
      const Range* ranges = signal.ahead.load(std::memory_order_relaxed);
      if (ahead != nullptr && ranges != nullptr) ahead->take(ranges[thread]);
    }
    body(self, part, thread);
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
  Ahead ahead;
  for (uint64_t last = 0;;) {
    last = wait_for_region(last, thread, ahead);
    if (stop_.load(std::memory_order_relaxed)) return;
    work(last, thread, thread, false, &ahead);
  }
}

uint64_t Pool::wait_for_region(uint64_t last, int thread, Ahead& ahead) {
  const std::atomic<uint64_t>& signal = signal_of(thread).region;
  for (Patience patience;;) {
    const uint64_t region = signal.load(std::memory_order_acquire);
    if (region != last) return region;
    if (ahead.step()) continue;
    const Patience::Next next = patience.next();
    if (next == Patience::Next::sleep) return sleep(last);
    if (next == Patience::Next::help) help(last, thread);
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
