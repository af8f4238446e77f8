// Attention of some rows over one chunk of the context, and how the chunks' results meet.
//
// Scores and weighted sums are matrix products over the cache (keys as panels of 32 positions, values as lines of
// positions), under the same contract as dense.inl: one accumulator, ascending dimension or position. The chunk
// boundaries are multiples of kChunk, so a row's result is the same alone and among others.

namespace specdec::SPECDEC_ISA {

static constexpr float kMinusInfinity = -__builtin_inff();

// Keys and values: W is how they are read.
template <class W, int R>
static void score_tile(const AttentionCall& call, float* scores) {
  const auto* keys = static_cast<const typename W::Bits*>(call.keys);
  for (int first = 0; first < kChunk; first += kTileVectors * kLanes) {
    F32 tile[R][kTileVectors];
    clear(tile);
    const auto* panel = keys + static_cast<int64_t>(first / kPanel) * call.head_dim * kPanel + first % kPanel;
    accumulate<W, R, kTileVectors, 1, false>(tile, panel, kPanel, 0, call.q, call.head_dim);
    store_tile(tile, scores + first, kChunk);
  }
}

// Sums of values with R rows of weights, weights[position][row].
template <class W, int R>
static void value_tile(const AttentionCall& call, const float* weights, int from, int to, float* sums) {
  const auto* values = static_cast<const typename W::Bits*>(call.values) + from * call.value_stride;
  for (int64_t first = 0; first < call.value_stride; first += kTileVectors * kLanes) {
    F32 tile[R][kTileVectors];
    clear(tile);
    accumulate<W, R, kTileVectors, 1, false>(tile, values + first, call.value_stride, 0, weights, to - from);
    store_tile(tile, sums + first, call.value_stride);
  }
}

// Scores of one row to exp(score - peak), zeros outside [from, to).
template <bool Capped>
static void soften(float* scores, float scale, float softcap, int from, int to, float* peak, float* total) {
  if (from >= to) {
    *peak = kMinusInfinity;
    *total = 0.0F;
    return;
  }
  const int first = from / kLanes * kLanes;
  const F32 factor = set1(scale), low = set1(kMinusInfinity), most = set1(softcap);
  const F32 inverse = set1(Capped ? 1.0F / softcap : 0.0F);
  F32 best = low;
  for (int j = first; j < to; j += kLanes) {
    F32 score = mul(load(scores + j), factor);
    if constexpr (Capped) score = capped(score, most, inverse);
    score = choose(lanes_between(j, from, to), score, low);
    store(scores + j, score);
    best = vmax(best, score);
  }
  *peak = max_lanes(best);
  F32 sum = zero();
  for (int j = first; j < to; j += kLanes) {
    const F32 weight = choose(lanes_between(j, from, to), exponential(sub(load(scores + j), set1(*peak))), zero());
    store(scores + j, weight);
    sum = add(sum, weight);
  }
  *total = sum_lanes(sum);
}

using ScoreTile = void (*)(const AttentionCall&, float*);
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

template <class W>
static void chunk_of(const AttentionCall& call) {
  static constexpr ScoreTile score_by_rows[] = SPECDEC_BY_ROWS(SPECDEC_SCORE);
  static constexpr ValueTile value_by_rows[] = SPECDEC_BY_ROWS(SPECDEC_VALUE);
  float* scores = call.scratch;
  float* weights = scores + static_cast<int64_t>(kMaxTile) * kChunk;
  score_by_rows[call.rows](call, scores);
  const auto soften_row = call.softcap > 0 ? soften<true> : soften<false>;
  for (int r = 0; r < call.rows; ++r)
    soften_row(scores + static_cast<int64_t>(r) * kChunk, call.scale, call.softcap, call.from[r], call.to[r],
               call.peak + r, call.total + r);
  for (int r = 0; r < call.rows;) {
    const int from = call.from[r], to = call.to[r];
    int run = 1;  // rows that see the same positions share the loads
    while (r + run < call.rows && call.from[r + run] == from && call.to[r + run] == to) ++run;
    if (from < to) {
      for (int p = from; p < to; ++p)
        for (int k = 0; k < run; ++k) weights[(p - from) * run + k] = scores[(r + k) * kChunk + p];
      value_by_rows[run](call, weights, from, to, call.sums + r * call.value_stride);
    }
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
  float factors[kLanes];
  for (int j = 0; j < kLanes; ++j) factors[j] = (j % 2 == 0 ? *peak : chunk_peak) - best;
  store(factors, exponential(load(factors)));
  const float old = *peak == kMinusInfinity ? 0.0F : factors[0], fresh = factors[1];
  *peak = best;
  *total = *total * old + chunk_total * fresh;
  for (int64_t j = 0; j < value_stride; j += kLanes)
    store(sums + j, add(mul(load(sums + j), set1(old)), mul(load(chunk_sums + j), set1(fresh))));
}

inline AttentionKernels attention_kernels() { return AttentionKernels{attention_chunk, attention_combine}; }

}  // namespace specdec::SPECDEC_ISA
