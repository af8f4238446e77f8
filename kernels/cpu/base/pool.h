// A pool of threads for the short parallel regions inside one forward pass. What runs in them lives elsewhere.
//
// A region has a fixed number of parts, and each thread a contiguous share of them. A thread that has finished its share
// and sees no new region for a few microseconds takes parts of others, so slow or missing threads delay a region by one
// part at most. Which thread runs a part is left to chance, so a region's result must not depend on it.
//
// A region costs a line of memory for every few threads, which they wait for (its number, parts and body), and a line of
// each thread that the caller waits for (parts done): no counter is shared between writers, and no line is read by all.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace specdec {

class Pool {
 public:
  // `threads` counts the caller: 1 starts none.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // The pool of that size that this process shares between models, so that two models never spin against each other.
  static std::shared_ptr<Pool> shared(int threads);

  int threads() const { return threads_; }

  // Memory that a thread is likely to read in a later region.
  struct Range {
    const void* data = nullptr;
    size_t bytes = 0;
  };

  // Runs body(part, thread) for each part in [0, parts), on this thread and the pool's, and returns when all are done.
  // Thread t begins with parts [parts * t / threads(), parts * (t + 1) / threads()), in ascending order.
  // `thread` is below threads() and belongs to one running thread at a time: an index for scratch memory.
  // `body` must not throw, and must not call run.
  // `ahead`, unless null, has a range for each thread. While a thread that ran a part waits, it prefetches its range
  // into its second-level cache.
  template <class Body>
  void run(int parts, Body&& body, const Range* ahead = nullptr) {
    if (parts <= 0) return;
    if (threads_ == 1 || parts == 1) {
      for (int part = 0; part < parts; ++part) body(part, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    run_erased(
        parts, [](void* self, int part, int thread) { (*static_cast<Plain*>(self))(part, thread); },
        const_cast<void*>(static_cast<const void*>(&body)), ahead);
  }

  static constexpr int kMaxParts = (1 << 20) - 1;

 private:
  using Erased = void (*)(void*, int, int);

  // A region's number, from 1 on, and below it 20 bits: in region_ its parts, in a share's word how many of the share's
  // parts are taken. A share is taken part by part by whoever comes, its own thread first; the number makes a claim by a
  // thread that is late for its region fail.
  struct Share {
    alignas(64) std::atomic<uint64_t> taken{0};
    alignas(64) std::atomic<uint64_t> done{0};  // parts of all regions that this share's thread has run
  };

  // The line that some threads wait for: region_, and what it runs. A thread that has claimed a part may read all of
  // it: nothing changes until the part is done.
  static constexpr int kReaders = 4;
  struct Signal {
    alignas(64) std::atomic<uint64_t> region{0};
    std::atomic<Erased> body{nullptr};
    std::atomic<void*> self{nullptr};
    std::atomic<const Range*> ahead{nullptr};
  };
  class Ahead;

  Signal& signal_of(int thread) { return signals_[static_cast<size_t>(thread / kReaders)]; }
  void run_erased(int parts, Erased body, void* self, const Range* ahead);
  void publish(uint64_t region, Erased body, void* self, const Range* ahead);
  void wake_sleepers();
  void wait_for_parts(uint64_t region, Ahead& ahead);
  bool all_done() const;
  void work(uint64_t region, int share, int thread, bool each_counts, Ahead* ahead = nullptr);
  void help(uint64_t region, int thread);
  bool claim(uint64_t region, int share, int* part);
  void worker(int thread);
  uint64_t wait_for_region(uint64_t last, int thread, Ahead& ahead);
  uint64_t sleep(uint64_t last);

  const int threads_;
  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;
  std::unique_ptr<Signal[]> signals_;
  std::mutex run_mutex_;  // one region at a time
  uint64_t started_ = 0;  // parts of all regions
  alignas(64) std::atomic<uint64_t> region_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace specdec
