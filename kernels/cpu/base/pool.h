// A pool of threads for the short parallel regions inside one forward pass. What runs in them lives elsewhere.
//
// A region has a fixed number of parts. Which thread runs a part is left to chance (each thread starts on its own
// contiguous share and then helps the others), so a region's result must not depend on it.
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

  // Runs body(part, thread) for each part in [0, parts), on this thread and the pool's, and returns when all are done.
  // `thread` is below threads() and belongs to one running thread at a time: an index for scratch memory.
  // `body` must not throw, and must not call run.
  template <class Body>
  void run(int parts, Body&& body) {
    if (parts <= 0) return;
    if (threads_ == 1 || parts == 1) {
      for (int part = 0; part < parts; ++part) body(part, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    run_erased(
        parts, [](void* self, int part, int thread) { (*static_cast<Plain*>(self))(part, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  static constexpr int kMaxParts = (1 << 20) - 1;

 private:
  using Erased = void (*)(void*, int, int);

  // One thread's share of a region: region number (24 bits), end (20 bits), next part (20 bits). The region number
  // makes a claim by a thread that is late for its region fail.
  struct alignas(64) Share {
    std::atomic<uint64_t> word{0};
  };

  void run_erased(int parts, Erased body, void* self);
  int work(uint32_t region, int thread);
  bool claim(Share& share, uint32_t region, int* part);
  void worker(int thread);
  uint32_t wait_for_region(uint32_t last);

  const int threads_;
  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;
  std::mutex run_mutex_;  // one region at a time
  Erased body_ = nullptr;
  void* self_ = nullptr;
  alignas(64) std::atomic<uint32_t> region_{0};
  alignas(64) std::atomic<int> remaining_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace specdec
