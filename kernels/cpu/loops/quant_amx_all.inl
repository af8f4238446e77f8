// All inputs of quantised matrices, whole codes, times rows with AMX, in three steps that overlap: while the codes of a
// block's group are multiplied, the next codes are unpacked, and the sums of the vector before are scaled.
//
// A loop that works on tiles starts one multiply-add of 512 bits a cycle instead of two, and storing a tile occupies the
// unit that interleaves bytes for 16 cycles. So each step waits for other units than the others do. For quant_amx.inl.

namespace specdec::SPECDEC_ISA {

template <int Bits, class Scales>
class AmxAll {
 public:
  explicit AmxAll(const QuantCall& call)
      : call_(call),
        at_(call),
        blocks_((call.last_out - call.first_out) / kQuantBlock),
        end_(quant_end(call)),
        rows_(quant_rows_in_all(call)),
        lines_(at_.unit_bytes / call.format.unit / 64 / (at_.width / kQuantBlock) / kParts) {
    for (int t = 0; t < call.tiles; ++t) most_ = call.rows[t] > most_ ? call.rows[t] : most_;
    for (int j = 0; j < kQuantGroup; ++j) offsets_[j] = static_cast<int32_t>(j * at_.row_bytes);
  }
  void run() {
    if (call_.first_group >= end_ || blocks_ == 0) return;
    if (most_ <= kAmxRows / 2)
      run_parts<false>();
    else
      run_parts<true>();
  }

 private:
  static constexpr int kParts = Scales::kParts, kPartQuads = kQuads / kParts, kCodes = kPartQuads * 64;
  static constexpr int kVectors = kQuantBlock / 16;
  // Lines of a part, and of the heads in front of it, for each of its vectors.
  static constexpr int kAsks = (Bits + kParts) / kParts;

  // A part of a group of a block, in the order in which they are multiplied: parts, groups of a span, blocks, spans.
  struct Part {
    int64_t span = 0, b = 0, g = 0;  // `span`: its first group
    int part = 0;
    bool begins = false, ends = false;  // its span
    QuantBlock block{};
  };
  // A part times one tile of rows.
  struct Turn {
    const Part* part = nullptr;
    const int32_t* x = nullptr;
    float* sums = nullptr;  // of the span
    const uint8_t* codes = nullptr;
    int n = 0;
    bool begins = false, ends = false;
  };
  struct Group {
    const uint8_t *unit, *group, *rows;
  };

  // ---- order -----------------------------------------------------------------------------------------------------

  int64_t span_end(int64_t span) const { return span + kSpanGroups < end_ ? span + kSpanGroups : end_; }
  void enter_span(int64_t span) {
    for (int64_t g = span; g < span_end(span); ++g) groups_[g - span] = {at_.unit(g), at_.group(g), at_.rows(g)};
  }
  void look_ahead(int64_t span) {
    ahead_ = at_.unit(span) + (at_.width == kQuantBlock ? kQuantAhead : at_.unit_bytes * (kSpanGroups / call_.format.unit));
  }
  void place(Part* part) const {
    const int64_t first = call_.first_out + part->b * kQuantBlock;
    const Group& group = groups_[part->g - part->span];
    part->begins = part->g == part->span && part->part == 0;
    part->ends = part->g == span_end(part->span) - 1 && part->part == kParts - 1;
    part->block.unit = group.unit + first * unit_head_;
    part->block.group = group.group + first * group_head_;
    part->block.rows = group.rows + first / 2;
    part->block.rest = at_.width / 2 - first / 2 + first * rest_bits_ / 8;
  }
  // What follows; returns whether anything does. Fields are written one by one: copying them at once would wait for them.
  bool follow(const Part& part, Part* next) {
    int64_t span = part.span, b = part.b, g = part.g;
    next->part = kParts == 2 ? 1 - part.part : 0;
    if (next->part == 0 && ++g == span_end(span)) {
      if (++b == blocks_) {
        b = 0;
        span += kSpanGroups;
        if (span >= end_) return false;
        enter_span(span);
      }
      g = span;
    }
    next->span = span, next->b = b, next->g = g;
    place(next);
    return true;
  }
  float* span_sums(const Part& part) const {
    if (call_.spans == nullptr) return reinterpret_cast<float*>(call_.scratch);
    return call_.spans + (part.span / kSpanGroups * blocks_ + part.b) * rows_ * kQuantBlock;
  }

  // ---- steps -----------------------------------------------------------------------------------------------------

  // Codes of a quad of inputs, to the same quad of every vector.
  template <int Quad>
  [[gnu::always_inline]] inline void unpack(const Part& of, uint8_t* to) const {
    const QuantBlock& block = of.block;
    const int32_t* offset = offsets_ + 4 * (of.part * kPartQuads + Quad);
    const QuantQuad four{block.rows + offset[0], block.rows + offset[1], block.rows + offset[2], block.rows + offset[3],
                         block.rest};
    Bytes codes[kVectors];  // all before the first is stored: compilers would load the rows again after a store
    unpack_pair<Bits, 0>(four, &codes[0], &codes[1]);
    unpack_pair<Bits, 1>(four, &codes[2], &codes[3]);
    unpack_pair<Bits, 2>(four, &codes[4], &codes[5]);
    unpack_pair<Bits, 3>(four, &codes[6], &codes[7]);
    SPECDEC_UNROLL for (int v = 0; v < kVectors; ++v) _mm512_store_si512(to + v * kCodes + Quad * 64, codes[v].x);
  }

  // Sums of a vector: high bytes of all rows, then low bytes.
  int32_t* vector_sums(int v) { return products_ + v * (2 * most_ + 2) * 16; }

  // Scales a vector's sums and adds them to the span's, as quant_vectors does.
  template <int V>
  [[gnu::always_inline]] inline void scale(const Turn& turn) {
    constexpr int o = 16 * V;
    const int n = turn.n, part = turn.part->part;
    const QuantBlock& block = turn.part->block;
    const int32_t *high = vector_sums(V), *low = high + n * 16, *added = turn.x + (2 * kQuads + part) * n;
    const auto* sum = reinterpret_cast<const float*>(turn.x + (2 * kQuads + 2) * n);
    const F32 scale = Scales::scale(block.unit, block.group, part, o);
    const F32 offset = Scales::kOffset && !Scales::kTwoLevels ? Scales::offset(block.unit, block.group, o) : zero();
    auto row = [&](int r) __attribute__((always_inline)) {
      Sums whole = add_sums(_mm512_slli_epi32(_mm512_load_si512(high + 16 * r), 8), _mm512_load_si512(low + 16 * r));
      if constexpr (!Scales::kOffset) {
        const int32_t all = kParts == 1 ? added[r] + added[n + r] : added[r];
        whole = add_sums(whole, sums_of(-zero_ * all));
      }
      float* to = turn.sums + r * kQuantBlock + o;
      F32 total = fused(to_float(whole), scale, load(to));
      if constexpr (Scales::kOffset && !Scales::kTwoLevels) total = fused(set1(-sum[r]), offset, total);
      store(to, total);
    };
    int r = 0;
    for (; r + 4 <= n; r += 4) row(r), row(r + 1), row(r + 2), row(r + 3);
    if ((n & 2) != 0) row(r), row(r + 1), r += 2;
    if ((n & 1) != 0) row(r);
  }

  // Multiplies `here` (or only stores what is left of `last`), scales `last`, and unpacks `next`. A tile is stored when
  // others have been begun since, for a store waits for its products: two vectors later, or with two tiles one.
  template <bool Two, bool Unpack, bool Multiply>
  [[gnu::always_inline]] inline void step(const Part& next, uint8_t* to, const Turn& here, const Turn& last) {
    if constexpr (Multiply) {
      const int32_t* x = here.x + here.part->part * kPartQuads;
      tile_load<0, kQuads * kAmxRows * 4>(x, 4 * kQuads);
      if constexpr (Two) tile_load<1, kQuads * kAmxRows * 4>(x + most_ * kQuads, 4 * kQuads);
    }
    const uint8_t* ahead = ahead_;
    auto vector = [&](auto number) __attribute__((always_inline)) {
      constexpr int V = decltype(number)::value, kLate = Two ? 1 : 2, kStored = (V + kVectors - kLate) % kVectors;
      constexpr int kTile = Two ? 4 + V % 2 * 2 : 4 + V % 4, kStoredTile = Two ? 4 + kStored % 2 * 2 : 4 + kStored % 4;
      if constexpr (Unpack)
        SPECDEC_UNROLL for (int k = 0; k < kAsks; ++k) SPECDEC_PREFETCH_FAR(ahead + 64 * (V * kAsks + k));
      if constexpr (Multiply) {
        tile_load<2 + V % 2, kCodes>(here.codes + V * kCodes, 64);
        tile_products<kTile, 0, 2 + V % 2>();
      }
      if constexpr (Multiply || V < kLate) tile_store<kStoredTile, kAmxRows * 64>(vector_sums(kStored));
      if constexpr (Two && Multiply) tile_products<kTile + 1, 1, 2 + V % 2>();
      if constexpr (Two && (Multiply || V < kLate))
        tile_store<kStoredTile + 1, kAmxRows * 64>(vector_sums(kStored) + most_ * 16);
      if constexpr (Unpack && V % kParts == 0) unpack<V / kParts>(next, to);
      scale<V>(last);
    };
    vector(Constant<0>{}), vector(Constant<1>{}), vector(Constant<2>{}), vector(Constant<3>{});
    vector(Constant<4>{}), vector(Constant<5>{}), vector(Constant<6>{}), vector(Constant<7>{});
    if constexpr (Unpack) ahead_ = ahead + 64 * lines_;
  }

  // A step, between clearing the sums of the span that `last` begins and adding those that it ends.
  template <bool Two, bool Unpack, bool Multiply>
  void turn(const Part& next, uint8_t* to, const Turn& here, const Turn& last) {
    float* sums = span_sums(*last.part);
    if (last.begins)
      for (int64_t o = 0; o < rows_ * kQuantBlock; o += kLanes) store(sums + o, zero());
    step<Two, Unpack, Multiply>(next, to, here, last);
    if (last.ends && call_.spans == nullptr)
      at_.finish_span(last.part->span, call_.first_out + last.part->b * kQuantBlock, sums,
                      call_.sums + last.part->b * kQuantBlock);
  }

  template <bool Two>
  void run_parts() {
    const TileShapes shapes(most_, kPartQuads);
    _tile_loadconfig(&shapes);
    Part parts[3];
    Part *now = &parts[0], *next = &parts[1], *before = &parts[2];
    now->span = now->g = call_.first_group;
    enter_span(now->span);
    look_ahead(now->span);
    place(now);
    unpack<0>(*now, codes_[0]), unpack<1>(*now, codes_[0]), unpack<2>(*now, codes_[0]), unpack<3>(*now, codes_[0]);
    if constexpr (kParts == 1)
      unpack<4>(*now, codes_[0]), unpack<5>(*now, codes_[0]), unpack<6>(*now, codes_[0]), unpack<7>(*now, codes_[0]);
    Turn turns[2];  // the second: of no rows
    turns[1].part = now, turns[1].x = call_.x[0];
    int odd = 0, which = 0;
    for (bool more = true; more; odd ^= 1) {
      more = follow(*now, next);
      float* sums = span_sums(*now);
      for (int t = 0; t < call_.tiles; ++t, which ^= 1) {
        Turn &here = turns[which], &last = turns[which ^ 1];
        here.part = now, here.n = call_.rows[t], here.sums = sums, here.codes = codes_[odd];
        here.x = call_.x[t] + now->g * kQuantRowWords * here.n;
        here.begins = now->begins && t == 0, here.ends = now->ends && t == call_.tiles - 1;
        sums += here.n * kQuantBlock;
        if (more && t == 0)
          turn<Two, true, true>(*next, codes_[odd ^ 1], here, last);
        else
          turn<Two, false, true>(*next, nullptr, here, last);
      }
      if (more && next->span != now->span) look_ahead(next->span);
      Part* const free = before;
      before = now, now = next, next = free;
    }
    const Turn& last = turns[which ^ 1];
    turn<Two, false, false>(*next, nullptr, last, last);
    _tile_release();
  }

  const QuantCall& call_;
  const QuantTilePlaces<Scales> at_;
  const int64_t blocks_, end_, rows_, lines_;
  const int64_t unit_head_ = call_.format.unit_head(), group_head_ = call_.format.group_head();
  const int64_t rest_bits_ = call_.format.rest_bits();
  const int32_t zero_ = call_.format.zero;
  int most_ = 0;  // rows of a tile
  const uint8_t* ahead_ = nullptr;
  int32_t offsets_[kQuantGroup];
  Group groups_[kSpanGroups];
  alignas(64) uint8_t codes_[2][kVectors * kCodes];
  alignas(64) int32_t products_[kVectors * (2 * kAmxRows + 2) * 16];
};

}  // namespace specdec::SPECDEC_ISA
