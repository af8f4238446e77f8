// Codes in planes (upper bits, rest, heads of blocks), as stores hold them, pack as whole blocks do.
#include <algorithm>

#include "check.h"
#include "quant_blocks.h"

namespace specdec::test {
namespace {

// Random blocks with their codes in planes.
struct Planes {
  std::vector<uint8_t> upper, rest, heads;
  explicit Planes(const Blocks& blocks) {
    const int rest_bits = blocks.type.format().bits - 4;
    upper.resize(static_cast<size_t>(blocks.out * blocks.in / 2));
    rest.resize(static_cast<size_t>(blocks.out * blocks.in * rest_bits / 8));
    QuantType::Group group;
    for (int64_t n = 0; n < blocks.out * blocks.in; ++n) {
      blocks.type.read(blocks.source(), blocks.in, n / blocks.in, n % blocks.in / kQuantGroup, &group);
      const int code = group.codes[n % kQuantGroup];
      uint8_t& high = upper[static_cast<size_t>(n / 2)];
      high = static_cast<uint8_t>(high | code >> rest_bits << (n % 2 * 4));
      uint8_t& low = rest[static_cast<size_t>(n * rest_bits / 8)];
      low = static_cast<uint8_t>(low | (code & ((1 << rest_bits) - 1)) << (n * rest_bits % 8));
    }
    if (!blocks.scales.empty()) return;
    const int64_t unit = kQuantGroup * blocks.type.format().unit;
    const int64_t head = blocks.block_bytes() - unit * (rest_bits + 4) / 8;
    const int64_t first = head == 18 ? 192 : 0;  // q6_k has its codes first
    for (auto at = blocks.codes.begin(); at != blocks.codes.end(); at += blocks.block_bytes())
      heads.insert(heads.end(), at + first, at + first + head);
  }
  QuantSource source(const Blocks& blocks, bool whole = true) const {
    QuantSource planes = blocks.source();
    planes.codes = nullptr;
    planes.upper = upper.data();
    planes.rest = whole ? rest.data() : nullptr;
    planes.heads = heads.data();
    return planes;
  }
};

// A whole matrix, packed a block of outputs at a time.
std::vector<uint8_t> packed(const Blocks& blocks, const std::string& type, const QuantSource& source, bool upper) {
  QuantMatrix matrix(type, blocks.out, blocks.in, 2, upper);
  matrix.data = Buffer<uint8_t>(matrix.bytes());
  for (int64_t first = 0; first < blocks.out; first += kQuantBlock) {
    const int64_t last = std::min(first + kQuantBlock, blocks.out);
    CHECK(matrix.pack(matrix.type.from_row(source, blocks.in, first), first, last).empty(), type);
  }
  return {matrix.data.data(), matrix.data.data() + matrix.bytes()};
}

}  // namespace

TEST(codes_in_planes_pack_as_those_in_blocks) {
  for (const auto& type : kTypes)
    for (const Size size : sizes_for(type)) {
      const Blocks blocks(type, size.out, size.in, 4);
      if (blocks.type.format().bits == 4) continue;
      const Planes planes(blocks);
      const std::string where = type + " " + std::to_string(size.out) + "x" + std::to_string(size.in);
      CHECK(packed(blocks, type, planes.source(blocks), false) == packed(blocks, type, blocks.source(), false), where);
      const auto upper = packed(blocks, type, blocks.source(), true);
      CHECK(packed(blocks, type, planes.source(blocks, false), true) == upper, where + " without the rest");
    }
}

}  // namespace specdec::test
