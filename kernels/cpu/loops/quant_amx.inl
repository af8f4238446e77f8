// Quantised matrices times up to 16 rows with AMX: a tile of codes times a tile of both bytes of every row's activations.
//
// What is added is the same whole numbers as in quant.inl, so the bits are. Codes are unpacked once for all rows and go
// through the first-level cache, as the sums do: with few rows that costs more than it saves. All inputs: see
// quant_amx_all.inl; chosen ones: below, one step after the other.

#include <immintrin.h>

#include "quant_tiles.inl"

namespace specdec::SPECDEC_ISA {

constexpr int kAmxRows = 16;
// From how many rows on it is faster. The same for all types: matrices of several types share a pass's activations.
static inline bool amx_pays(int rows, bool chosen) { return rows >= (chosen ? 7 : 5); }

// Shapes of the tiles: 0 and 1 activations (both bytes of up to 8 rows in one), 2 and 3 codes, 4 to 7 sums.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes(int n, int quads) {
    auto shape = [this](int tile, int count, int bytes) {
      rows[tile] = static_cast<uint8_t>(count);
      row_bytes[tile] = static_cast<uint16_t>(bytes);
    };
    const int of_activations = n <= kAmxRows / 2 ? 2 * n : n;
    for (int tile = 0; tile < 2; ++tile) shape(tile, of_activations, 4 * quads);
    for (int tile = 2; tile < 4; ++tile) shape(tile, quads, 64);
    for (int tile = 4; tile < 8; ++tile) shape(tile, of_activations, 64);
  }
};

// Instructions on tiles, numbered by template arguments. GCC's own intrinsics do not declare the memory they access.
template <int Tile, int Bytes>
[[gnu::always_inline]] static inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile),
               "m"(*static_cast<const uint8_t(*)[Bytes]>(from)));
}
template <int Tile, int Bytes>
[[gnu::always_inline]] static inline void tile_store(void* to) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
               : "=m"(*static_cast<uint8_t(*)[Bytes]>(to))
               : "r"(to), "r"(int64_t{64}), "i"(Tile));
}
// `To` = activations x codes.
template <int To, int Activations, int Codes>
[[gnu::always_inline]] static inline void tile_products() {
  asm volatile("tilezero %%tmm%c0\n\ttdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(To), "i"(Activations), "i"(Codes));
}

// Sums of a part of a group: for each vector of 16 outputs, high bytes of all rows, then low bytes. Vectors are two lines
// more apart than they are long, or loads would wait for stores that are 4096 bytes away.
struct AmxSums {
  alignas(64) int32_t lines[kQuantBlock / 16 * (2 * kAmxRows + 2)][16];
  int32_t (*of(int vector, int n))[16] { return lines + vector * (2 * n + 2); }
  const int32_t (*of(int vector, int n) const)[16] { return lines + vector * (2 * n + 2); }
};

// The products of one part with n rows, whose words lie row by row: 8 of high bytes each, then 8 of low bytes. Sums take
// turns in four tiles, and a tile is stored when two others have been begun since: a store waits for its products, and
// later instructions wait for the store.
template <int Quads>
static void amx_products(const uint8_t (*codes)[kQuads][64], int first_quad, const int32_t* x, int n, AmxSums* sums) {
  constexpr int64_t kRowBytes = 4 * kQuads;
  constexpr int kVectors = kQuantBlock / 16, kBytes = kAmxRows * 64;
  tile_load<0, kQuads * kAmxRows * 4>(x + first_quad, kRowBytes);
  if (n <= kAmxRows / 2) {
    auto one = [&](auto number) __attribute__((always_inline)) {
      constexpr int kAt = decltype(number)::value;
      if constexpr (kAt < kVectors) {
        tile_load<2 + kAt % 2, Quads * 64>(codes[kAt][first_quad], 64);
        tile_products<4 + kAt % 4, 0, 2 + kAt % 2>();
      }
      if constexpr (kAt >= 2) tile_store<4 + (kAt - 2) % 4, kBytes>(sums->of(kAt - 2, n));
    };
    one(Constant<0>{}), one(Constant<1>{}), one(Constant<2>{}), one(Constant<3>{}), one(Constant<4>{});
    one(Constant<5>{}), one(Constant<6>{}), one(Constant<7>{}), one(Constant<8>{}), one(Constant<9>{});
  } else {
    tile_load<1, kQuads * kAmxRows * 4>(x + n * kQuads + first_quad, kRowBytes);
    auto one = [&](auto number) __attribute__((always_inline)) {
      constexpr int kAt = decltype(number)::value;
      if constexpr (kAt < kVectors) {
        tile_load<2 + kAt % 2, Quads * 64>(codes[kAt][first_quad], 64);
        tile_products<4 + kAt % 2 * 2, 0, 2 + kAt % 2>();
      }
      if constexpr (kAt >= 1) tile_store<4 + (kAt - 1) % 2 * 2, kBytes>(sums->of(kAt - 1, n));
      if constexpr (kAt < kVectors) tile_products<5 + kAt % 2 * 2, 1, 2 + kAt % 2>();
      if constexpr (kAt >= 1) tile_store<5 + (kAt - 1) % 2 * 2, kBytes>(sums->of(kAt - 1, n) + n);
    };
    one(Constant<0>{}), one(Constant<1>{}), one(Constant<2>{}), one(Constant<3>{}), one(Constant<4>{});
    one(Constant<5>{}), one(Constant<6>{}), one(Constant<7>{}), one(Constant<8>{});
  }
}

// Scales a part's sums and adds them to those of the span, as quant_vectors does.
template <class Scales, int Part>
static void amx_scale(const QuantBlock& block, const int32_t* x, int n, const AmxSums& sums, float* span) {
  constexpr bool kMoved = Scales::kUpper || !Scales::kOffset;
  const int32_t* added = x + (2 * kQuads + Part) * n;
  const auto* sum = reinterpret_cast<const float*>(x + (2 * kQuads + 2) * n);
  for (int v = 0; v < kQuantBlock / 16; ++v) {
    const int o = 16 * v;
    const int32_t(*high)[16] = sums.of(v, n);
    const F32 scale = Scales::scale(block.unit, block.group, Part, o);
    const F32 offset = Scales::kOffset && !Scales::kTwoLevels ? Scales::offset(block.unit, block.group, o) : zero();
    for (int r = 0; r < n; ++r) {
      const int32_t all = Scales::kParts == 1 ? added[r] + added[n + r] : added[r];
      const Sums moved = sums_of(kMoved ? -block.zero * all : 0);
      Sums whole = add_sums(_mm512_slli_epi32(_mm512_load_si512(high[r]), 8), _mm512_load_si512(high[n + r]));
      whole = add_sums(Scales::kUpper ? shifted(whole, block.shift) : whole, moved);
      float* to = span + r * kQuantBlock + o;
      F32 total = fused(to_float(whole), scale, load(to));
      if constexpr (Scales::kOffset && !Scales::kTwoLevels) total = fused(set1(-sum[r]), offset, total);
      store(to, total);
    }
  }
}

// One block of a group times n rows; asks for a share of the lines ahead.
template <int Bits, class Scales>
static void amx_rows(int n, const QuantBlock& block, const int32_t* x, float* span, QuantAhead& ahead, int64_t lines) {
  constexpr int kPartQuads = kQuads / Scales::kParts;
  alignas(64) uint8_t codes[kQuantBlock / 16][kQuads][64];
  AmxSums sums;
  const int64_t asks = (lines + kQuads - 1) / kQuads;
  for (int part = 0; part < Scales::kParts; ++part)
    for (int q = 0; q < kPartQuads; ++q) {
      for (int64_t k = 0; k < asks; ++k) ahead.line();
      const int at = part * kPartQuads + q;
      if (q >= block.quads[part]) continue;  // its activations are zeros
      const int32_t* offset = block.offsets + 4 * at;
      const QuantQuad four{block.rows + offset[0], block.rows + offset[1], block.rows + offset[2], block.rows + offset[3],
                           block.rest};
      auto pair = [&](auto number) __attribute__((always_inline)) {
        constexpr int kAt = decltype(number)::value;
        Bytes low, high;
        unpack_pair<Bits, kAt>(four, &low, &high);
        _mm512_store_si512(codes[2 * kAt][at], low.x);
        _mm512_store_si512(codes[2 * kAt + 1][at], high.x);
      };
      pair(Constant<0>{});
      pair(Constant<1>{});
      pair(Constant<2>{});
      pair(Constant<3>{});
    }
  // What is not taken was not unpacked: any codes do.
  amx_products<kPartQuads>(codes, 0, x, n, &sums);
  amx_scale<Scales, 0>(block, x, n, sums, span);
  if constexpr (Scales::kParts == 2) {
    amx_products<kPartQuads>(codes, kPartQuads, x, n, &sums);
    amx_scale<Scales, 1>(block, x, n, sums, span);
  }
}

}  // namespace specdec::SPECDEC_ISA

#include "quant_amx_all.inl"

namespace specdec::SPECDEC_ISA {

// One step after the other: of chosen inputs, and of codes without their lower bits.
template <int Bits, class Scales>
static void amx_multiply_as(const QuantCall& call) {
  int shaped = 0;
  quant_multiply_with<Scales>(call, [&shaped](int n, const QuantBlock& block, const int32_t* x, float* span,
                                              QuantAhead& ahead, int64_t lines) {
    if (n != shaped) {
      const TileShapes shapes(n, kQuads / Scales::kParts);
      _tile_loadconfig(&shapes);
      shaped = n;
    }
    amx_rows<Bits, Scales>(n, block, x, span, ahead, lines);
  });
  _tile_release();
}

template <int Bits, class Scales>
struct AmxMultiply {
  static void run(const QuantCall& call) {
    if (call.choices != nullptr) return amx_multiply_as<Bits, Scales>(call);
    if (call.spans == nullptr) quant_clear(call);
    AmxAll<Bits, Scales>(call).run();
  }
};
template <int Bits, class Scales>
struct AmxMultiplyUpper {
  static void run(const QuantCall& call) {
    if constexpr (Bits > 4) amx_multiply_as<4, UpperScales<Scales>>(call);
  }
};
static void amx_multiply(const QuantCall& call) {
  if (call.format.hidden == 0)
    by_format<AmxMultiply>(call.format, call);
  else
    by_format<AmxMultiplyUpper>(call.format, call);
}

// The words of some groups of n rows, from word by word to row by row.
static void to_row_order(const QuantRowsCall& call) {
  const int64_t groups = call.in / kQuantGroup, last = call.last * kSpanGroups < groups ? call.last * kSpanGroups : groups;
  for (int64_t g = call.first * kSpanGroups; g < last; ++g)
    for (int half = 0; half < 2; ++half) {
      int32_t* words = call.out + (g * kQuantRowWords + half * kQuads) * call.rows;
      int32_t rows[kAmxRows][kQuads];
      for (int k = 0; k < kQuads; ++k)
        for (int r = 0; r < call.rows; ++r) rows[r][k] = words[k * call.rows + r];
      __builtin_memcpy(words, rows, sizeof rows[0] * static_cast<size_t>(call.rows));
    }
}

}  // namespace specdec::SPECDEC_ISA
