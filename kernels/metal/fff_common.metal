// What the two kernels of fast feedforward layers share: dot products by a simdgroup, and activations.
//
// The product of two rows of PADDED_VALUES values, the same in every lane: lane l has the values 128 k + 4 l + j in its
// sum j.
template <int PADDED_VALUES, typename T>
inline float warp_dot(device const float* x, device const T* weight, int lane) {
  float sum[4] = {0, 0, 0, 0};
  for (int at = lane * 4; at < PADDED_VALUES; at += 128) {
    float a[4], b[4];
    load4(x + at, a);
    load4(weight + at, b);
    for (int j = 0; j < 4; ++j) sum[j] = fma(a[j], b[j], sum[j]);
  }
  return lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// The error function in float32, as polynomials around 0 and in the exponent beyond 475/512. Metal has none.
inline float error_function(float value) {
  const float size = abs(value), square = value * value;
  if (size > 0.927734375f) {
    float tail = fma(-1.72853470e-5f, size, 3.83197126e-4f);
    tail = fma(tail, square, fma(-3.88396438e-3f, size, 2.42546219e-2f));
    tail = fma(tail, size, -1.06777877e-1f);
    tail = fma(tail, size, -6.34846687e-1f);
    tail = fma(tail, size, -1.28717512e-1f);
    tail = 1.0f - exp(fma(tail, size, -size));
    return value < 0 ? -tail : tail;
  }
  float part = fma(-5.96761703e-4f, square, 4.99119423e-3f);
  part = fma(part, square, -2.67681349e-2f);
  part = fma(part, square, 1.12819925e-1f);
  part = fma(part, square, -3.76125336e-1f);
  part = fma(part, square, 1.28379166e-1f);
  return fma(part, value, value);
}

template <int KIND>
inline float activated(float value) {
  if (KIND == 0) return value > 0 ? value : 0.0f;
  if (KIND == 1) return 0.5f * value * (1.0f + error_function(value * 0.70710678118654752f));
  if (KIND == 2) return silu(value);
  return value;
}
