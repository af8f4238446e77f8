// Enough of the Metal standard library to run a compute kernel on the host: types, math, simdgroups of 32, threadgroup
// memory and barriers. For tests only. How threads of a threadgroup run, and files, are in shim.cpp, which is compiled
// once: little is included here, because every kernel is compiled against it.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using uint = unsigned;
using ushort = unsigned short;
using uchar = unsigned char;
using ulong = unsigned long;
using half = _Float16;
using float16_t = half;

struct bfloat16_t {  // round to nearest even, as the hardware does
  std::uint16_t bits = 0;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {
    const std::uint32_t raw = std::bit_cast<std::uint32_t>(value);
    bits = std::uint16_t((raw + 0x7fff + ((raw >> 16) & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(std::uint32_t(bits) << 16); }
};

struct uint3 {
  uint x, y, z;
};

template <typename To, typename From>
To as_type(From value) {
  return std::bit_cast<To>(value);
}
using std::abs;
using std::exp;
using std::max;
using std::min;
using std::sqrt;
using std::tanh;
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

namespace shim {

constexpr int LANES = 32;

#ifdef SHIM_THREADS
extern thread_local int self;
#else
extern int self;  // number of the thread that runs, in its threadgroup
#endif
extern std::uint32_t* slots;  // a word for each thread of the threadgroup

void wait_lanes();  // until all lanes of the simdgroup have come
void wait_all();    // until all threads of the threadgroup have
void check_memory(std::size_t bytes);
char* read_file(const char* path, std::size_t& size);
void write_file(const char* path, const char* data, std::size_t size);

// Run `body(data, thread)` in every thread of a threadgroup.
void run_threads(int threads, void (*body)(const void* data, int thread), const void* data);
template <typename Body>
void run_group(int threads, const Body& body) {
  run_threads(threads, [](const void* data, int thread) { (*static_cast<const Body*>(data))(thread); }, &body);
}

// What lane `from` put in: everyone writes, meets, reads, meets again.
template <typename T>
T exchange(T value, int from) {
  static_assert(sizeof(T) == 4);
  slots[self] = std::bit_cast<std::uint32_t>(value);
  wait_lanes();
  const T other = std::bit_cast<T>(slots[self / LANES * LANES + from]);
  wait_lanes();
  return other;
}
template <typename T, typename Join>
T reduce(T value, Join join) {
  slots[self] = std::bit_cast<std::uint32_t>(value);
  wait_lanes();
  const int first = self / LANES * LANES;
  T total = std::bit_cast<T>(slots[first]);
  for (int lane = 1; lane < LANES; ++lane) total = join(total, std::bit_cast<T>(slots[first + lane]));
  wait_lanes();
  return total;
}

}  // namespace shim

inline void threadgroup_barrier(mem_flags) { shim::wait_all(); }
inline void simdgroup_barrier(mem_flags) { shim::wait_lanes(); }
template <typename T>
T simd_shuffle_xor(T value, ushort mask) {
  return shim::exchange(value, (shim::self % shim::LANES) ^ mask);
}
template <typename T>
T simd_shuffle_up(T value, ushort delta) {
  const int lane = shim::self % shim::LANES;
  return shim::exchange(value, lane >= delta ? lane - delta : lane);
}
template <typename T>
T simd_sum(T value) {
  return shim::reduce(value, [](T a, T b) { return a + b; });
}
template <typename T>
T simd_max(T value) {
  return shim::reduce(value, [](T a, T b) { return a > b ? a : b; });
}

// One address space. Threadgroup memory is static, shared by all fibers or threads, in a section of its own, so that
// its size is known.
#define ONE_ADDRESS_SPACE
#define SHARED_POINTER(T) T*
#define device
#define constant
#define thread
#define threadgroup static __attribute__((section("threadgroup_memory")))
#define kernel
