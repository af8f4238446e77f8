// Products of rows, and sums of scaled rows; definitions in fff_kernels.h.

#include "fff_kernels.h"
#include "half.h"

namespace specdec::SPECDEC_ISA {

constexpr int kTreeVectors = kTreeLane / kLanes;
// Rows, or weights, that are multiplied together: as many as the registers of partial sums allow.
constexpr int kTreeTile = kLanes >= 16 ? 4 : 1;

SPECDEC_INLINE F32 load_weights(const float* p) { return load(p); }
SPECDEC_INLINE F32 load_weights(const uint16_t* p) { return load_half(p); }

SPECDEC_INLINE float add_sums(const F32 (&sums)[kTreeSums][kTreeVectors]) {
  float lanes[kTreeLane];
  for (int v = 0; v < kTreeVectors; ++v)
    store(lanes + v * kLanes, add(add(sums[0][v], sums[1][v]), add(sums[2][v], sums[3][v])));
  for (int half = kTreeLane / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

// ROWS rows times COUNT weights; one of them is 1.
template <int ROWS, int COUNT, class T>
SPECDEC_INLINE void dot_tile(const float* const* x, const T* weights, int64_t n, float* out, int64_t out_stride) {
  F32 sums[ROWS][COUNT][kTreeSums][kTreeVectors];
  for (auto& row : sums)
    for (auto& one : row)
      for (auto& group : one)
        for (F32& sum : group) sum = zero();
  const auto step = [&](int64_t i, int group) {
    for (int v = 0; v < kTreeVectors; ++v) {
      F32 values[ROWS], held[COUNT];
      for (int r = 0; r < ROWS; ++r) values[r] = load(x[r] + i + v * kLanes);
      for (int j = 0; j < COUNT; ++j) held[j] = load_weights(weights + j * n + i + v * kLanes);
      for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < COUNT; ++j) sums[r][j][group][v] = fma(values[r], held[j], sums[r][j][group][v]);
    }
  };
  int64_t i = 0;
  for (; i + kTreeSums * kTreeLane <= n; i += kTreeSums * kTreeLane)
    for (int group = 0; group < kTreeSums; ++group) step(i + group * kTreeLane, group);
  for (int group = 0; group < kTreeSums - 1; ++group)
    if (i + group * kTreeLane < n) step(i + group * kTreeLane, group);
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < COUNT; ++j) out[r * out_stride + j] = add_sums(sums[r][j]);
}

template <class T>
static void tree_dots_of(const TreeDotsCall& call) {
  const auto* weights = static_cast<const T*>(call.weights);
  int64_t r = 0;
  for (; r + kTreeTile <= call.rows; r += kTreeTile)
    for (int64_t j = 0; j < call.count; ++j)
      dot_tile<kTreeTile, 1>(call.x + r, weights + j * call.n, call.n, call.out + r * call.out_stride + j, call.out_stride);
  for (; r < call.rows; ++r) {
    int64_t j = 0;
    for (; j + kTreeTile <= call.count; j += kTreeTile)
      dot_tile<1, kTreeTile>(call.x + r, weights + j * call.n, call.n, call.out + r * call.out_stride + j, call.out_stride);
    for (; j < call.count; ++j)
      dot_tile<1, 1>(call.x + r, weights + j * call.n, call.n, call.out + r * call.out_stride + j, call.out_stride);
  }
}

static void tree_dots(const TreeDotsCall& call) {
  call.half ? tree_dots_of<uint16_t>(call) : tree_dots_of<float>(call);
}

// COUNT rows are added to y, or replace it.
template <int COUNT, class T>
SPECDEC_INLINE void add_rows(const void* const* rows, const float* scales, int64_t n, bool first, float* y) {
  const T* from[COUNT];
  F32 scale[COUNT];
  for (int k = 0; k < COUNT; ++k) {
    from[k] = static_cast<const T*>(rows[k]);
    scale[k] = set1(scales[k]);
  }
  for (int64_t o = 0; o < n; o += kLanes) {
    F32 sum = first ? zero() : load(y + o);
    for (int k = 0; k < COUNT; ++k) sum = fma(scale[k], load_weights(from[k] + o), sum);
    store(y + o, sum);
  }
}

template <class T>
static void tree_sum_of(const TreeSumCall& call) {
  int64_t k = 0;
  for (; k + 4 <= call.count; k += 4) add_rows<4, T>(call.rows + k, call.scales + k, call.n, k == 0, call.y);
  for (; k < call.count; ++k) add_rows<1, T>(call.rows + k, call.scales + k, call.n, k == 0, call.y);
}

static void tree_sum(const TreeSumCall& call) { call.half ? tree_sum_of<uint16_t>(call) : tree_sum_of<float>(call); }

SPECDEC_INLINE FffKernels fff_kernels() { return FffKernels{tree_dots, tree_sum}; }

}  // namespace specdec::SPECDEC_ISA
