#include "coded.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

namespace specdec {
namespace {

constexpr uint8_t kNoCode = 0xFF;
constexpr int kGroupPlaces = kGroupLow;

// Where the weights of a group lie, [kGroupInputs][kPanel].
struct Places {
  uint8_t of[kGroupInputs * kPanel];
  constexpr Places() : of() {
    for (int j = 0; j < kGroupInputs * kPanel; ++j) of[j] = static_cast<uint8_t>(coded_place(j / kPanel, j % kPanel));
  }
};
constexpr Places kPlaces;

// Where in [kGroupInputs][kPanel] the weight of each place is.
struct Origins {
  uint8_t of[kGroupPlaces];
  constexpr Origins() : of() {
    for (int j = 0; j < kGroupPlaces; ++j) of[kPlaces.of[j]] = static_cast<uint8_t>(j);
  }
};
constexpr Origins kOrigins;

// The 16 most frequent high bytes, of equally frequent ones the smaller first.
void choose_table(const uint16_t* weights, int64_t count, uint8_t* table) {
  uint32_t counts[4][256] = {};  // in turn, so that no addition waits for the one before it
  for (int64_t j = 0; j < count; j += 4)
    for (int k = 0; k < 4; ++k) ++counts[k][weights[j + k] >> 8];
  uint32_t order[256];
  for (uint32_t byte = 0; byte < 256; ++byte)
    order[byte] = (counts[0][byte] + counts[1][byte] + counts[2][byte] + counts[3][byte]) << 8 | (255 - byte);
  std::partial_sort(order, order + kTableBytes, order + 256, std::greater<>());
  for (int code = 0; code < kTableBytes; ++code) table[code] = static_cast<uint8_t>(255 - (order[code] & 255));
}

}  // namespace

size_t CodedMatrix::bytes_for(int64_t out, int64_t in) {
  const int64_t panels = (out + kPanel - 1) / kPanel;
  const int64_t bytes = panels * (coded_groups(in) * (kGroupLow + kGroupCodes) + coded_tables(in) * kTableBytes);
  return static_cast<size_t>((bytes + kGroupLow - 1) / kGroupLow * kGroupLow);  // the next matrix begins with a whole line
}

CodedMatrix::CodedMatrix(int64_t out, int64_t in, Buffer<uint8_t> data)
    : in_(in),
      groups_(coded_groups(in)),
      tables_(coded_tables(in)),
      panels_((out + kPanel - 1) / kPanel),
      panel_bytes_(groups_ * (kGroupLow + kGroupCodes) + tables_ * kTableBytes),
      data_(std::move(data)),
      low_(data_.data()),
      codes_(low_ + panels_ * groups_ * kGroupLow),
      table_(codes_ + panels_ * groups_ * kGroupCodes),
      loose_(static_cast<size_t>(panels_ * tables_)) {}

void CodedMatrix::encode(int64_t panel, int64_t first, int64_t count, const uint16_t* weights) {
  const int64_t block = panel * tables_ + first / kTableInputs;
  uint8_t* table = table_ + block * kTableBytes;
  choose_table(weights, count * kPanel, table);
  uint8_t code_of[256];
  std::memset(code_of, kNoCode, sizeof code_of);
  for (int code = kTableBytes - 1; code >= 0; --code) code_of[table[code]] = static_cast<uint8_t>(code);
  std::vector<uint32_t>& patches = loose_[static_cast<size_t>(block)];
  patches.clear();
  for (int64_t i = 0; i < count; i += kGroupInputs) {
    const int64_t group = (first + i) / kGroupInputs;
    const int64_t held = std::min<int64_t>(kGroupInputs, count - i) * kPanel;
    uint8_t codes[kGroupPlaces] = {}, *low = low_ + (panel * groups_ + group) * kGroupLow;
    uint8_t missing = 0;
    for (int64_t j = 0; j < held; ++j) {
      const uint16_t weight = weights[i * kPanel + j];
      const uint8_t code = code_of[weight >> 8];
      missing |= code;
      low[kPlaces.of[j]] = static_cast<uint8_t>(weight);
      codes[kPlaces.of[j]] = code;
    }
    if (missing == kNoCode) {
      for (int64_t place = 0; place < kGroupPlaces; ++place) {
        if (codes[place] != kNoCode) continue;
        codes[place] = 0;
        patches.push_back(static_cast<uint32_t>(group << 16 | place << 8) | weights[i * kPanel + kOrigins.of[place]] >> 8);
      }
    }
    uint8_t* to = codes_ + (panel * groups_ + group) * kGroupCodes;
    for (int b = 0; b < kGroupCodes; ++b) to[b] = static_cast<uint8_t>(codes[b] | codes[kGroupCodes + b] << 4);
  }
}

double CodedMatrix::finish() {
  size_t count = static_cast<size_t>(panels_);
  for (const auto& patches : loose_) count += patches.size();
  patches_ = Buffer<uint32_t>(count);
  first_patch_ = Buffer<uint32_t>(static_cast<size_t>(panels_));
  uint32_t at = 0, last = kNoPatch;
  int64_t patched = 0;
  for (int64_t panel = 0; panel < panels_; ++panel) {
    first_patch_[static_cast<size_t>(panel)] = at;
    for (int64_t table = 0; table < tables_; ++table)
      for (const uint32_t patch : loose_[static_cast<size_t>(panel * tables_ + table)]) {
        patched += patch >> 16 != last >> 16;
        patches_[at++] = last = patch;
      }
    patches_[at++] = last = kNoPatch;
  }
  loose_ = {};
  lines_ = {low_, codes_, table_, patches_.data(), first_patch_.data()};
  return static_cast<double>(patched) / static_cast<double>(panels_ * groups_);
}

template <class Run>
void CodedMatrix::for_patches(int64_t panel, int64_t first, int64_t count, const Run& run) const {
  auto visit = [&](uint32_t patch) {
    const int origin = kOrigins.of[patch >> 8 & 0x7F];
    const int64_t input = (patch >> 16) * int64_t{kGroupInputs} + origin / kPanel;
    if (input >= first && input < first + count) run(input, origin % kPanel, static_cast<uint8_t>(patch));
  };
  if (!loose_.empty()) {
    for (int64_t block = first / kTableInputs; block * kTableInputs < first + count; ++block)
      for (const uint32_t patch : loose_[static_cast<size_t>(panel * tables_ + block)]) visit(patch);
    return;
  }
  const uint32_t* begin = patches_.data() + first_patch_[static_cast<size_t>(panel)];
  const uint32_t* end = panel + 1 < panels_ ? patches_.data() + first_patch_[static_cast<size_t>(panel + 1)]
                                            : patches_.data() + patches_.size();
  const auto from = static_cast<uint32_t>(first / kGroupInputs << 16);
  const auto last = static_cast<uint32_t>((first + count - 1) / kGroupInputs);
  for (const uint32_t* patch = std::lower_bound(begin, end, from); *patch >> 16 <= last && *patch != kNoPatch; ++patch)
    visit(*patch);
}

void CodedMatrix::decode(int64_t panel, int64_t first, int64_t count, uint16_t* weights) const {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t input = first + i, group = panel * groups_ + input / kGroupInputs;
    const uint8_t* table = table_ + (panel * tables_ + input / kTableInputs) * kTableBytes;
    const uint8_t* codes = codes_ + group * kGroupCodes;
    const int shift = input % kGroupInputs / 2 * 4;
    for (int lane = 0; lane < kPanel; ++lane) {
      const int place = kPlaces.of[input % kGroupInputs * kPanel + lane];
      const int code = codes[place % kGroupCodes] >> shift & 15;
      weights[i * kPanel + lane] = static_cast<uint16_t>(table[code] << 8 | low_[group * kGroupLow + place]);
    }
  }
  for_patches(panel, first, count, [&](int64_t input, int lane, uint8_t byte) {
    uint16_t& weight = weights[(input - first) * kPanel + lane];
    weight = static_cast<uint16_t>(byte << 8 | (weight & 0xFF));
  });
}

void CodedMatrix::row(int64_t output, uint16_t* weights) const {
  const int64_t panel = output / kPanel;
  const int lane = static_cast<int>(output % kPanel);
  for (int64_t input = 0; input < in_; ++input) {
    const int64_t group = panel * groups_ + input / kGroupInputs;
    const int place = kPlaces.of[input % kGroupInputs * kPanel + lane];
    const int code = codes_[group * kGroupCodes + place % kGroupCodes] >> (input % kGroupInputs / 2 * 4) & 15;
    const uint8_t high = table_[(panel * tables_ + input / kTableInputs) * kTableBytes + code];
    weights[input] = static_cast<uint16_t>(high << 8 | low_[group * kGroupLow + place]);
  }
  for_patches(panel, 0, in_, [&](int64_t input, int patched, uint8_t byte) {
    if (patched == lane) weights[input] = static_cast<uint16_t>(byte << 8 | (weights[input] & 0xFF));
  });
}

}  // namespace specdec
