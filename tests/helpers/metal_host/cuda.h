// What the CUDA kernels of quantised matrices use of CUDA and of kernels/cuda/prelude.cuh, on top of shim.h: with it their
// text runs on the host as the Metal kernels' does. For tests only.
#define threadIdx thread_position_in_threadgroup
#define blockIdx threadgroup_position_in_grid
#define DEVICE inline
#define SHARED static __attribute__((section("threadgroup_memory")))
#define BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)

struct float4 {
  float x, y, z, w;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline half __ushort_as_half(unsigned short bits) { return std::bit_cast<half>(bits); }
inline float __half2float(half value) { return float(value); }
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
inline uint4 stream16(const void* from) { return *reinterpret_cast<const uint4*>(from); }
namespace specdec {}
using namespace specdec;
struct uint2 {
  unsigned x, y;
};
using half_t = half;
using size_t = std::size_t;
inline float fmaf(float a, float b, float c) { return std::fma(a, b, c); }
inline float erff(float value) { return std::erf(value); }
inline float to_float(float value) { return value; }
inline float to_float(half value) { return float(value); }
inline float silu(float value) { return value / (1.0f + std::exp(-value)); }
inline float lane_sum(float value) {
  for (int mask = 16; mask > 0; mask >>= 1) value += simd_shuffle_xor(value, mask);
  return value;
}
