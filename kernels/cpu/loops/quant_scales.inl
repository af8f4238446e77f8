// Scales and offsets of quantised matrices, by format; part of quant.inl.

namespace specdec::SPECDEC_ISA {

// ---- scales: of kLanes outputs from `o` of a block on ------------------------------------------------------------

// What a group's whole numbers are multiplied by. `unit` and `group` are the heads of the block.
template <F32 (*Load)(const uint16_t*), bool Offset>
struct PlainScales {
  static constexpr int kParts = 1;
  static constexpr bool kOffset = Offset, kTwoLevels = false, kUpper = false;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t* unit, const uint8_t*, int, int o) {
    return Load(reinterpret_cast<const uint16_t*>(unit) + o);
  }
  [[gnu::always_inline]] static inline F32 offset(const uint8_t* unit, const uint8_t*, int o) {
    return Load(reinterpret_cast<const uint16_t*>(unit) + kQuantBlock + o);
  }
  // What `scale` and `offset` leave to the end of a span.
  static inline F32 outer(const uint8_t*, int) { return set1(1.0F); }
  static inline F32 outer_offset(const uint8_t*, int) { return set1(1.0F); }
};
// Scales of scales are left to the end of a span.
static inline F32 half_of(const uint8_t* unit, int o) { return load_half(reinterpret_cast<const uint16_t*>(unit) + o); }
struct SixBitScales {
  static constexpr int kParts = 1;
  static constexpr bool kOffset = true, kTwoLevels = true, kUpper = false;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t*, const uint8_t* group, int, int o) {
    return load_u8(group + o);
  }
  [[gnu::always_inline]] static inline F32 offset(const uint8_t*, const uint8_t* group, int o) {
    return load_u8(group + kQuantBlock + o);
  }
  static inline F32 outer(const uint8_t* unit, int o) { return half_of(unit, o); }
  static inline F32 outer_offset(const uint8_t* unit, int o) { return half_of(unit, kQuantBlock + o); }
};
struct ByteScales {
  static constexpr int kParts = 2;
  static constexpr bool kOffset = false, kTwoLevels = true, kUpper = false;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t*, const uint8_t* group, int part, int o) {
    return load_s8(group + part * kQuantBlock + o);
  }
  static inline F32 offset(const uint8_t*, const uint8_t*, int) { return zero(); }
  static inline F32 outer(const uint8_t* unit, int o) { return half_of(unit, o); }
  static inline F32 outer_offset(const uint8_t*, int) { return zero(); }
};
// Of codes whose lower bits are hidden: whole numbers count them, and what is hidden, in halves.
template <class Whole>
struct UpperScales : Whole {
  static constexpr bool kUpper = true;
  [[gnu::always_inline]] static inline F32 scale(const uint8_t* unit, const uint8_t* group, int part, int o) {
    return mul(Whole::scale(unit, group, part, o), set1(0.5F));
  }
};

}  // namespace specdec::SPECDEC_ISA
