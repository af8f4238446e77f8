// Parallel regions: every part runs once, on one thread at a time, and their end is seen; whatever sleeps or comes late.
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "pool.h"

namespace specdec::test {
namespace {

// Runs regions of `parts` parts and counts how often each part runs, and threads that share an index.
void check_regions(Pool& pool, int parts, int regions) {
  std::vector<int> runs(static_cast<size_t>(parts));
  std::vector<std::atomic<int>> busy(static_cast<size_t>(pool.threads()));
  std::atomic<int> clashes{0};
  for (int region = 0; region < regions; ++region)
    pool.run(parts, [&](int part, int thread) {
      if (busy[static_cast<size_t>(thread)].fetch_add(1) != 0) ++clashes;
      ++runs[static_cast<size_t>(part)];  // no other thread may write it, and the next region has to see it
      busy[static_cast<size_t>(thread)].fetch_sub(1);
    });
  CHECK(clashes == 0, "two threads have one index");
  for (const int count : runs) CHECK(count == regions, "a part ran " + std::to_string(count) + " times in " + std::to_string(regions) + " regions");
}

THREADED_TEST(pool_runs_every_part_once) {
  for (const int threads : {1, 2, 3, 5, 9, 16}) {
    Pool pool(threads);
    for (const int parts : {1, 2, 3, 7, 16, 33}) check_regions(pool, parts, 50);
  }
}

THREADED_TEST(pool_wakes_threads_that_sleep) {
  Pool pool(4);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    check_regions(pool, 9, 3);
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
  for (int caller = 0; caller < 3; ++caller) callers.emplace_back([&] { check_regions(pool, 5, 100); });
  for (auto& caller : callers) caller.join();
}

}  // namespace
}  // namespace specdec::test
