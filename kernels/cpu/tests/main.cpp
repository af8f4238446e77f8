// Runs every kernel test, or those whose names contain the argument; exit code 1 when a check fails.
#include "check.h"

int main(int count, char** arguments) {
  std::string sets;
  for (const auto& name : specdec::supported_isas()) sets += " " + name;
  std::printf("instruction sets:%s\n", sets.c_str());
  for (const auto& test : specdec::test::all_tests()) {
    if (count > 1 && std::string(test.name).find(arguments[1]) == std::string::npos) continue;
    const int before = specdec::test::failures();
    test.run();
    std::printf("%s %s\n", specdec::test::failures() == before ? "ok    " : "FAILED", test.name);
  }
  std::printf("%d checks, %d failed\n", specdec::test::checks(), specdec::test::failures());
  return specdec::test::failures() == 0 ? 0 : 1;
}
