// A test runner of a few lines: the kernel tests run where there is no Python (other processors, sanitizers).
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "half.h"

namespace specdec::test {

// Sanitizers and emulators make tests take ten to a hundred times as long: there, loops run over fewer and smaller cases
// that meet the same edges.
#if defined(SPECDEC_FEW_CASES)
constexpr bool kFewCases = true;
#else
constexpr bool kFewCases = false;
#endif
template <class T>
std::vector<T> cases(std::vector<T> all, std::vector<T> few) {
  return kFewCases ? std::move(few) : std::move(all);
}

struct Test {
  const char* name;
  void (*run)();
  bool threads;  // for the thread sanitizer too
};

inline std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline int& checks() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*run)(), bool threads) { all_tests().push_back({name, run, threads}); }
};

inline bool holds(bool good) {
  ++checks();
  return good;
}

inline void fail(const std::string& what, const char* file, int line) {
  if (++failures() <= 20) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

#define SPECDEC_TEST(name, threads)                                             \
  static void name();                                                           \
  static const ::specdec::test::Register register_##name(#name, name, threads); \
  static void name()
#define TEST(name) SPECDEC_TEST(name, false)
#define THREADED_TEST(name) SPECDEC_TEST(name, true)
// What failed is put together only then: most loops take less time than that.
#define CHECK(good, what) (::specdec::test::holds(good) ? void() : ::specdec::test::fail((what), __FILE__, __LINE__))

inline std::vector<float> random_floats(size_t count, uint32_t seed, float scale = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (auto& value : values) value = normal(engine);
  return values;
}

inline float value_of(uint16_t bits, Dtype dtype) {
  return dtype == Dtype::float16 ? half_to_float(bits) : bits_to_float(static_cast<uint32_t>(bits) << 16);
}

// Random weights, with some denormal, zero and large ones among them.
inline std::vector<uint16_t> random_bits(size_t count, Dtype dtype, uint32_t seed) {
  const auto values = random_floats(count, seed);
  std::vector<uint16_t> bits(count);
  for (size_t i = 0; i < count; ++i) {
    const float scale = i % 41 == 0 ? 1e-6F : i % 43 == 0 ? 100.0F : i % 47 == 0 ? 0.0F : 0.05F;
    const float value = values[i] * scale;
    bits[i] = dtype == Dtype::float16 ? float_to_half(value) : static_cast<uint16_t>(float_to_bits(value) >> 16);
  }
  return bits;
}

inline bool same_bits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}

// The tables of every instruction set that this machine can run.
inline std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> found;
  for (const auto& name : supported_isas()) found.push_back(&kernels_for(name));
  return found;
}

}  // namespace specdec::test
