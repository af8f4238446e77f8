// How bf16 weights lie in 12 bits: the low byte of each, and in place of the high byte a 4-bit index of one of 16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace specdec {

// Inputs of a panel that are decoded together, a group: 64 bytes of codes, and twice as many of low bytes.
constexpr int kGroupInputs = 4;
constexpr int kGroupCodes = 64;
constexpr int kGroupLow = 2 * kGroupCodes;
// Groups that share a table of 16 high bytes: 256 inputs.
constexpr int kTableGroups = 64;
constexpr int kTableBytes = 16;
constexpr int kTableInputs = kTableGroups * kGroupInputs;
// A weight whose high byte is not in the table has a patch: group << 16 | place << 8 | byte. After the last one of a panel:
constexpr uint32_t kNoPatch = ~uint32_t{0};
constexpr int64_t kMostCodedInputs = int64_t{0xFFFF} * kGroupInputs;

// The panels of one matrix. Places 0..127 of a group are bytes of `low` and of the high bytes that belong to them. Byte b of
// codes has the index of place b in its low four bits and of place 64 + b in the others. With half = place / 64, piece =
// place / 16 % 4 and k = place % 8, a place belongs to input 2 * half + place / 8 % 2 and to output 4 * piece + k / 2 +
// 16 * (k % 2). So interleaving 16 low bytes with their high bytes, and then shifts and masks of 32-bit words, give outputs
// in order, on vectors of any length.
struct CodedLines {
  const uint8_t* low = nullptr;  // [panels][groups][kGroupLow]; null: the matrix has plain lines
  const uint8_t* codes = nullptr;   // [panels][groups][kGroupCodes]
  const uint8_t* tables = nullptr;  // [panels][ceil(groups / kTableGroups)][kTableBytes]
  const uint32_t* patches = nullptr;  // of all panels, of each in ascending order and then kNoPatch
  const uint32_t* first_patch = nullptr;  // of each panel
};

#define SPECDEC_CODED_INLINE [[gnu::always_inline]] inline

SPECDEC_CODED_INLINE constexpr int64_t coded_groups(int64_t in) { return (in + kGroupInputs - 1) / kGroupInputs; }
SPECDEC_CODED_INLINE constexpr int64_t coded_tables(int64_t in) {
  return (coded_groups(in) + kTableGroups - 1) / kTableGroups;
}
// The place of a weight in its group.
SPECDEC_CODED_INLINE constexpr int coded_place(int64_t input, int64_t lane) {
  const int i = static_cast<int>(input % kGroupInputs), o = static_cast<int>(lane % 16);
  return i / 2 * 64 + o / 4 * 16 + i % 2 * 8 + o % 4 * 2 + static_cast<int>(lane / 16);
}

}  // namespace specdec
