// What every CUDA kernel here may use: names that read alike in kernels/metal/prelude.metal, sums in a fixed order, and
// the choice of tiers. Sizes are constants that specdec/runtimes/mlx/kernels.py writes in front of a body.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define BARRIER() __syncthreads()
#define WARP_BARRIER() __syncwarp()
#define EVERY_LANE 0xffffffffu
#define MINUS_INFINITY __int_as_float(0xff800000)

namespace specdec {

using half_t = __half;
using bfloat_t = __nv_bfloat16;

DEVICE float to_float(__half value) { return __half2float(value); }
DEVICE float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
DEVICE float to_float(float value) { return value; }

// What other blocks may have written since this kernel began.
DEVICE float4 load_float4(const float* from) { return __ldcg(reinterpret_cast<const float4*>(from)); }

// Counts the blocks that have come to a point by themselves: whether this one is the last of `expected`, which sees what
// all of them wrote before and resets the counter for the next time, after a grid barrier.
DEVICE bool comes_last(unsigned* counter, int expected) {
  if (expected == 1) return true;
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  const bool last = before + 1 == unsigned(expected);
  if (last) *counter = 0;
  return last;
}

// Activations enter a multiplication in 16 bits: float16 as one part, bfloat16 as two that add up to 16 bits of
// mantissa. float16 saturates, so that no activation becomes infinite. For quantised matrices they stay as they are.
DEVICE void put_activation(__half* to, int row, int width, int i, float value) {
  to[(size_t)row * width + i] = __float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f));
}
DEVICE void put_activation(__nv_bfloat16* to, int row, int width, int i, float value) {
  const __nv_bfloat16 high = __float2bfloat16_rn(value);
  to[(size_t)(2 * row) * width + i] = high;
  to[(size_t)(2 * row + 1) * width + i] = __float2bfloat16_rn(__fsub_rn(value, __bfloat162float(high)));
}
DEVICE void put_activation(float* to, int row, int width, int i, float value) { to[(size_t)row * width + i] = value; }
DEVICE float get_activation(const float* from, int row, int width, int i) { return from[(size_t)row * width + i]; }
DEVICE float get_activation(const __half* from, int row, int width, int i) {
  return __half2float(from[(size_t)row * width + i]);
}
DEVICE float get_activation(const __nv_bfloat16* from, int row, int width, int i) {
  return __bfloat162float(from[(size_t)(2 * row) * width + i]) +
         __bfloat162float(from[(size_t)(2 * row + 1) * width + i]);
}

DEVICE __half to_half(float value) { return __float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f)); }
DEVICE unsigned bits_of(float value) { return __float_as_uint(value); }
DEVICE float square_root(float value) { return sqrtf(value); }
DEVICE float exponential(float value) { return expf(value); }
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }  // not fused with what is done with it
// Four squares, and the scale of an RMS norm of `width` numbers. Written out: a compiler fuses such terms in one order here
// and in another there, and kernels must agree in every bit.
DEVICE float four_squares(float x, float y, float z, float w) {
  return fmaf(w, w, fmaf(z, z, fmaf(x, x, __fmul_rn(y, y))));
}
DEVICE float four_squares(const float4& v) { return four_squares(v.x, v.y, v.z, v.w); }
DEVICE float rms_scale(float square, int width, float epsilon) {
  return 1.0f / sqrtf(__fadd_rn(__fdiv_rn(square, float(width)), epsilon));
}
DEVICE float silu(float value) { return value / __fadd_rn(1.0f, expf(-value)); }
DEVICE float hyperbolic(float value) { return tanhf(value); }

// What a gated MLP makes of its two projections. 0: silu, Shazeer 2002.05202. 1: GELU in its tanh form, Hendrycks and Gimpel
// 1606.08415. 2: the clamped SwiGLU of gpt-oss, 2508.10925.
template <int ACTIVATION_KIND>
DEVICE float gated(float gate, float up) {
  if (ACTIVATION_KIND == 1) {
    const float inner = 0.7978845608028654f * fmaf(0.044715f * gate * gate, gate, gate);
    return 0.5f * gate * (1.0f + hyperbolic(inner)) * up;
  }
  if (ACTIVATION_KIND == 2) {
    const float low = fminf(gate, 7.0f), linear = fminf(fmaxf(up, -7.0f), 7.0f);
    return low / (1.0f + expf(-1.702f * low)) * (linear + 1.0f);
  }
  return silu(gate) * up;
}

// Eight halves from a 16-byte boundary.
DEVICE void load8(const __half* from, float (&to)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const __half2* pairs = reinterpret_cast<const __half2*>(&raw);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 pair = __half22float2(pairs[j]);
    to[2 * j] = pair.x;
    to[2 * j + 1] = pair.y;
  }
}

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(EVERY_LANE, value, mask); }
DEVICE int shuffle_up(int value, int delta) { return __shfl_up_sync(EVERY_LANE, value, delta); }

// The sum over the 32 lanes, in the same order in each.
DEVICE float lane_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
  return value;
}
DEVICE float lane_max(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}
DEVICE int lane_sum(int value) { return __reduce_add_sync(EVERY_LANE, value); }
DEVICE int lane_max(int value) { return __reduce_max_sync(EVERY_LANE, value); }

// Sums and maxima over a block of WARPS warps; scratch holds 32 values and is free again after the next barrier.
template <int WARPS, typename T>
DEVICE T block_sum(T value, T* scratch, int tid) {
  value = lane_sum(value);
  if (WARPS == 1) return value;
  BARRIER();
  if (tid % 32 == 0) scratch[tid / 32] = value;
  BARRIER();
  return lane_sum(tid % 32 < WARPS ? scratch[tid % 32] : T(0));
}
template <int WARPS, typename T>
DEVICE T block_max(T value, T* scratch, int tid) {
  value = lane_max(value);
  if (WARPS == 1) return value;
  BARRIER();
  if (tid % 32 == 0) scratch[tid / 32] = value;
  BARRIER();
  return lane_max(scratch[tid % 32 < WARPS ? tid % 32 : 0]);
}
// Three sums at once; scratch holds 96 values.
template <int WARPS>
DEVICE void block_sum3(int (&value)[3], int* scratch, int tid) {
  for (int n = 0; n < 3; ++n) value[n] = lane_sum(value[n]);
  if (WARPS == 1) return;
  BARRIER();
  if (tid % 32 == 0) {
    for (int n = 0; n < 3; ++n) scratch[n * 32 + tid / 32] = value[n];
  }
  BARRIER();
  for (int n = 0; n < 3; ++n) value[n] = lane_sum(tid % 32 < WARPS ? scratch[n * 32 + tid % 32] : 0);
}
// The sum over all threads before this one.
template <int WARPS>
DEVICE int block_before(int value, int* scratch, int tid) {
  int sum = value;
#pragma unroll
  for (int delta = 1; delta < 32; delta <<= 1) {
    const int other = shuffle_up(sum, delta);
    sum += tid % 32 >= delta ? other : 0;
  }
  BARRIER();
  if (tid % 32 == 31) scratch[tid / 32] = sum;
  BARRIER();
  const int before = lane_sum(tid % 32 < tid / 32 ? scratch[tid % 32] : 0);
  return before + sum - value;
}

// How many tiers of each input take part: kernels/reference/selection.py, exactly. A thread owns the inputs
// tid * OWN .. + OWN - 1; SIZES holds a tier's size in every 8 bits. Keys are the bits of |v| * score, which order as
// the scores do. The cut-off is bracketed by counting, so nothing depends on the order of arrival.
template <int WARPS, int OWN, int TIERS, int SIZES>
DEVICE void select_tiers(const float (&v)[OWN], const float* scores, int inputs, int target,
                         int* scratch, int tid, int (&taken)[OWN]) {
  int total = 0, smallest = 64;
  for (int k = 0; k < TIERS; ++k) {
    const int size = (SIZES >> (8 * k)) & 255;
    total += size;
    smallest = size < smallest ? size : smallest;
  }
  total *= inputs;
  int keys[OWN * TIERS];
  int top = 0;
  for (int j = 0; j < OWN; ++j) {
    const int i = tid * OWN + j;
    for (int k = 0; k < TIERS; ++k) {
      const int key = i < inputs ? int(bits_of(fabsf(v[j]) * scores[(size_t)i * TIERS + k])) : -1;
      keys[j * TIERS + k] = key;
      top = key > top ? key : top;
    }
  }
  top = block_max<WARPS>(top, scratch, tid);
  // Tiers at `low` and above hold at least `target` weights, those at `high` and above fewer. Each turn counts at three
  // keys: around the place where a straight line between the ends would cross the target, or at the quarters.
  int low = 0, high = top + 1, held = total, short_of = 0;
  for (int turn = 0; high - low > 1 && held >= target + smallest; ++turn) {
    int middle = low + (high - low) / 2, reach = (high - low) / 4;
    if (low == 0 && turn < 8) {
      middle = high - (2 << 23), reach = 1 << 23;
    } else if (turn % 3 != 2) {
      middle = low + int(float(held - target) / float(held - short_of) * float(high - low));
      reach = (high - low) / 16;
    }
    int probe[3] = {middle - reach, middle, middle + reach}, count[3] = {0, 0, 0};
    for (int n = 0; n < 3; ++n) probe[n] = probe[n] <= low ? low + 1 : probe[n] >= high ? high - 1 : probe[n];
    for (int j = 0; j < OWN; ++j) {
      for (int k = 0; k < TIERS; ++k) {
        for (int n = 0; n < 3; ++n) count[n] += keys[j * TIERS + k] >= probe[n] ? (SIZES >> (8 * k)) & 255 : 0;
      }
    }
    block_sum3<WARPS>(count, scratch, tid);
    for (int n = 0; n < 3; ++n) {
      if (count[n] >= target && probe[n] > low) {
        low = probe[n];
        held = count[n];
      } else if (count[n] < target && probe[n] < high) {
        high = probe[n];
        short_of = count[n];
      }
    }
  }
  const bool clean = held < target + smallest;
  for (int j = 0; j < OWN; ++j) {
    taken[j] = 0;
    for (int k = 0; k < TIERS; ++k) taken[j] += keys[j * TIERS + k] >= low + (clean ? 0 : 1) ? 1 : 0;
  }
  if (clean) return;
  // Equal scores at the edge: by rising tier, then rising input, until the target is reached.
  int wanted = target - short_of;
  for (int k = 0; k < TIERS && wanted > 0; ++k) {
    const int size = (SIZES >> (8 * k)) & 255;
    int ties = 0;
    for (int j = 0; j < OWN; ++j) ties += keys[j * TIERS + k] == low ? 1 : 0;
    int before = block_before<WARPS>(ties, scratch, tid);
    for (int j = 0; j < OWN; ++j) {
      if (keys[j * TIERS + k] == low && before++ * size < wanted) ++taken[j];
    }
    wanted -= block_sum<WARPS>(ties, scratch, tid) * size;
  }
}

// One product of a 16 x 16 tile of weights and 8 columns of activations on the tensor cores, added to float32 sums.
DEVICE void multiply_tile(float (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x0), "r"(x1));
}
DEVICE void multiply_tile(float (&sum)[4], const unsigned (&w)[4], unsigned x0, unsigned x1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x0), "r"(x1));
}
// Weights are read once a step: past the caches.
DEVICE uint4 stream16(const void* from) { return __ldcs(reinterpret_cast<const uint4*>(from)); }
DEVICE uint2 stream8(const void* from) { return __ldcs(reinterpret_cast<const uint2*>(from)); }

}  // namespace specdec
using namespace specdec;
