// Matrix times rows over bf16 weights in 12 bits (coded_lines.h). Part of dense.inl.
//
// The contract is that of the dense product: one accumulator for each (row, output), in ascending order of input. A weight
// is decoded to the float32 that the plain line holds, so the bits equal the plain loop's.

namespace specdec::SPECDEC_ISA {

// How far ahead of the loads low bytes and codes are asked for.
constexpr int64_t kAheadGroups = 8;
// Four panels side by side hide latencies of a single row where registers allow.
constexpr int kCodedAccumulators = 8;
constexpr int kPieces = kGroupCodes / kByteLanes;  // vectors of bytes in a group's codes
constexpr int kHalfVectors = kPanelVectors / 2;
static_assert(kPieces == kHalfVectors, "a vector of bytes holds pairs of two vectors of outputs");

// A panel on the way through its inputs.
struct CodedPanel {
  const uint8_t *low, *codes, *tables;
  const uint32_t* patch;
  uint32_t patched;  // group of the next patch
  ByteTable table;
};

static inline CodedPanel coded_panel(const DenseCall& call, int64_t panel) {
  const CodedLines& lines = *call.coded;
  const int64_t groups = coded_groups(call.in);
  CodedPanel own;
  own.low = lines.low + panel * groups * kGroupLow;
  own.codes = lines.codes + panel * groups * kGroupCodes;
  own.tables = lines.tables + panel * coded_tables(call.in) * kTableBytes;
  own.table = load_table(own.tables);
  own.patch = lines.patches + lines.first_patch[panel];
  own.patched = *own.patch >> 16;
  return own;
}

// High bytes of a half of a piece of a group.
template <int kHalf>
[[gnu::always_inline]] static inline ByteVec high_bytes(const ByteTable& table, ByteVec codes) {
  if constexpr (kHalf == 0)
    return look_up(table, codes);
  else
    return look_up_upper(table, codes);
}

// Both halves' high bytes of a piece, as codes say.
struct CodedHighs {
  const ByteTable& table;
  const uint8_t* codes;
  template <int kHalf>
  ByteVec get(int piece) const {
    return high_bytes<kHalf>(table, load_bytes(codes + piece * kByteLanes));
  }
};
// Or as they lie.
struct PlainHighs {
  const uint8_t* bytes;
  template <int kHalf>
  ByteVec get(int piece) const {
    return load_bytes(bytes + kHalf * kGroupCodes + piece * kByteLanes);
  }
};

// Weights of a half of a group, [2][kPanel].
template <int kHalf, class Highs>
[[gnu::always_inline]] static inline void widen_half_group(const uint8_t* low, const Highs& highs, float* weights) {
  SPECDEC_UNROLL for (int piece = 0; piece < kPieces; ++piece) {
    const ByteVec l = load_bytes(low + kHalf * kGroupCodes + piece * kByteLanes), h = highs.template get<kHalf>(piece);
    const ByteVec pairs[2] = {interleave_low(l, h), interleave_high(l, h)};
    SPECDEC_UNROLL for (int i = 0; i < 2; ++i) {
      store(weights + i * kPanel + piece * kLanes, even_bfloats(pairs[i]));
      store(weights + i * kPanel + kPanel / 2 + piece * kLanes, odd_bfloats(pairs[i]));
    }
  }
}

// The high bytes of a group with patches, which then move on.
[[gnu::always_inline]] static inline void patch_group(CodedPanel& panel, int64_t group, uint8_t* high) {
  const CodedHighs coded{panel.table, panel.codes + group * kGroupCodes};
  SPECDEC_UNROLL for (int piece = 0; piece < kPieces; ++piece) {
    store_bytes(high + piece * kByteLanes, coded.get<0>(piece));
    store_bytes(high + kGroupCodes + piece * kByteLanes, coded.get<1>(piece));
  }
  for (; panel.patched == group; panel.patched = *panel.patch >> 16) {
    high[*panel.patch >> 8 & 0x7F] = static_cast<uint8_t>(*panel.patch);
    ++panel.patch;
  }
}

// The weights of one group, [4][kPanel].
static void widen_group(CodedPanel& panel, int64_t group, float* weights) {
  const uint8_t* low = panel.low + group * kGroupLow;
  if (panel.patched != group) {
    const CodedHighs coded{panel.table, panel.codes + group * kGroupCodes};
    widen_half_group<0>(low, coded, weights);
    widen_half_group<1>(low, coded, weights + 2 * kPanel);
    return;
  }
  alignas(64) uint8_t high[kGroupLow];
  patch_group(panel, group, high);
  widen_half_group<0>(low, PlainHighs{high}, weights);
  widen_half_group<1>(low, PlainHighs{high}, weights + 2 * kPanel);
}

// acc of panel p += w * x over a piece of a half of a group.
template <int R, int P, int kHalf>
[[gnu::always_inline]] static inline void coded_half(F32 (&acc)[R][kPanelVectors * P], int p, int piece, ByteVec high,
                                                     const uint8_t* low, const float* x) {
  const ByteVec l = load_bytes(low + kHalf * kGroupCodes + piece * kByteLanes);
  const ByteVec pairs[2] = {interleave_low(l, high), interleave_high(l, high)};
  SPECDEC_UNROLL for (int i = 0; i < 2; ++i) {
    const F32 even = even_bfloats(pairs[i]), odd = odd_bfloats(pairs[i]);
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const F32 value = set1(x[(2 * kHalf + i) * R + r]);
      F32 &a = acc[r][p * kPanelVectors + piece], &b = acc[r][p * kPanelVectors + kHalfVectors + piece];
      a = fma(even, value, a);
      b = fma(odd, value, b);
    }
  }
}

// One group of panel p: acc += w * x.
template <int R, int P, class Highs>
[[gnu::always_inline]] static inline void coded_group(F32 (&acc)[R][kPanelVectors * P], int p, const Highs& highs,
                                                      const uint8_t* low, const float* x) {
  // Else compilers keep the activations of a group in registers for all panels, and put sums into memory for them.
  asm volatile("" : "+r"(x));
  SPECDEC_UNROLL for (int piece = 0; piece < kPieces; ++piece) {
    coded_half<R, P, 0>(acc, p, piece, highs.template get<0>(piece), low, x);
    coded_half<R, P, 1>(acc, p, piece, highs.template get<1>(piece), low, x);
  }
}

// Groups first..last, none of which has a patch.
template <int R, int P>
[[gnu::always_inline]] static inline void coded_run(F32 (&acc)[R][kPanelVectors * P], const CodedPanel (&panels)[P],
                                                    int64_t first, int64_t last, const float* x) {
  for (int64_t g = first; g < last; ++g) {
    SPECDEC_UNROLL for (int p = 0; p < P; ++p) {
      const uint8_t* low = panels[p].low + g * kGroupLow;
      const uint8_t* codes = panels[p].codes + g * kGroupCodes;
      SPECDEC_PREFETCH_NEAR(low + kAheadGroups * kGroupLow);
      SPECDEC_PREFETCH_NEAR(low + kAheadGroups * kGroupLow + kGroupCodes);
      SPECDEC_PREFETCH_NEAR(codes + kAheadGroups * kGroupCodes);
      coded_group<R, P>(acc, p, CodedHighs{panels[p].table, codes}, low, x + g * kGroupInputs * R);
    }
  }
}

// A group in which some panel has patches.
template <int R, int P>
[[gnu::always_inline]] static inline void coded_patched(F32 (&acc)[R][kPanelVectors * P], CodedPanel (&panels)[P],
                                                        int64_t group, const float* x) {
  alignas(64) uint8_t high[P][kGroupLow];
  SPECDEC_UNROLL for (int p = 0; p < P; ++p) patch_group(panels[p], group, high[p]);
  SPECDEC_UNROLL for (int p = 0; p < P; ++p)
      coded_group<R, P>(acc, p, PlainHighs{high[p]}, panels[p].low + group * kGroupLow, x + group * kGroupInputs * R);
}

// The inputs that are left behind the last whole group.
template <int R, int P>
[[gnu::always_inline]] static inline void coded_rest(F32 (&acc)[R][kPanelVectors * P], CodedPanel (&panels)[P],
                                                     int64_t first, int64_t last, const float* x) {
  alignas(64) float weights[P][kGroupInputs * kPanel];
  for (int p = 0; p < P; ++p) widen_group(panels[p], first / kGroupInputs, weights[p]);
  for (int64_t i = first; i < last; ++i)
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) {
      const F32 value = set1(x[i * R + r]);
      SPECDEC_UNROLL for (int v = 0; v < kPanelVectors * P; ++v) {
        const float* line = weights[v / kPanelVectors] + (i - first) * kPanel;
        acc[r][v] = fma(load(line + v % kPanelVectors * kLanes), value, acc[r][v]);
      }
    }
}

// P panels side by side, one tile of R rows.
template <int R, int P>
static void coded_tile(const DenseCall& call, int64_t first) {
  CodedPanel panels[P];
  for (int p = 0; p < P; ++p) panels[p] = coded_panel(call, first + p);
  const int64_t whole = call.in / kGroupInputs;
  F32 acc[R][kPanelVectors * P];
  clear(acc);
  for (int64_t g = 0; g < whole;) {
    const int64_t table = g / kTableGroups, end = (table + 1) * kTableGroups;
    for (int p = 0; p < P; ++p) panels[p].table = load_table(panels[p].tables + table * kTableBytes);
    const int64_t last = end < whole ? end : whole;
    for (;; ++g) {
      int64_t stop = last;
      for (int p = 0; p < P; ++p)
        if (panels[p].patched < stop) stop = panels[p].patched;
      coded_run<R, P>(acc, panels, g, stop, call.x);
      g = stop;
      if (g == last) break;
      coded_patched<R, P>(acc, panels, g, call.x);
    }
  }
  if (whole * kGroupInputs < call.in) {
    for (int p = 0; p < P; ++p) panels[p].table = load_table(panels[p].tables + whole / kTableGroups * kTableBytes);
    coded_rest<R, P>(acc, panels, whole * kGroupInputs, call.in, call.x);
  }
  for (int p = 0; p < P; ++p) {
    float values[R][kPanel];
    SPECDEC_UNROLL for (int r = 0; r < R; ++r) SPECDEC_UNROLL for (int v = 0; v < kPanelVectors; ++v)
        store(values[r] + v * kLanes, acc[r][p * kPanelVectors + v]);
    for (int r = 0; r < R; ++r) store_outputs(call, first + p, r, values[r]);
  }
}

template <int R>
static void coded_panels(const DenseCall& call, int64_t first, int64_t last) {
  if constexpr (R * kPanelVectors * 4 <= kCodedAccumulators) {
    for (; first + 4 <= last; first += 4) coded_tile<R, 4>(call, first);
  }
  if constexpr (R * kPanelVectors * 2 <= kAccumulators) {
    for (; first + 2 <= last; first += 2) coded_tile<R, 2>(call, first);
  }
  for (; first < last; ++first) coded_tile<R, 1>(call, first);
}

// Functions by number of rows, as for plain lines.
template <int R>
static constexpr DirectPanels coded_of() {
  if constexpr (R <= kTileRows && R * kPanelVectors <= kAccumulators)
    return coded_panels<R>;
  else
    return nullptr;
}
#define SPECDEC_CODED(rows) coded_of<rows>()

// Converts a panel's inputs block by block, which have to come in order.
struct CodedBlocks {
  CodedPanel panel;
  CodedBlocks(const DenseCall& call, int64_t index) : panel(coded_panel(call, index)) {}
  void operator()(const DenseCall&, int64_t first, int64_t n, float* out) {
    static_assert(kBlock % kGroupInputs == 0 && kTableInputs % kBlock == 0, "blocks consist of groups of one table");
    panel.table = load_table(panel.tables + first / kTableInputs * kTableBytes);
    for (int64_t i = 0; i < n; i += kGroupInputs) widen_group(panel, (first + i) / kGroupInputs, out + i * kPanel);
  }
  static void two_tiles(const DenseCall& call, int64_t first, int64_t last, const DirectPanels* by_rows) {
    by_panels(call, first, last, by_rows);
  }
};

static void multiply_coded(const DenseCall& call, int64_t first, int64_t last) {
  static constexpr DirectPanels by_rows[] = SPECDEC_BY_ROWS(SPECDEC_CODED);
  multiply_by<CodedBlocks>(call, first, last, by_rows);
}

}  // namespace specdec::SPECDEC_ISA
