// Parallel regions: every part runs once, on one thread at a time, and their end is seen; whatever sleeps or comes late.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "pool.h"

namespace specdec::test {
namespace {

// Whether every part of some regions ran once in each, and no two threads had one index at a time.
bool regions_run(Pool& pool, int parts, int regions) {
  std::vector<int> runs(static_cast<size_t>(parts));
  std::vector<std::atomic<int>> busy(static_cast<size_t>(pool.threads()));
  std::atomic<int> clashes{0};
  for (int region = 0; region < regions; ++region)
    pool.run(parts, [&](int part, int thread) {
      if (busy[static_cast<size_t>(thread)].fetch_add(1) != 0) ++clashes;
      ++runs[static_cast<size_t>(part)];  // no other thread may write it, and the next region has to see it
      busy[static_cast<size_t>(thread)].fetch_sub(1);
    });
  return clashes == 0 && std::all_of(runs.begin(), runs.end(), [&](int count) { return count == regions; });
}

THREADED_TEST(pool_runs_every_part_once) {
  for (const int threads : {1, 2, 3, 5, 9, 16}) {
    Pool pool(threads);
    for (const int parts : {1, 2, 3, 7, 16, 33}) CHECK(regions_run(pool, parts, 50), std::to_string(parts) + " parts, " + std::to_string(threads) + " threads");
  }
}

THREADED_TEST(pool_wakes_threads_that_sleep) {
  Pool pool(4);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK(regions_run(pool, 9, 3), "after a pause");
  }
}

// A part that takes long keeps its thread; the parts behind it in that share are for others.
THREADED_TEST(pool_takes_the_parts_of_a_slow_thread) {
  Pool pool(2);
  std::atomic<int> done{0};
  std::atomic<bool> late{false};
  pool.run(8, [&](int part, int) {
    if (part == 0) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      while (done < 7 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
      late = done < 7;
    }
    ++done;
  });
  CHECK(done == 8, "parts are missing");
  CHECK(!late, "no thread took the parts of a slow one");
}

THREADED_TEST(pool_takes_regions_of_several_callers_in_turn) {
  Pool pool(3);
  std::vector<std::thread> callers;
  std::atomic<int> good{0};
  for (int caller = 0; caller < 3; ++caller) callers.emplace_back([&] { good += regions_run(pool, 5, 100) ? 1 : 0; });
  for (auto& caller : callers) caller.join();
  CHECK(good == 3, "callers disturb each other");
}

}  // namespace
}  // namespace specdec::test
