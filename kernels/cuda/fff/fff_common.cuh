// What the two kernels of fast feedforward layers share: dot products by a warp, and activations.
template <typename T>
DEVICE void take4(const T* from, float (&to)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = to_float(from[j]);
}
DEVICE void take4(const float* from, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
DEVICE void take4(const half_t* from, float (&to)[4]) {
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  const unsigned words[2] = {raw.x, raw.y};
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = __half2float(__ushort_as_half((unsigned short)(words[j / 2] >> (16 * (j % 2)))));
}

// The product of two rows of PADDED values, the same in every lane: lane l has the values 128 k + 4 l + j in its sum j.
template <int PADDED_VALUES, typename T>
DEVICE float warp_dot(const float* x, const T* weight, int lane) {
  float sum[4] = {0, 0, 0, 0};
#pragma unroll 8
  for (int at = lane * 4; at < PADDED_VALUES; at += 128) {
    float a[4], b[4];
    take4(x + at, a);
    take4(weight + at, b);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] = fmaf(a[j], b[j], sum[j]);
  }
  return lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <int KIND>
DEVICE float activated(float value) {
  if (KIND == 0) return value > 0 ? value : 0.0f;
  if (KIND == 1) return 0.5f * value * (1.0f + erff(value * 0.70710678118654752f));
  if (KIND == 2) return silu(value);
  return value;
}
