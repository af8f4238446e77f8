#include "packed.h"

#include <algorithm>
#include <cstring>

namespace specdec {
namespace {

constexpr int kMaxBucket = 64;
// Buckets walked for a block of inputs before the next ones, so that what is written stays in cache.
constexpr int64_t kBucketBlock = 32;

uint64_t mask_bits(const uint8_t* bytes, int count) {
  uint64_t bits = 0;
  for (int j = 0; j < count; ++j) bits |= static_cast<uint64_t>(bytes[j]) << (8 * j);
  return bits;
}

// One bucket in order of output. Returns false when the tiers do not share its outputs out as their sizes say.
bool expand_bucket(const BucketSource& source, const Layout& layout, int64_t bucket, uint16_t* out) {
  const int tiers = layout.tiers(), mask_bytes = layout.bucket_size / 8;
  uint64_t rest = layout.bucket_size == 64 ? ~uint64_t{0} : (uint64_t{1} << layout.bucket_size) - 1;
  for (int k = 0; k < tiers; ++k) {
    const auto index = static_cast<size_t>(k);
    uint64_t held = k < tiers - 1 ? mask_bits(source.masks[index] + bucket * mask_bytes, mask_bytes) : rest;
    const int size = layout.tier_sizes[index];
    if ((held & ~rest) != 0) return false;
    rest &= ~held;
    const uint16_t* values = source.values[index] + bucket * size;
    for (int j = 0; j < size; ++j, held &= held - 1) {
      if (held == 0) return false;
      out[__builtin_ctzll(held)] = values[j];
    }
    if (held != 0) return false;
  }
  return true;
}

// Bits of the exponent, all set in an infinite number or NaN.
uint16_t exponent_of(Dtype dtype) { return dtype == Dtype::float16 ? 0x7C00 : 0x7F80; }

bool finite(const uint16_t* bits, int count, uint16_t exponent) {
  bool good = true;
  for (int j = 0; j < count; ++j) good &= (bits[j] & exponent) != exponent;
  return good;
}

void place_bucket(PackedMatrix& matrix, const uint16_t* bits, int bucket_size, int64_t bucket, int64_t input) {
  for (int j = 0; j < bucket_size;) {
    const int64_t output = bucket * bucket_size + j, panel = output / kPanel, lane = output % kPanel;
    if (panel >= matrix.panel_count()) return;  // padding of the store beyond the last panel
    const int count = static_cast<int>(std::min<int64_t>(bucket_size - j, kPanel - lane));
    uint16_t* to = matrix.panels.data() + (panel * matrix.in + input) * kPanel + lane;
    std::memcpy(to, bits + j, static_cast<size_t>(count) * sizeof *bits);
    j += count;
  }
}

}  // namespace

std::string pack_values(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t first,
                        int64_t last) {
  const int size = layout.bucket_size;
  const int64_t buckets = (matrix.out + size - 1) / size;
  const uint16_t exponent = exponent_of(matrix.dtype);
  for (int64_t block = 0; block < buckets; block += kBucketBlock) {
    const int64_t end = std::min(block + kBucketBlock, buckets);
    for (int64_t input = first; input < last; ++input) {
      for (int64_t bucket = block; bucket < end; ++bucket) {
        uint16_t bits[kMaxBucket];
        if (!expand_bucket(source, layout, input * buckets + bucket, bits))
          return "has tier masks that contradict its layout";
        if (!finite(bits, size, exponent)) return "holds an infinite weight or a NaN";
        place_bucket(matrix, bits, size, bucket, input);
      }
    }
  }
  return "";
}

void pack_masks(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t first, int64_t last) {
  const int size = layout.bucket_size, tiers = layout.tiers(), mask_bytes = size / 8;
  const int64_t buckets = (matrix.out + size - 1) / size, panels = matrix.panel_count();
  const int64_t words = mask_words(matrix.in, tiers);
  for (int64_t panel = 0; first == 0 && panel < panels; ++panel)
    matrix.masks[static_cast<size_t>(panel * words + mask_offset(0, tiers, tiers))] = ~0U;
  for (int64_t input = first; input < last; ++input) {
    for (int k = 0; k < tiers; ++k)
      matrix.scores[static_cast<size_t>(k * matrix.in + input)] = source.scores[input * tiers + k];
    for (int64_t bucket = 0; bucket < buckets; ++bucket) {
      uint64_t held = 0;
      for (int k = 0; k < tiers - 1; ++k) {
        held |= mask_bits(source.masks[static_cast<size_t>(k)] + (input * buckets + bucket) * mask_bytes, mask_bytes);
        for (int j = 0; j < size; j += 8) {
          const int64_t output = bucket * size + j, panel = output / kPanel;
          if (panel >= panels) break;
          matrix.masks[static_cast<size_t>(panel * words + mask_offset(input, k + 1, tiers))] |=
              static_cast<uint32_t>(held >> j & 0xFF) << (output % kPanel);
        }
      }
    }
  }
}

}  // namespace specdec
