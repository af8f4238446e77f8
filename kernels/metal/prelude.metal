// What every Metal kernel here may use: names that read alike in kernels/cuda/prelude.cuh, sums in a fixed order, and
// the choice of tiers. Sizes are constants that specdec/runtimes/mlx/kernels.py writes in front of a body.
#define BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)
#define WARP_BARRIER() simdgroup_barrier(mem_flags::mem_threadgroup)
#define MINUS_INFINITY as_type<float>(0xff800000u)
#ifndef SHARED_POINTER  // the tests' host compiler has no address spaces
#define SHARED_POINTER(T) threadgroup T*
#endif

typedef half half_t;
typedef bfloat16_t bfloat_t;

inline float to_float(half value) { return float(value); }
inline float to_float(bfloat16_t value) { return float(value); }
inline float to_float(float value) { return value; }

// Activations enter a multiplication as they are: the products are plain float32 here.
inline void put_activation(device float* to, int row, int width, int i, float value) {
  to[(ulong)row * width + i] = value;
}
inline float get_activation(device const float* from, int row, int width, int i) {
  return from[(ulong)row * width + i];
}

inline half to_half(float value) { return half(min(max(value, -65504.0f), 65504.0f)); }
inline uint bits_of(float value) { return as_type<uint>(value); }
inline float square_root(float value) { return sqrt(value); }
inline float exponential(float value) { return exp(value); }
inline float product(float a, float b) { return a * b; }
inline float silu(float value) { return value / (1.0f + exp(-value)); }
inline float hyperbolic(float value) { return tanh(min(max(value, -20.0f), 20.0f)); }  // 1 beyond, in float32

// What a gated MLP makes of its two projections. 0: silu, Shazeer 2002.05202. 1: GELU in its tanh form, Hendrycks and Gimpel
// 1606.08415. 2: the clamped SwiGLU of gpt-oss, 2508.10925.
template <int ACTIVATION_KIND>
inline float gated(float gate, float up) {
  if (ACTIVATION_KIND == 1) {
    const float inner = 0.7978845608028654f * fma(0.044715f * gate * gate, gate, gate);
    return 0.5f * gate * (1.0f + hyperbolic(inner)) * up;
  }
  if (ACTIVATION_KIND == 2) {
    const float low = min(gate, 7.0f), linear = min(max(up, -7.0f), 7.0f);
    return low / (1.0f + exp(-1.702f * low)) * (linear + 1.0f);
  }
  return silu(gate) * up;
}

inline void load8(device const half* from, thread float (&to)[8]) {
  for (int j = 0; j < 8; ++j) to[j] = float(from[j]);
}
#ifndef ONE_ADDRESS_SPACE
inline void load8(threadgroup const half* from, thread float (&to)[8]) {
  for (int j = 0; j < 8; ++j) to[j] = float(from[j]);
}
#endif
template <typename T>
inline void load4(device const T* from, thread float (&to)[4]) {
  for (int j = 0; j < 4; ++j) to[j] = float(from[j]);
}

// The sum over the 32 lanes, in the same order in each.
inline float lane_sum(float value) {
  for (ushort mask = 16; mask > 0; mask >>= 1) value += simd_shuffle_xor(value, mask);
  return value;
}
inline float lane_max(float value) { return simd_max(value); }
inline int lane_sum(int value) { return simd_sum(value); }
inline int lane_max(int value) { return simd_max(value); }

// Sums and maxima over a threadgroup of WARPS warps; scratch holds 32 values and is free again after the next barrier.
template <int WARPS, typename T>
inline T block_sum(T value, SHARED_POINTER(T) scratch, int tid) {
  value = lane_sum(value);
  if (WARPS == 1) return value;
  BARRIER();
  if (tid % 32 == 0) scratch[tid / 32] = value;
  BARRIER();
  return lane_sum(tid % 32 < WARPS ? scratch[tid % 32] : T(0));
}
template <int WARPS, typename T>
inline T block_max(T value, SHARED_POINTER(T) scratch, int tid) {
  value = lane_max(value);
  if (WARPS == 1) return value;
  BARRIER();
  if (tid % 32 == 0) scratch[tid / 32] = value;
  BARRIER();
  return lane_max(scratch[tid % 32 < WARPS ? tid % 32 : 0]);
}
// Three sums at once; scratch holds 96 values.
template <int WARPS>
inline void block_sum3(thread int (&value)[3], SHARED_POINTER(int) scratch, int tid) {
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
inline int block_before(int value, SHARED_POINTER(int) scratch, int tid) {
  int sum = value;
  for (int delta = 1; delta < 32; delta <<= 1) {
    const int other = simd_shuffle_up(sum, ushort(delta));
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
inline void select_tiers(thread const float (&v)[OWN], device const float* scores, int inputs, int target,
                         SHARED_POINTER(int) scratch, int tid, thread int (&taken)[OWN]) {
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
      const int key = i < inputs ? int(bits_of(abs(v[j]) * scores[(ulong)i * TIERS + k])) : -1;
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

