// What the CUDA kernels of tests need of the language, as C++: see cuda_host_kernels.py. A thread is a fiber; those of a
// block and of a warp wait for each other where the kernel says so.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __trap std::abort

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Place { int x, y; };
struct __half { _Float16 v; };
struct __half2 { __half x, y; };
struct __nv_bfloat16 { unsigned short v; };

inline float __int_as_float(int i) { float f; std::memcpy(&f, &i, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { return int(__float_as_uint(f)); }
inline float __uint_as_float(unsigned u) { return __int_as_float(int(u)); }
inline float __half2float(__half h) { return float(h.v); }
inline __half __float2half_rn(float f) { return __half{_Float16(f)}; }
inline float2 __half22float2(__half2 h) { return {float(h.x.v), float(h.y.v)}; }
inline __half2 __float2half2_rn(float f) { return {__float2half_rn(f), __float2half_rn(f)}; }
inline __half2 __hsub2(__half2 a, __half2 b) {
  return {__half{_Float16(float(a.x.v) - float(b.x.v))}, __half{_Float16(float(a.y.v) - float(b.y.v))}};
}
inline float __bfloat162float(__nv_bfloat16 b) { return __int_as_float(int(unsigned(b.v) << 16)); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  unsigned u = __float_as_uint(f);
  u += 0x7fff + (u >> 16 & 1);
  return {static_cast<unsigned short>(u >> 16)};
}
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
inline void __threadfence() {}
inline void __threadfence_system() {}
inline unsigned atomicAdd(unsigned* p, unsigned v) { const unsigned before = *p; *p += v; return before; }

extern Place threadIdx, blockIdx;
extern uint4* shared_of_block;
void let_others_run();
void __syncthreads();
void __syncwarp();
const unsigned* of_all_lanes(unsigned value);  // what each lane of the warp gives

inline float __shfl_xor_sync(unsigned, float v, int mask) {
  return __int_as_float(int(of_all_lanes(__float_as_uint(v))[threadIdx.x % 32 ^ mask]));
}
inline int __shfl_xor_sync(unsigned, int v, int mask) { return int(of_all_lanes(unsigned(v))[threadIdx.x % 32 ^ mask]); }
inline int __shfl_up_sync(unsigned, int v, int delta) {
  const int lane = threadIdx.x % 32;
  return int(of_all_lanes(unsigned(v))[lane >= delta ? lane - delta : lane]);
}
template <class T> T __shfl_sync(unsigned, T v, int lane) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  bits = of_all_lanes(bits)[lane & 31];
  std::memcpy(&v, &bits, 4);
  return v;
}
inline unsigned __shfl_xor_sync(unsigned, unsigned v, int mask) { return of_all_lanes(v)[threadIdx.x % 32 ^ mask]; }
inline int __float2int_rn(float f) { return int(std::nearbyint(f)); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
  const std::uint64_t both = std::uint64_t(b) << 32 | a;
  unsigned made = 0;
  for (int i = 0; i < 4; ++i) made |= unsigned(both >> (8 * (which >> (4 * i) & 7)) & 255) << (8 * i);
  return made;
}
inline int __reduce_add_sync(unsigned, int v) {
  const unsigned* all = of_all_lanes(unsigned(v));
  int sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += int(all[lane]);
  return sum;
}
inline int __reduce_max_sync(unsigned, int v) {
  const unsigned* all = of_all_lanes(unsigned(v));
  int most = int(all[0]);
  for (int lane = 1; lane < 32; ++lane) most = int(all[lane]) > most ? int(all[lane]) : most;
  return most;
}

// Addresses in shared memory count from the block's own.
inline unsigned __cvta_generic_to_shared(const void* p) {
  return unsigned(static_cast<const char*>(p) - reinterpret_cast<const char*>(shared_of_block));
}
inline char* shared_at(unsigned at) { return reinterpret_cast<char*>(shared_of_block) + at; }
// A counter says how many of its phases have ended, how many arrivals a phase takes, and how many it still lacks. A copy by
// the bulk engine is there at once, and ends a phase.
struct Counter { std::uint32_t ended; std::uint16_t expected, lacking; };
inline Counter& counter_at(unsigned at) { return *reinterpret_cast<Counter*>(shared_at(at)); }
inline void init_counter(unsigned at, int count) { counter_at(at) = {0, std::uint16_t(count), std::uint16_t(count)}; }
inline void arrive_at(unsigned at, int count) {
  Counter& counter = counter_at(at);
  if (count > counter.lacking) std::abort();
  if (counter.lacking -= count) return;
  ++counter.ended, counter.lacking = counter.expected;
}
inline bool counter_has_come(unsigned at, unsigned parity) {
  return (reinterpret_cast<volatile Counter*>(shared_at(at))->ended & 1) != parity;
}
inline void copy_bulk(unsigned to, const void* from, int count, unsigned counter) {
  if (count % 16 || to % 16) std::abort();  // arrays of the host begin anywhere
  std::memcpy(shared_at(to), from, count);
  arrive_at(counter, 1);
}
inline void wait_counter(unsigned at, unsigned parity) {
  while (!counter_has_come(at, parity)) let_others_run();
}
// Words that lie next to each other, one after the other.
template <class... T>
void put_words(void* to, T... words) {
  int at = 0;
  ((static_cast<volatile unsigned*>(to)[at++] = words), ...);
}
template <class... T>
void take_words(const void* from, T&... words) {
  int at = 0;
  ((words = static_cast<const volatile unsigned*>(from)[at++]), ...);
}
void meet_some(int threads);  // a barrier of some of a block's threads

inline float to_number(__half v) { return float(v.v); }
inline float to_number(__nv_bfloat16 v) { return __bfloat162float(v); }
// mma.m16n8k16: lane (g, q) has rows g and g + 8 of the weights, column g of the activations, columns 2 q and 2 q + 1 of
// the sums.
template <class T>
void tensor_product(float (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1, T) {
  unsigned weights[4][32], rows[2][32];
  for (int r = 0; r < 4; ++r) std::memcpy(weights[r], of_all_lanes(w[r]), sizeof weights[r]);
  std::memcpy(rows[0], of_all_lanes(x0), sizeof rows[0]);
  std::memcpy(rows[1], of_all_lanes(x1), sizeof rows[1]);
  auto element = [](unsigned pair, int which) {
    const unsigned short bits = which ? pair >> 16 : pair & 65535;
    T value;
    std::memcpy(&value, &bits, 2);
    return double(to_number(value));
  };
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int e = 0; e < 4; ++e) {
    double total = sum[e];
    for (int half = 0; half < 2; ++half) {
      for (int other = 0; other < 4; ++other) {
        for (int which = 0; which < 2; ++which) {
          total += element(weights[e / 2 + 2 * half][g * 4 + other], which) *
                   element(rows[half][(2 * q + e % 2) * 4 + other], which);
        }
      }
    }
    sum[e] = float(total);
  }
}
// mma.m16n8k32 of bytes, unsigned times signed: lane (g, q) has inputs 4 q .. 4 q + 3 of rows g and g + 8, then inputs 16
// further.
inline void tensor_product_of_bytes(int (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1) {
  unsigned weights[4][32], rows[2][32];
  for (int r = 0; r < 4; ++r) std::memcpy(weights[r], of_all_lanes(w[r]), sizeof weights[r]);
  std::memcpy(rows[0], of_all_lanes(x0), sizeof rows[0]);
  std::memcpy(rows[1], of_all_lanes(x1), sizeof rows[1]);
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int e = 0; e < 4; ++e) {
    for (int k = 0; k < 32; ++k) {
      const int half = k / 16, other = k % 16 / 4, byte = k % 4 * 8;
      const auto x = static_cast<signed char>(rows[half][(2 * q + e % 2) * 4 + other] >> byte);
      sum[e] += int(weights[e / 2 + 2 * half][g * 4 + other] >> byte & 255) * x;
    }
  }
}
