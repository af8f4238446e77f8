#include "pool.h"

#include <algorithm>
#include <chrono>
#include <map>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace specdec {
namespace {

constexpr uint32_t kRegionMask = 0xFFFFFF;
// Longer than the pause between two passes of a generation, short enough that an idle program uses no processor.
constexpr auto kSpin = std::chrono::microseconds(200);
constexpr auto kSpinBeforeYield = std::chrono::microseconds(50);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline uint64_t share_word(uint32_t region, int next, int end) {
  return (static_cast<uint64_t>(region & kRegionMask) << 40) | (static_cast<uint64_t>(end) << 20) |
         static_cast<uint64_t>(next);
}

}  // namespace

Pool::Pool(int threads) : threads_(std::max(1, threads)), shares_(new Share[static_cast<size_t>(threads_)]) {
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
  remaining_.store(parts, std::memory_order_relaxed);
  const uint32_t region = region_.load(std::memory_order_relaxed) + 1;
  for (int t = 0; t < threads_; ++t) {
    const auto first = static_cast<int>(static_cast<int64_t>(parts) * t / threads_);
    const auto last = static_cast<int>(static_cast<int64_t>(parts) * (t + 1) / threads_);
    shares_[static_cast<size_t>(t)].word.store(share_word(region, first, last), std::memory_order_release);
  }
  region_.store(region, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> sleep_lock(sleep_mutex_);
    wake_.notify_all();
  }
  const int done = work(region, 0);
  if (remaining_.fetch_sub(done, std::memory_order_acq_rel) == done) return;
  const auto start = std::chrono::steady_clock::now();
  for (int spins = 0; remaining_.load(std::memory_order_acquire) != 0; ++spins) {
    relax();
    if (spins % 64 == 63 && std::chrono::steady_clock::now() - start > kSpinBeforeYield) std::this_thread::yield();
  }
}

// Own share first, then whatever the others have left.
int Pool::work(uint32_t region, int thread) {
  int done = 0;
  for (int k = 0; k < threads_; ++k) {
    Share& share = shares_[static_cast<size_t>((thread + k) % threads_)];
    for (int part; claim(share, region, &part); ++done) body_(self_, part, thread);
  }
  return done;
}

bool Pool::claim(Share& share, uint32_t region, int* part) {
  uint64_t word = share.word.load(std::memory_order_acquire);
  for (;;) {
    const auto next = static_cast<int>(word & 0xFFFFF), end = static_cast<int>((word >> 20) & 0xFFFFF);
    if ((word >> 40) != (region & kRegionMask) || next >= end) return false;
    if (share.word.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      *part = next;
      return true;
    }
  }
}

void Pool::worker(int thread) {
  for (uint32_t last = 0;;) {
    last = wait_for_region(last);
    if (stop_.load(std::memory_order_relaxed)) return;
    const int done = work(last, thread);
    if (done > 0) remaining_.fetch_sub(done, std::memory_order_acq_rel);
  }
}

uint32_t Pool::wait_for_region(uint32_t last) {
  const auto start = std::chrono::steady_clock::now();
  for (int spins = 0;; ++spins) {
    const uint32_t region = region_.load(std::memory_order_acquire);
    if (region != last) return region;
    relax();
    if (spins % 64 == 63 && std::chrono::steady_clock::now() - start > kSpin) break;
  }
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return stop_.load() || region_.load(std::memory_order_seq_cst) != last; });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return region_.load(std::memory_order_acquire);
}

}  // namespace specdec
