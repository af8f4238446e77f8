#include "quant_matrix.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "half.h"

namespace specdec {
namespace {

// Blocks of outputs of a tile, at most. Long rows suit low efforts, short ones whole passes.
constexpr int64_t kTileBlocks = 8;

uint16_t word(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint16_t negative(uint16_t bits) { return static_cast<uint16_t>(bits ^ 0x8000U); }

// 32 codes in 16 bytes: low nibbles first.
void nibbles(const uint8_t* p, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = p[j] & 15;
    codes[j + 16] = p[j] >> 4;
  }
}
// The same with a fifth bit each.
void nibbles_and_bits(const uint8_t* bits, const uint8_t* p, uint8_t* codes) {
  nibbles(p, codes);
  for (int j = 0; j < kQuantGroup; ++j) codes[j] = static_cast<uint8_t>(codes[j] | (bits[j / 8] >> (j % 8) & 1) << 4);
}
// Scale and offset number g of the eight pairs that q4_k and q5_k keep in 12 bytes of 6-bit numbers.
void six_bit_pair(const uint8_t* p, int64_t g, uint8_t* own) {
  if (g < 4) {
    own[0] = p[g] & 63;
    own[1] = p[g + 4] & 63;
  } else {
    own[0] = static_cast<uint8_t>((p[g + 4] & 15) | (p[g - 4] >> 6) << 4);
    own[1] = static_cast<uint8_t>(p[g + 4] >> 4 | (p[g] >> 6) << 4);
  }
}

// Eight codes of kBits from as many bytes, the first in the lowest bits, a byte each.
template <int kBits>
uint64_t eight_codes(const uint8_t* p) {
  uint64_t x = 0;
  std::memcpy(&x, p, kBits);
  x = (x | x << 4 * (8 - kBits)) & 0x0000000100000001U * ((uint64_t{1} << 4 * kBits) - 1);
  x = (x | x << 2 * (8 - kBits)) & 0x0001000100010001U * ((uint64_t{1} << 2 * kBits) - 1);
  return (x | x << (8 - kBits)) & 0x0101010101010101U * ((uint64_t{1} << kBits) - 1);
}
// 32 codes in planes, kRest bits of each in the second; without it these bits are zeros.
template <int kRest>
void join(const uint8_t* upper, const uint8_t* rest, uint8_t* codes) {
  for (int k = 0; k < kQuantGroup / 8; ++k) {
    uint64_t eight = eight_codes<4>(upper + 4 * k) << kRest;
    if (rest != nullptr) eight |= eight_codes<kRest>(rest + kRest * k);
    std::memcpy(codes + 8 * k, &eight, 8);
  }
}

bool finite(uint16_t bits, QuantScale scale) {
  const uint16_t exponent = scale == QuantScale::bfloat ? 0x7F80 : 0x7C00;
  return (bits & exponent) != exponent;
}
float value_of(uint16_t bits, QuantScale scale) {
  return scale == QuantScale::bfloat ? bits_to_float(static_cast<uint32_t>(bits) << 16) : half_to_float(bits);
}

// Scale of input i of a group, and its offset.
float scale_of(const QuantFormat& format, const QuantType::Group& group, int i) {
  const float scale = value_of(group.scale, format.scale);
  switch (format.scale) {
    case QuantScale::six_bit:
      return scale * static_cast<float>(group.own[0]);
    case QuantScale::int8:
      return scale * static_cast<float>(static_cast<int8_t>(group.own[i / (kQuantGroup / 2)]));
    default:
      return scale;
  }
}
float offset_of(const QuantFormat& format, const QuantType::Group& group) {
  const float offset = value_of(group.offset, format.scale);
  return format.scale == QuantScale::six_bit ? offset * static_cast<float>(group.own[1]) : offset;
}

void weights_of(const QuantFormat& format, const QuantType::Group& group, float* out) {
  for (int i = 0; i < kQuantGroup; ++i) {
    out[i] = static_cast<float>(2 * group.codes[i] - format.twice_zero()) * 0.5F * scale_of(format, group, i);
    if (format.has_offset()) out[i] -= offset_of(format, group);
  }
}

// Where things of one output lie within a block of a group.
struct Place {
  int byte;   // of a row's four highest bits
  int shift;  // of the nibble there
  int pair;   // which of the eight vectors of 16 outputs, 0..7, ...
  int lane;   // ... and the place there
};
Place place_of(int output) {
  const int vector = output / 16, lane = output % 16;
  return {lane / 4 * 16 + vector / 2 * 4 + lane % 4, vector % 2 * 4, vector, lane};
}

// Bits below the four highest of one code: the byte within a block's rest of a row, and the shift.
struct RestPlace {
  int byte, shift;
};
RestPlace rest_place(int rest_bits, const Place& at) {
  const int together = 8 / rest_bits;  // codes in a byte
  return {at.pair / together * 16 + at.lane, at.pair % together * rest_bits};
}

}  // namespace

QuantType::QuantType(const std::string& name) {
  struct Known {
    const char* name;
    Blocks blocks;
    QuantFormat format;  // bits, zero, scale, offset, unit
    int block_bytes;
  };
  static constexpr Known kKnown[] = {
      {"q4_0", Blocks::q4_0, {4, 8, QuantScale::half, false, 1}, 18},
      {"q4_1", Blocks::q4_1, {4, 0, QuantScale::half, true, 1}, 20},
      {"q5_0", Blocks::q5_0, {5, 16, QuantScale::half, false, 1}, 22},
      {"q5_1", Blocks::q5_1, {5, 0, QuantScale::half, true, 1}, 24},
      {"q8_0", Blocks::q8_0, {8, 128, QuantScale::half, false, 1}, 34},
      {"q4_k", Blocks::q4_k, {4, 0, QuantScale::six_bit, false, kSpanGroups}, 144},
      {"q5_k", Blocks::q5_k, {5, 0, QuantScale::six_bit, false, kSpanGroups}, 176},
      {"q6_k", Blocks::q6_k, {6, 32, QuantScale::int8, false, kSpanGroups}, 210},
  };
  for (const Known& known : kKnown) {
    if (name != known.name) continue;
    blocks_ = known.blocks;
    format_ = known.format;
    block_ = kQuantGroup * format_.unit;
    block_bytes_ = known.block_bytes;
    return;
  }
  for (const int bits : {4, 8})
    for (const int group : {32, 64, 128})
      for (const bool bfloat : {false, true}) {
        if (name != "affine" + std::to_string(bits) + "-g" + std::to_string(group) + (bfloat ? "-bf16" : "")) continue;
        blocks_ = Blocks::affine;
        format_ = {bits, 0, bfloat ? QuantScale::bfloat : QuantScale::half, true, group / kQuantGroup};
        block_ = group;
        block_bytes_ = group * bits / 8;
        return;
      }
  throw std::invalid_argument("unknown quantised type '" + name + "'");
}

QuantSource QuantType::from_row(const QuantSource& source, int64_t in, int64_t row) const {
  const auto after = [row](auto* array, int64_t count) { return array == nullptr ? nullptr : array + row * count; };
  return {after(source.codes, row_bytes(in)),    after(source.scales, row_factors(in)),
          after(source.biases, row_factors(in)), after(source.upper, row_upper(in)),
          after(source.rest, row_rest(in)),      after(source.heads, row_heads(in))};
}

void QuantType::read(const QuantSource& source, int64_t in, int64_t row, int64_t g, Group* group) const {
  const int64_t block = row * (in / block_) + g / format_.unit, within = g % format_.unit;
  const bool planes = source.upper != nullptr;
  const uint8_t* p = planes ? nullptr : source.codes + block * block_bytes_;
  group->own[0] = group->own[1] = 1;
  if (is_affine()) {
    group->scale = source.scales[block];
    group->offset = negative(source.biases[block]);
  } else {
    read_head(planes ? source.heads + block * head_bytes() : p + (blocks_ == Blocks::q6_k ? 192 : 0), within, group);
  }
  if (!planes) return read_codes(p, within, group->codes);
  const uint8_t* upper = source.upper + row * row_upper(in) + g * kQuantGroup / 2;
  const uint8_t* rest = source.rest;
  if (rest != nullptr) rest += row * row_rest(in) + g * kQuantGroup * (format_.bits - 4) / 8;
  switch (format_.bits) {
    case 5:
      return join<1>(upper, rest, group->codes);
    case 6:
      return join<2>(upper, rest, group->codes);
    default:
      return join<4>(upper, rest, group->codes);
  }
}

void QuantType::read_head(const uint8_t* head, int64_t within, Group* group) const {
  group->scale = word(head);
  group->offset = 0;
  switch (blocks_) {
    case Blocks::q4_1:
    case Blocks::q5_1:
      group->offset = negative(word(head + 2));
      break;
    case Blocks::q4_k:
    case Blocks::q5_k:
      group->offset = word(head + 2);
      six_bit_pair(head + 4, within, group->own);
      break;
    case Blocks::q6_k:
      group->scale = word(head + 16);
      std::memcpy(group->own, head + 2 * within, 2);
      break;
    default:
      break;
  }
}

void QuantType::read_codes(const uint8_t* p, int64_t within, uint8_t* codes) const {
  switch (blocks_) {
    case Blocks::q4_0:
      nibbles(p + 2, codes);
      break;
    case Blocks::q4_1:
      nibbles(p + 4, codes);
      break;
    case Blocks::q5_0:
      nibbles_and_bits(p + 2, p + 6, codes);
      break;
    case Blocks::q5_1:
      nibbles_and_bits(p + 4, p + 8, codes);
      break;
    case Blocks::q8_0:
      for (int j = 0; j < kQuantGroup; ++j) codes[j] = p[2 + j] ^ 128;
      break;
    case Blocks::q4_k:
    case Blocks::q5_k: {
      const bool five = blocks_ == Blocks::q5_k;
      const uint8_t *bits = p + 16, *low = p + (five ? 48 : 16) + within / 2 * kQuantGroup;
      for (int j = 0; j < kQuantGroup; ++j) {
        codes[j] = within % 2 == 0 ? low[j] & 15 : low[j] >> 4;
        if (five) codes[j] = static_cast<uint8_t>(codes[j] | (bits[j] >> within & 1) << 4);
      }
      break;
    }
    case Blocks::q6_k: {
      const uint8_t *low = p + within / 4 * 64 + within % 2 * kQuantGroup, *high = p + 128 + within / 4 * kQuantGroup;
      for (int j = 0; j < kQuantGroup; ++j) {
        const int nibble = within % 4 < 2 ? low[j] & 15 : low[j] >> 4;
        codes[j] = static_cast<uint8_t>(nibble | (high[j] >> (within % 4 * 2) & 3) << 4);
      }
      break;
    }
    case Blocks::affine: {
      const uint8_t* first = p + within * kQuantGroup * format_.bits / 8;
      for (int j = 0; j < kQuantGroup; ++j)
        codes[j] = format_.bits == 8 ? first[j] : j % 2 == 0 ? first[j / 2] & 15 : first[j / 2] >> 4;
      break;
    }
  }
}

void dequantise_row(const QuantType& type, const QuantSource& source, int64_t in, int64_t row, float* out) {
  QuantType::Group group;
  for (int64_t g = 0; g < in / kQuantGroup; ++g) {
    type.read(source, in, row, g, &group);
    weights_of(type.format(), group, out + g * kQuantGroup);
  }
}

QuantMatrix::QuantMatrix(const std::string& type_name, int64_t outputs, int64_t inputs, int threads, bool upper)
    : type(type_name), out(outputs), in(inputs) {
  if (upper) type.hide_rest();
  if (!type.fits(in)) throw std::invalid_argument(type_name + " does not divide " + std::to_string(in) + " inputs");
  const int64_t least = (blocks() + kTileBlocks - 1) / kTileBlocks;
  tiles = static_cast<int>(std::min((least + threads - 1) / threads * threads, blocks()));
}

QuantTile QuantMatrix::tile(int t) const {
  const QuantFormat& format = type.format();
  return {data.data() + tile_start(t) * (groups() / format.unit * format.unit_bytes()), tile_width(t)};
}

std::string QuantMatrix::pack(const QuantSource& source, int64_t first, int64_t last) {
  const QuantFormat& format = type.format();
  const int rest_bits = format.rest_bits(), below = format.bits - 4;
  const int64_t block = first / kQuantBlock;
  int t = static_cast<int>(block * tiles / blocks());
  while (tile_start(t + 1) <= first) ++t;
  while (tile_start(t) > first) --t;
  const QuantTile to = tile(t);
  const int64_t within = first - tile_start(t);
  const int64_t group_bytes = format.group_bytes() * to.width, row_bytes = format.row_bytes(to.width);
  QuantType::Group group;
  for (int64_t g = 0; g < groups(); ++g) {
    auto* unit = const_cast<uint8_t*>(to.data) + g / format.unit * format.unit_bytes() * to.width;
    uint8_t* start = unit + format.unit_head() * to.width + g % format.unit * group_bytes;
    uint8_t* own = start + within * format.group_head();
    uint8_t* rows = start + format.group_head() * to.width + within / 2;
    uint8_t* rest = start + format.group_head() * to.width + to.width / 2 + within * rest_bits / 8;
    auto* head = reinterpret_cast<uint16_t*>(unit + within * format.unit_head());
    for (int o = 0; o < last - first; ++o) {
      type.read(source, in, o, g, &group);
      if (!finite(group.scale, format.scale) || !finite(group.offset, format.scale))
        return "holds a scale that is NaN or infinite";
      head[o] = group.scale;
      if (format.has_offset()) head[kQuantBlock + o] = group.offset;
      if (format.group_head() != 0) {
        own[o] = group.own[0];
        own[kQuantBlock + o] = group.own[1];
      }
      const Place at = place_of(o);
      for (int i = 0; i < kQuantGroup; ++i) {
        uint8_t& high = rows[i * row_bytes + at.byte];
        high = static_cast<uint8_t>(high | group.codes[i] >> below << at.shift);
        if (rest_bits == 0) continue;
        const RestPlace place = rest_place(rest_bits, at);
        uint8_t& low = rest[i * row_bytes + place.byte];
        low = static_cast<uint8_t>(low | (group.codes[i] & ((1 << rest_bits) - 1)) << place.shift);
      }
    }
  }
  return "";
}

void QuantMatrix::row(int64_t output, float* weights) const {
  const QuantFormat& format = type.format();
  const int rest_bits = format.rest_bits();
  int t = static_cast<int>(output / kQuantBlock * tiles / blocks());
  while (tile_start(t + 1) <= output) ++t;
  const QuantTile from = tile(t);
  const int64_t first = (output - tile_start(t)) / kQuantBlock * kQuantBlock;
  const auto o = static_cast<int>((output - tile_start(t)) % kQuantBlock);
  const int64_t group_bytes = format.group_bytes() * from.width, row_bytes = format.row_bytes(from.width);
  const Place at = place_of(o);
  for (int64_t g = 0; g < groups(); ++g) {
    const uint8_t* unit = from.data + g / format.unit * format.unit_bytes() * from.width;
    const uint8_t* start = unit + format.unit_head() * from.width + g % format.unit * group_bytes;
    const uint8_t* own = start + first * format.group_head();
    const uint8_t* rows = start + format.group_head() * from.width + first / 2;
    const uint8_t* rest = start + format.group_head() * from.width + from.width / 2 + first * rest_bits / 8;
    const auto* head = reinterpret_cast<const uint16_t*>(unit + first * format.unit_head());
    QuantType::Group group{};
    group.scale = head[o];
    if (format.has_offset()) group.offset = head[kQuantBlock + o];
    if (format.group_head() != 0) {
      group.own[0] = own[o];
      group.own[1] = own[kQuantBlock + o];
    }
    for (int i = 0; i < kQuantGroup; ++i) {
      int code = rows[i * row_bytes + at.byte] >> at.shift & 15;
      if (rest_bits != 0) {
        const RestPlace low = rest_place(rest_bits, at);
        code = code << rest_bits | (rest[i * row_bytes + low.byte] >> low.shift & ((1 << rest_bits) - 1));
      }
      group.codes[i] = static_cast<uint8_t>(code << format.hidden);
    }
    weights_of(format, group, weights + g * kQuantGroup);
  }
}

}  // namespace specdec
