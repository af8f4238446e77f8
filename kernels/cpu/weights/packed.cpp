#include "packed.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "half.h"

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

// One bucket in order of output, with zeros for tiers that are not loaded; and the outputs of those that are, a bit each.
// Returns false when the tiers do not share its outputs out as their sizes say.
bool expand_bucket(const BucketSource& source, const Layout& layout, int loaded, int64_t bucket, uint16_t* out,
                   uint64_t* outputs) {
  const int tiers = layout.tiers(), mask_bytes = layout.bucket_size / 8;
  const uint64_t all = layout.bucket_size == 64 ? ~uint64_t{0} : (uint64_t{1} << layout.bucket_size) - 1;
  uint64_t rest = all;
  if (loaded < tiers) std::memset(out, 0, static_cast<size_t>(layout.bucket_size) * sizeof *out);
  for (int k = 0; k < loaded; ++k) {
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
  *outputs = all & ~rest;
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

// One bucket's weights, read and checked. Returns nullptr or what is wrong.
const char* read_bucket(const PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t bucket,
                        uint16_t* bits, uint64_t* outputs) {
  if (!expand_bucket(source, layout, matrix.loaded_tiers, bucket, bits, outputs))
    return "has tier masks that contradict its layout";
  if (!finite(bits, layout.bucket_size, exponent_of(matrix.dtype))) return "holds an infinite weight or a NaN";
  return nullptr;
}

// float16 values as bfloat16, in place. Returns false where one is not a bfloat16 value.
bool half_to_bfloat(uint16_t* bits, size_t count) {
  for (size_t j = 0; j < count; ++j) {
    const uint32_t value = float_to_bits(half_to_float(bits[j]));
    if ((value & 0xFFFF) != 0) return false;
    bits[j] = static_cast<uint16_t>(value >> 16);
  }
  return true;
}
void bfloat_to_half(uint16_t* bits, int64_t count) {
  for (int64_t j = 0; j < count; ++j) bits[j] = float_to_half(bits_to_float(static_cast<uint32_t>(bits[j]) << 16));
}

// The same in a line that holds the weights of some outputs; buckets divide panels.
void place_in_thin_line(PackedMatrix& matrix, const uint16_t* bits, uint64_t outputs, int bucket_size, int64_t bucket,
                        int64_t input) {
  const int64_t buckets = kPanel / bucket_size, in_panel = bucket % buckets;
  uint16_t* line = matrix.panels.data() + (bucket / buckets * matrix.in + input) * matrix.line();
  uint32_t held;
  std::memcpy(&held, line, sizeof held);
  held |= static_cast<uint32_t>(outputs) << (in_panel * bucket_size);
  std::memcpy(line, &held, sizeof held);
  uint16_t* to = line + 2 + in_panel * (matrix.kept / buckets);
  for (; outputs != 0; outputs &= outputs - 1) *to++ = bits[__builtin_ctzll(outputs)];
}

}  // namespace

void PackedMatrix::keep_tiers(int count, const Layout& layout) {
  loaded_tiers = count;
  if (count == tiers || kPanel % layout.bucket_size != 0) return;
  kept = 0;
  for (int k = 0; k < count; ++k) kept += kPanel / layout.bucket_size * layout.tier_sizes[static_cast<size_t>(k)];
}

const uint16_t* PackedMatrix::whole_lines(int64_t panel, int64_t first, int64_t count, uint16_t* buffer) const {
  if (is_coded()) {
    coded.decode(panel, first, count, buffer);
    if (dtype == Dtype::float16) bfloat_to_half(buffer, count * kPanel);
    return buffer;
  }
  if (kept == kPanel && (wide == 1 || count == 1)) {
    const int64_t tile = panel / wide * wide, width = std::min<int64_t>(wide, panel_count() - tile);
    return panels.data() + (tile * in + first * width + panel - tile) * kPanel;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t* to = buffer + i * kPanel;
    if (kept == kPanel) {
      std::memcpy(to, whole_line(panel, first + i, to), kPanel * sizeof *to);
      continue;
    }
    const uint16_t* at = panels.data() + (panel * in + first + i) * line();
    uint32_t outputs;
    std::memcpy(&outputs, at, sizeof outputs);
    at += 2;
    for (int lane = 0; lane < kPanel; ++lane, outputs >>= 1) to[lane] = (outputs & 1) != 0 ? *at++ : uint16_t{0};
  }
  return buffer;
}

const uint16_t* PackedMatrix::whole_line(int64_t panel, int64_t input, uint16_t* buffer) const {
  return whole_lines(panel, input, 1, buffer);
}

void PackedMatrix::row(int64_t output, uint16_t* bits) const {
  if (is_coded()) {
    coded.row(output, bits);
    if (dtype == Dtype::float16) bfloat_to_half(bits, in);
    return;
  }
  uint16_t line[kPanel];
  for (int64_t i = 0; i < in; ++i) bits[i] = whole_line(output / kPanel, i, line)[output % kPanel];
}

void PackedMatrix::decode(int64_t first, int64_t last) {
  for (; first < last; ++first) whole_lines(first, 0, in, panels.data() + first * in * kPanel);
}

DenseCall PackedMatrix::dense_call(const float* x, RowTiles rows, float* y, int64_t y_stride, float* scratch) const {
  DenseCall call{panels.data(), dtype, in, out, x, rows, y, y_stride, scratch, kept, wide};
  if (is_coded()) call.coded = coded.lines();
  call.asks_alone = asks_alone();
  return call;
}

void PackedMatrix::widen(int tile, int64_t first, int64_t last) {
  std::vector<uint16_t> lines;
  for (; first < last; ++first) {
    const int64_t begin = first * tile, width = std::min<int64_t>(tile, panel_count() - begin);
    uint16_t* at = panels.data() + begin * in * kPanel;
    lines.assign(at, at + width * in * kPanel);
    for (int64_t input = 0; input < in; ++input)
      for (int64_t panel = 0; panel < width; ++panel)
        std::memcpy(at + (input * width + panel) * kPanel, lines.data() + (panel * in + input) * kPanel, kPanel * 2);
  }
}

std::string pack_values(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, int64_t first,
                        int64_t last) {
  const int size = layout.bucket_size;
  const int64_t buckets = (matrix.out + size - 1) / size;
  for (int64_t block = 0; block < buckets; block += kBucketBlock) {
    const int64_t end = std::min(block + kBucketBlock, buckets);
    for (int64_t input = first; input < last; ++input) {
      for (int64_t bucket = block; bucket < end; ++bucket) {
        uint16_t bits[kMaxBucket];
        uint64_t outputs;
        if (const char* wrong = read_bucket(matrix, source, layout, input * buckets + bucket, bits, &outputs)) return wrong;
        if (matrix.kept == kPanel)
          place_bucket(matrix, bits, size, bucket, input);
        else
          place_in_thin_line(matrix, bits, outputs, size, bucket, input);
      }
    }
  }
  return "";
}

bool may_be_coded(const PackedMatrix& matrix, const BucketSource& source) {
  uint16_t bits[256];
  const auto count = static_cast<size_t>(std::min<int64_t>(matrix.in, 256));  // of an input at least one is stored
  std::copy_n(source.values[0], count, bits);
  return matrix.dtype == Dtype::bfloat16 || half_to_bfloat(bits, count);
}

std::string encode_values(PackedMatrix& matrix, const BucketSource& source, const Layout& layout, CodedBlock block,
                          bool& fits) {
  const int64_t size = layout.bucket_size, buckets = (matrix.out + size - 1) / size, inputs = block.last - block.first;
  const int64_t from = block.begin * kPanel, to = std::min(block.end * kPanel, matrix.out);
  thread_local std::vector<uint16_t> lines;
  lines.assign(static_cast<size_t>((block.end - block.begin) * inputs * kPanel), 0);
  for (int64_t i = 0; i < inputs; ++i)
    for (int64_t bucket = from / size; bucket * size < to; ++bucket) {
      uint16_t bits[kMaxBucket];
      uint64_t outputs;
      if (const char* wrong = read_bucket(matrix, source, layout, (block.first + i) * buckets + bucket, bits, &outputs))
        return wrong;
      const int64_t first = std::max(bucket * size, from), last = std::min((bucket + 1) * size, block.end * kPanel);
      for (int64_t output = first, next; output < last; output = next) {
        next = std::min((output / kPanel + 1) * kPanel, last);
        uint16_t* line = lines.data() + ((output / kPanel - block.begin) * inputs + i) * kPanel;
        const auto count = static_cast<size_t>(next - output);
        std::memcpy(line + output % kPanel, bits + (output - bucket * size), count * sizeof *bits);
      }
    }
  if (matrix.dtype == Dtype::float16 && !half_to_bfloat(lines.data(), lines.size())) {
    fits = false;
    return "";
  }
  for (int64_t panel = block.begin; panel < block.end; ++panel)
    matrix.coded.encode(panel, block.first, inputs, lines.data() + (panel - block.begin) * inputs * kPanel);
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
