// Queries, keys and values of the new rows, one vector per simdgroup: partial products added up, bias, norm, rotation.
// Queries leave scaled; keys and values go into the cache of the row's sequence, in place.
// QK_NORM: 0 none, 1 by head, 2 over all heads; TURNED dimensions are rotated, the first of each head.
// Rotation: Su et al. 2104.09864, section 3.4.2.
// qkv (PARTS, ROWS, COLUMNS), CACHES caches (2, KV_HEADS, capacity, SIZE), angles (., TURNED / 2, 2) when TURNED, growth
// of queries by position when GROWTH, bias (COLUMNS) when BIAS, norms (2, SIZE) or ((HEADS + KV_HEADS) * SIZE) when QK_NORM, state -> queries (ROWS, HEADS, SIZE)
const int lane = thread_position_in_threadgroup.x, which = threadgroup_position_in_grid.x;
const int row = threadgroup_position_in_grid.y;
if (row >= state[1]) return;
constexpr int EACH = (SIZE + 31) / 32;
int piece = 0;
for (int n = 1; n < CACHES; ++n) {
  device const int* other = state + STATE_PIECES + n * PIECE_SIZE;
  if (row >= other[0] && row < other[0] + other[1]) piece = n;
}
device const int* about = state + STATE_PIECES + piece * PIECE_SIZE;
const int slot = about[2] + row - about[0], capacity = about[4];
const int kind = which < HEADS ? 0 : which < HEADS + KV_HEADS ? 1 : 2, column = which * SIZE;
device half_t* cache = (device half_t*)(cache0);
#include "caches"
device const float* own = qkv + (ulong)row * COLUMNS;
threadgroup float turning[SIZE];

float v[EACH];
float square = 0;
for (int e = 0; e < EACH; ++e) {
  const int d = e * 32 + lane;
  v[e] = 0;
  if (d < SIZE) {
    v[e] = own[column + d];
    for (int p = 1; p < PARTS; ++p) v[e] += own[(ulong)p * ROWS * COLUMNS + column + d];
#if BIAS
    v[e] += bias[column + d];
#endif
  }
  square = fma(v[e], v[e], square);
}
#if QK_NORM
if (kind < 2) {
  const int over = QK_NORM == 1 ? SIZE : (kind == 0 ? HEADS : KV_HEADS) * SIZE;
#if QK_NORM == 2
  const int first = kind == 0 ? 0 : HEADS * SIZE;
  square = 0;
  for (int i = first + lane; i < first + over; i += 32) {
    float value = own[i];
    for (int p = 1; p < PARTS; ++p) value += own[(ulong)p * ROWS * COLUMNS + i];
#if BIAS
    value += bias[i];
#endif
    square = fma(value, value, square);
  }
#endif
  const float scale = 1.0f / square_root(lane_sum(square) / over + EPSILON);
  for (int e = 0; e < EACH; ++e) {
    const int d = e * 32 + lane;
    if (d < SIZE) v[e] = v[e] * scale * norms[(QK_NORM == 1 ? kind * SIZE : column) + d];
  }
}
#endif
#if TURNED
for (int e = 0; e < EACH; ++e) {
  if (e * 32 + lane < SIZE) turning[e * 32 + lane] = v[e];
}
WARP_BARRIER();
#endif
for (int e = 0; e < EACH; ++e) {
  const int d = e * 32 + lane;
  if (d >= SIZE) continue;
  float turned = v[e];
#if TURNED
  if (kind < 2 && d < TURNED) {
    const bool low = INTERLEAVED ? d % 2 == 0 : d < TURNED / 2;
    const int pair = INTERLEAVED ? d / 2 : d % (TURNED / 2), away = INTERLEAVED ? 1 : TURNED / 2;
    device const float* angle = angles + ((ulong)state[STATE_PLACES + row] * (TURNED / 2) + pair) * 2;
    const float other = turning[low ? d + away : d - away];
    turned = low ? fma(v[e], angle[0], -other * angle[1]) : fma(v[e], angle[0], other * angle[1]);
  }
#endif
  if (kind == 0) {
#if GROWTH
    turned *= growth[state[STATE_PLACES + row]];
#endif
    queries[((ulong)row * HEADS + which) * SIZE + d] = turned * SCALE;
  } else {
    cache[((ulong)(which - HEADS) * capacity + slot) * SIZE + d] = to_half(turned);
  }
}
