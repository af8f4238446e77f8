// Attention of some rows over one chunk of the context, and how the chunks' results meet.
//
// Scores and weighted sums are matrix products over the cache (keys as panels of 32 positions, values as lines of
// positions), under the same contract as dense.inl: one accumulator, ascending dimension or position. The chunk
// boundaries are multiples of kChunk, so a row's result is the same alone and among others. The cache comes from memory:
// values are prefetched while keys are multiplied, and the next keys while values are multiplied.

namespace specdec::SPECDEC_ISA {

static constexpr float kMinusInfinity = -__builtin_inff();

// Rows for which two tiles of vectors side by side stay in registers.
constexpr int kRowsOfTwoTiles = kLanes == 16 ? 6 : 2;
constexpr int kTileWidth = kTileVectors * kLanes;
template <int R>
constexpr int tiles_side_by_side() {
  return R <= kRowsOfTwoTiles ? 2 : 1;
}

// Lines of memory that are prefetched while others are multiplied; a step of 0 prefetches nothing new.
struct AskedLines {
  const char* line;
  int64_t step;
  template <int kBytes>
  [[gnu::always_inline]] inline void ask() {
    SPECDEC_UNROLL for (int j = 0; j < (kBytes + 63) / 64; ++j) SPECDEC_PREFETCH_FAR(line + j * step);
    line += (kBytes + 63) / 64 * step;
  }
};

// acc[r][v] += w[i][v] * x[i * next + r * row] for i = 0..n-1; P tiles of vectors lie `tile_stride` apart.
template <class W, int R, int P>
[[gnu::always_inline]] static inline void attend_to(F32 (&acc)[R][kTileVectors * P], const typename W::Bits* w,
                                                    int64_t stride, int64_t tile_stride, const float* x, int64_t next,
                                                    int64_t row, int64_t n, AskedLines ahead) {
  for (int64_t i = 0; i < n; ++i, w += stride, x += next) {
    F32 weights[kTileVectors * P];
    SPECDEC_UNROLL for (int p = 0; p < P; ++p) SPECDEC_UNROLL for (int v = 0; v < kTileVectors; ++v)
        weights[p * kTileVectors + v] = W::get(w + p * tile_stride, v);
    ahead.ask<P * kTileWidth * static_cast<int>(sizeof(typename W::Bits))>();
    loaded(weights);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const F32 value = set1(x[r * row]);
      SPECDEC_UNROLL for (int v = 0; v < kTileVectors * P; ++v) acc[r][v] = fma(weights[v], value, acc[r][v]);
    }
  }
}

// Keys and values: W reads them. Computes scores of the panels that hold positions [from, to), and prefetches the
// values.
template <class W, int R>
static void score_tile(const AttentionCall& call, int from, int to, float* scores) {
  constexpr int P = tiles_side_by_side<R>();
  const auto* keys = static_cast<const typename W::Bits*>(call.keys);
  const auto* values = static_cast<const typename W::Bits*>(call.values);
  const int64_t values_of_panel = int64_t{call.head_dim} * kPanel;
  for (int panel = from / kPanel / P * P; panel * kPanel < to; panel += P)
    for (int at = 0; at < kPanel; at += kTileWidth) {
      F32 tile[R][kTileVectors * P];
      clear(tile);
      const AskedLines ahead{reinterpret_cast<const char*>(values + panel * values_of_panel), call.next != nullptr && at == 0 ? 64 : 0};
      attend_to<W, R, P>(tile, keys + panel * values_of_panel + at, kPanel, values_of_panel, call.q, R, 1, call.head_dim, ahead);
      SPECDEC_UNROLL for (int p = 0; p < P; ++p) SPECDEC_UNROLL for (int r = 0; r < R; ++r)
          SPECDEC_UNROLL for (int v = 0; v < kTileVectors; ++v)
              store(scores + r * kChunk + (panel + p) * kPanel + at + v * kLanes, tile[r][p * kTileVectors + v]);
    }
}

// Sums of values over positions [from, to), for P tiles of dimensions from `first` on. Prefetches the next keys.
template <class W, int R, int P>
[[gnu::always_inline]] static inline void value_part(const AttentionCall& call, const float* weights, int from, int to,
                                                     int64_t first, float* sums) {
  const auto* values = static_cast<const typename W::Bits*>(call.values) + from * call.value_stride;
  const auto* next = static_cast<const typename W::Bits*>(call.next);
  const AskedLines ahead{reinterpret_cast<const char*>(next == nullptr ? values : next + first * kChunk), next == nullptr ? 0 : 64};
  F32 tile[R][kTileVectors * P];
  clear(tile);
  attend_to<W, R, P>(tile, values + first, call.value_stride, kTileWidth, weights + from, 1, kChunk, to - from, ahead);
  store_tile(tile, sums + first, call.value_stride);
}

// With R rows of weights, kChunk apart.
template <class W, int R>
static void value_tile(const AttentionCall& call, const float* weights, int from, int to, float* sums) {
  constexpr int P = tiles_side_by_side<R>();
  int64_t first = 0;
  for (; first + P * kTileWidth <= call.value_stride; first += P * kTileWidth)
    value_part<W, R, P>(call, weights, from, to, first, sums);
  if constexpr (P > 1)
    for (; first < call.value_stride; first += kTileWidth) value_part<W, R, 1>(call, weights, from, to, first, sums);
}

// Scales the scores of one row and returns their largest by lane; -inf outside [from, to), which is the whole chunk where
// kWhole.
template <bool kCapped, bool kWhole>
[[gnu::always_inline]] static inline F32 scale_row(const AttentionCall& call, float* scores, int from, int to) {
  const int first = kWhole ? 0 : from / kLanes * kLanes, last = kWhole ? kChunk : to;
  const F32 factor = set1(call.scale), low = set1(kMinusInfinity), most = set1(call.softcap);
  const F32 inverse = set1(kCapped ? 1.0F / call.softcap : 0.0F);
  F32 best = low;
  for (int j = first; j < last; j += kLanes) {
    F32 score = mul(load(scores + j), factor);
    if constexpr (kCapped) score = capped(score, most, inverse);
    if constexpr (!kWhole) score = choose(lanes_between(j, from, to), score, low);
    store(scores + j, score);
    best = vmax(best, score);
  }
  return best;
}

// Scores of one row to exp(score - peak), zeros outside [from, to); returns their sum by lane.
template <bool kWhole>
[[gnu::always_inline]] static inline F32 soften_row(float* scores, float peak, int from, int to) {
  const int first = kWhole ? 0 : from / kLanes * kLanes, last = kWhole ? kChunk : to;
  const F32 top = set1(peak);
  F32 sum = zero();
  for (int j = first; j < last; j += kLanes) {
    F32 weight = exponential(sub(load(scores + j), top));
    if constexpr (!kWhole) weight = choose(lanes_between(j, from, to), weight, zero());
    store(scores + j, weight);
    sum = add(sum, weight);
  }
  return sum;
}

using ScoreTile = void (*)(const AttentionCall&, int, int, float*);
using ValueTile = void (*)(const AttentionCall&, const float*, int, int, float*);
template <class W, int R>
static constexpr ScoreTile score_of() {
  if constexpr (R <= kTileRows)
    return score_tile<W, R>;
  else
    return nullptr;
}
template <class W, int R>
static constexpr ValueTile value_of() {
  if constexpr (R <= kTileRows)
    return value_tile<W, R>;
  else
    return nullptr;
}
#define SPECDEC_SCORE(rows) score_of<W, rows>()
#define SPECDEC_VALUE(rows) value_of<W, rows>()

// All rows step by step, so that the processor works on several at once: joining lanes has a long latency, and takes
// most of the time.
template <bool kCapped>
static void soften_rows(const AttentionCall& call, float* scores) {
  F32 lanes[kMaxTile];
  const auto whole = [&](int r) { return call.from[r] == 0 && call.to[r] == kChunk; };
  const auto none = [&](int r) { return call.from[r] >= call.to[r]; };
  for (int r = 0; r < call.rows; ++r) {
    float* row = scores + int64_t{r} * kChunk;
    lanes[r] = whole(r) ? scale_row<kCapped, true>(call, row, 0, kChunk)
                        : scale_row<kCapped, false>(call, row, call.from[r], none(r) ? call.from[r] : call.to[r]);
  }
  for (int r = 0; r < call.rows; ++r) call.peak[r] = max_lanes(lanes[r]);
  for (int r = 0; r < call.rows; ++r) {
    float* row = scores + int64_t{r} * kChunk;
    lanes[r] = whole(r) ? soften_row<true>(row, call.peak[r], 0, kChunk)
                        : soften_row<false>(row, call.peak[r], call.from[r], none(r) ? call.from[r] : call.to[r]);
  }
  for (int r = 0; r < call.rows; ++r) call.total[r] = sum_lanes(lanes[r]);
}

template <class W>
static void chunk_of(const AttentionCall& call) {
  static constexpr ScoreTile score_by_rows[] = SPECDEC_BY_ROWS(SPECDEC_SCORE);
  static constexpr ValueTile value_by_rows[] = SPECDEC_BY_ROWS(SPECDEC_VALUE);
  float* scores = call.scratch;
  int first = kChunk, last = 0;  // seen by any row
  for (int r = 0; r < call.rows; ++r) {
    if (call.from[r] >= call.to[r]) continue;
    first = call.from[r] < first ? call.from[r] : first;
    last = call.to[r] > last ? call.to[r] : last;
  }
  score_by_rows[call.rows](call, first, last, scores);
  if (call.softcap > 0)
    soften_rows<true>(call, scores);
  else
    soften_rows<false>(call, scores);
  for (int r = 0; r < call.rows;) {
    const int from = call.from[r], to = call.to[r];
    int run = 1;  // rows that see the same positions share the loads
    while (r + run < call.rows && call.from[r + run] == from && call.to[r + run] == to) ++run;
    if (from < to)
      value_by_rows[run](call, scores + int64_t{r} * kChunk, from, to, call.sums + r * call.value_stride);
    r += run;
  }
}

static void attention_chunk(const AttentionCall& call) {
  if (call.single)
    chunk_of<Float>(call);
  else
    chunk_of<Whole<Half>>(call);
}

// A chunk in which the row sees nothing has peak -inf and must not be passed.
static void attention_combine(float* peak, float* total, float* sums, float chunk_peak, float chunk_total,
                              const float* chunk_sums, int64_t value_stride) {
  const float best = *peak > chunk_peak ? *peak : chunk_peak;
  float factor[kLanes];
  const F32 fresh = exponential(set1(chunk_peak - best));
  const F32 old = *peak == kMinusInfinity ? zero() : exponential(set1(*peak - best));
  store(factor, fresh);
  const float fresh_total = chunk_total * factor[0];
  store(factor, old);
  *peak = best;
  *total = *total * factor[0] + fresh_total;
  for (int64_t j = 0; j < value_stride; j += kLanes)
    store(sums + j, add(mul(load(sums + j), old), mul(load(chunk_sums + j), fresh)));
}

inline AttentionKernels attention_kernels() { return AttentionKernels{attention_chunk, attention_combine}; }

}  // namespace specdec::SPECDEC_ISA
