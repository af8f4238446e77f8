// The beginning of dense and verify: the share of a warp, and where its weights, rows and outputs are.
#include "job"
const int tid = threadIdx.x, block = blockIdx.x;
const int warp = tid / 32, lane = tid % 32, g = lane / 4, q = lane % 4;
const int rows = ROWS == 1 ? 1 : state[1];
constexpr int STEPS = PADDED / 32, BANDS = ROWS > 8 ? 2 : 1, COLUMNS = ROWS == 1 ? 1 : 8;
const int first = STEPS * warp / WARPS, last = STEPS * (warp + 1) / WARPS;
const uint4* w = reinterpret_cast<const uint4*>(weights + (size_t)expert * STRIDE) + (size_t)block * PER_BLOCK * STEPS * 64 + lane;
activation += (size_t)(BY_JOB ? job : job / USED) * SPLIT * PADDED;
y += (size_t)job * OUT_STRIDE;
