// Enough of CUDA to run a step in one kernel on the host: types, intrinsics, tensor-core products, lanes, blocks and
// barriers over the grid. Every thread of the grid is a fiber. For tests only.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
using std::max;
using std::min;

struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct __half2 {
  __half x, y;
};
inline float __half2float(__half h) { return float(h.value); }
inline __half __float2half_rn(float f) { return __half{_Float16(f)}; }
inline float __bfloat162float(__nv_bfloat16 h) { return std::bit_cast<float>(std::uint32_t(h.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const auto raw = std::bit_cast<std::uint32_t>(f);
  return {std::uint16_t((raw + 0x7fff + ((raw >> 16) & 1)) >> 16)};
}
inline float2 __half22float2(__half2 h) { return {float(h.x.value), float(h.y.value)}; }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __popc(unsigned word) { return std::popcount(word); }
inline int __ffs(unsigned word) { return word ? 1 + std::countr_zero(word) : 0; }
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
inline unsigned atomicAdd(unsigned* to, unsigned value) {
  const unsigned before = *to;
  *to += value;
  return before;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t both = std::uint64_t(b) << 32 | a;
  unsigned made = 0;
  for (int i = 0; i < 4; ++i) made |= unsigned(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return made;
}

namespace host {

extern int self, threads_of_block;    // the fiber that runs, in the grid
extern int first_block, blocks;       // of the grid, that run
extern int lines, layers;             // blocks of the grid along y and z: they are numbered by z, then y, then x
extern std::vector<char*> shared;     // memory of every block
extern std::uint32_t *slots, *tiles;  // a word for each fiber, six for each in products

void wait_lanes();
void wait_block();
void wait_pair();  // 64 threads, from a multiple of 64 on
void wait_grid();
void run(int grid, int threads, std::size_t shared_bytes, bool backwards, void (*body)());

template <typename T>
T from_lane(T value, int lane) {
  slots[self] = std::bit_cast<std::uint32_t>(value);
  wait_lanes();
  const T other = std::bit_cast<T>(slots[self / 32 * 32 + lane]);
  wait_lanes();
  return other;
}
template <typename T, typename Join>
T reduce(T value, Join join) {
  slots[self] = std::bit_cast<std::uint32_t>(value);
  wait_lanes();
  T total = std::bit_cast<T>(slots[self / 32 * 32]);
  for (int lane = 1; lane < 32; ++lane) total = join(total, std::bit_cast<T>(slots[self / 32 * 32 + lane]));
  wait_lanes();
  return total;
}

// mma.m16n8k16 of float16 or bfloat16: registers of a lane (g, q) as the instruction has them.
template <bool BFLOAT>
void multiply_tile(float (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1) {
  std::uint32_t* held = tiles + self / 32 * 192;
  const int lane = self % 32, g = lane / 4, q = lane % 4;
  for (int i = 0; i < 4; ++i) held[lane * 6 + i] = w[i];
  held[lane * 6 + 4] = x0, held[lane * 6 + 5] = x1;
  wait_lanes();
  auto half = [](std::uint32_t word, int i) {
    const auto bits = std::uint16_t(word >> (16 * i));
    return BFLOAT ? std::bit_cast<float>(std::uint32_t(bits) << 16) : float(std::bit_cast<_Float16>(bits));
  };
  for (int e = 0; e < 4; ++e) {
    const int row = g + e / 2 * 8, column = 2 * q + e % 2;
    float total = 0;
    for (int k = 0; k < 16; ++k) {
      const int other = k % 8 / 2;
      total += half(held[(row % 8 * 4 + other) * 6 + row / 8 + k / 8 * 2], k % 2) *
               half(held[(column * 4 + other) * 6 + 4 + k / 8], k % 2);
    }
    sum[e] += total;
  }
  wait_lanes();
}

// mma.m16n8k16 or .m16n8k32 of unsigned weights and signed activations, bytes.
template <int HALVES>
void multiply_bytes(int (&sum)[4], const unsigned* w, const unsigned* x) {
  std::uint32_t* held = tiles + self / 32 * 192;
  const int lane = self % 32, g = lane / 4, q = lane % 4;
  for (int i = 0; i < 2 * HALVES; ++i) held[lane * 6 + i] = w[i];
  for (int i = 0; i < HALVES; ++i) held[lane * 6 + 4 + i] = x[i];
  wait_lanes();
  for (int e = 0; e < 4; ++e) {
    const int row = g + e / 2 * 8, column = 2 * q + e % 2;
    for (int k = 0; k < 16 * HALVES; ++k) {
      const std::uint32_t weights = held[(row % 8 * 4 + k % 16 / 4) * 6 + row / 8 + k / 16 * 2];
      const std::uint32_t inputs = held[(column * 4 + k % 16 / 4) * 6 + 4 + k / 16];
      sum[e] += int(weights >> (8 * (k % 4)) & 255) * std::int8_t(inputs >> (8 * (k % 4)));
    }
  }
  wait_lanes();
}

}  // namespace host

struct ThreadIndex {
  struct {
    operator unsigned() const { return host::self % host::threads_of_block; }
  } x;
};
struct BlockIndex {
  static unsigned number() { return host::first_block + host::self / host::threads_of_block; }
  struct {
    operator unsigned() const { return number() / host::layers / host::lines; }
  } x;
  struct {
    operator unsigned() const { return number() / host::layers % host::lines; }
  } y;
  struct {
    operator unsigned() const { return number() % host::layers; }
  } z;
};
struct BlockSize {
  struct {
    operator unsigned() const { return host::threads_of_block; }
  } x;
};
struct GridSize {
  struct {
    operator unsigned() const { return host::blocks / host::layers / host::lines; }
  } x;
  struct {
    operator unsigned() const { return host::lines; }
  } y;
};
static ThreadIndex threadIdx;
static BlockIndex blockIdx;
static BlockSize blockDim;
static GridSize gridDim;
inline void __syncthreads() { host::wait_block(); }
inline void __syncwarp() { host::wait_lanes(); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return host::from_lane(value, host::self % 32 ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = host::self % 32;
  return host::from_lane(value, lane >= delta ? lane - delta : lane);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return host::from_lane(value, lane & 31);
}
inline int __reduce_add_sync(unsigned, int value) {
  return host::reduce(value, [](int a, int b) { return a + b; });
}
inline int __reduce_max_sync(unsigned, int value) {
  return host::reduce(value, [](int a, int b) { return a > b ? a : b; });
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return host::reduce(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return host::reduce(value, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
inline int __float2int_rn(float value) { return int(std::nearbyint(value)); }
inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  return host::reduce(value, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  return __reduce_or_sync(mask, unsigned(value) << host::self % 32);
}
