// Runs every kernel test (under the thread sanitizer, those that start threads), or those whose names contain the
// argument; exit code 1 when a check fails.
#include <ctime>

#include "check.h"

#if defined(SPECDEC_THREADS_ONLY)
constexpr bool kThreadsOnly = true;
#else
constexpr bool kThreadsOnly = false;
#endif

int main(int count, char** arguments) {
  std::string sets;
  for (const auto& name : specdec::supported_isas()) sets += " " + name;
  std::printf("instruction sets:%s\n", sets.c_str());
  for (const auto& test : specdec::test::all_tests()) {
    if (kThreadsOnly && !test.threads) continue;
    if (count > 1 && std::string(test.name).find(arguments[1]) == std::string::npos) continue;
    const int before = specdec::test::failures();
    const std::clock_t start = std::clock();
    test.run();
    std::printf("%s %s, %.1f processor seconds\n", specdec::test::failures() == before ? "ok    " : "FAILED", test.name,
                static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    std::fflush(stdout);  // what ran before a sanitizer stops the program
  }
  std::printf("%d checks, %d failed\n", specdec::test::checks(), specdec::test::failures());
  return specdec::test::failures() == 0 ? 0 : 1;
}
