// Which tiers of which inputs a draft multiplication takes: select_draft.inl with several scores an input.

namespace specdec::SPECDEC_ISA {

// Most quads that a pass of so many tiers holds: rows side by side that a first-level cache can keep open.
constexpr int kPassQuads[kTiers + 1] = {0, 8, 6, 4, 4};
// Inputs that score so many times the cut-off go in passes of their own, or 8 bits would not resolve the others there.
constexpr float kOutlier = 32.0F;

// Lists of inputs by how many tiers they take; outliers, which take all, come last.
struct TierLists {
  uint16_t* list[kTiers + 2];
  int64_t count[kTiers + 2];
};

#if defined(__AVX512VBMI2__) && !defined(SPECDEC_SCALAR)

[[gnu::always_inline]] static inline void append(TierLists* lists, int n, uint32_t mask, __m512i inputs) {
  _mm512_storeu_si512(lists->list[n] + lists->count[n], _mm512_maskz_compress_epi16(mask, inputs));
  lists->count[n] += __builtin_popcount(mask);
}

static inline void list_inputs(const float* scores, int64_t stride, int64_t first, float cut, TierLists* lists) {
  uint32_t at_least[kTiers + 2];
  SPECDEC_UNROLL for (int k = 0; k < kTiers; ++k) at_least[k + 1] = mask_from(scores + k * stride + first, cut);
  at_least[kTiers + 1] = mask_from(scores + first, cut * kOutlier) & at_least[kTiers];
  alignas(64) static constexpr uint16_t kPlaces[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                       16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  const __m512i inputs = _mm512_add_epi16(_mm512_load_si512(kPlaces), _mm512_set1_epi16(static_cast<int16_t>(first)));
  SPECDEC_UNROLL for (int n = 1; n <= kTiers; ++n) append(lists, n, at_least[n] & ~at_least[n + 1], inputs);
  append(lists, kTiers + 1, at_least[kTiers + 1], inputs);
}

#else

static inline void list_inputs(const float* scores, int64_t stride, int64_t first, float cut, TierLists* lists) {
  for (int64_t i = first; i < first + kGroup; ++i) {
    int n = 0;
    for (int k = 0; k < kTiers; ++k) n += scores[k * stride + i] >= cut;
    n += n == kTiers && scores[i] >= cut * kOutlier;
    lists->list[n][lists->count[n]] = static_cast<uint16_t>(i);
    lists->count[n] += n > 0;
  }
}

#endif

// Scores that equal the cut-off: only the first `ties` of them count, in the order of tiers, then inputs.
static void list_with_ties(const ChooseTiersCall& call, int64_t stride, Cut cut, TierLists* lists) {
  auto* taken = reinterpret_cast<uint8_t*>(call.taken);
  for (int64_t i = 0; i < call.in; ++i) taken[i] = 0;
  for (int k = 0; k < kTiers; ++k)
    for (int64_t i = 0; i < call.in; ++i) {
      const float score = call.scratch[k * stride + i];
      const bool tied = score == cut.cut && cut.ties > 0;
      cut.ties -= tied;
      taken[i] = static_cast<uint8_t>(taken[i] + (score > cut.cut || tied));
    }
  for (int64_t i = 0; i < call.in; ++i) {
    const int n = taken[i];
    if (n == 0) continue;
    lists->list[n][lists->count[n]++] = static_cast<uint16_t>(i);
  }
}

static int64_t cut_into_passes(const TierLists& lists, TierPass* passes) {
  TierPass* pass = passes;
  for (int n = 1; n <= kTiers + 1; ++n) {
    const int tiers = n < kTiers ? n : kTiers;
    for (int64_t first = 0; first < lists.count[n]; first += 4 * kPassQuads[tiers], ++pass) {
      const int64_t left = lists.count[n] - first;
      pass->tiers = tiers;
      pass->count = static_cast<int32_t>(left < 4 * kPassQuads[tiers] ? left : 4 * kPassQuads[tiers]);
      pass->quads = (pass->count + 3) / 4;
      for (int j = 0; j < kGroup; ++j) pass->input[j] = lists.list[n][first + (j < pass->count ? j : pass->count - 1)];
    }
  }
  return pass - passes;
}

static int64_t choose_tiers(const ChooseTiersCall& call) {
  const int64_t stride = (call.in + kGroup - 1) / kGroup * kGroup;
  TierLists lists;
  for (int n = 0; n <= kTiers + 1; ++n) {
    lists.list[n] = call.lists + n * (stride + kGroup);
    lists.count[n] = 0;
  }
  if (call.effort >= 1.0F) {
    for (int64_t i = 0; i < call.in; ++i) lists.list[kTiers][i] = static_cast<uint16_t>(i);
    lists.count[kTiers] = call.in;
    return cut_into_passes(lists, call.passes);
  }
  float sum = 0.0F;
  for (int k = 0; k < kTiers; ++k)
    sum += score_inputs(call.x, call.scores + k * stride, stride, call.scratch + k * stride);
  // What fills up the last group scores zero and stays below any cut-off but zero itself.
  const auto total = static_cast<float>(kTiers * call.in);
  const Cut cut = draft_cut(call.scratch, kTiers * stride, kTiers * call.in, sum / total, call.effort, 0);
  if (cut.ties < kTiers * call.in || cut.cut <= 0.0F) {
    list_with_ties(call, stride, cut, &lists);
  } else {
    for (int64_t first = 0; first < stride; first += kGroup) list_inputs(call.scratch, stride, first, cut.cut, &lists);
  }
  return cut_into_passes(lists, call.passes);
}

}  // namespace specdec::SPECDEC_ISA
