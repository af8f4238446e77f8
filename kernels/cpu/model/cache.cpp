#include "cache.h"

#include <algorithm>
#include <cstring>

namespace specdec {
namespace {

size_t blocks_for(int64_t length) { return static_cast<size_t>((length + kChunk - 1) / kChunk); }

}  // namespace

CacheShape::CacheShape(std::vector<Layer> layers, bool single)
    : layers_(std::move(layers)), value_bytes_(single ? sizeof(float) : sizeof(uint16_t)) {
  for (Layer& layer : layers_) {
    layer.value_stride = (layer.head_dim + kPanel - 1) / kPanel * kPanel;
    layer.head_bytes = kChunk * (layer.head_dim + layer.value_stride) * value_bytes_;
    layer.first = block_bytes_;
    block_bytes_ += layer.kv_heads * layer.head_bytes;
  }
}

bool CacheShape::operator==(const CacheShape& other) const {
  return value_bytes_ == other.value_bytes_ &&
         std::equal(layers_.begin(), layers_.end(), other.layers_.begin(), other.layers_.end(),
                    [](const Layer& a, const Layer& b) { return a.kv_heads == b.kv_heads && a.head_dim == b.head_dim; });
}

void CacheShape::copy_place(const Layer& layer, const uint8_t* from, int64_t in, uint8_t* to, int64_t out) const {
  auto copy_key = [&](auto* target, const auto* source) {
    for (int64_t d = 0; d < layer.head_dim; ++d) target[key_at(layer, out, d)] = source[key_at(layer, in, d)];
  };
  if (single())
    copy_key(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from));
  else
    copy_key(reinterpret_cast<uint16_t*>(to), reinterpret_cast<const uint16_t*>(from));
  const int64_t values = kChunk * layer.head_dim, stride = layer.value_stride;
  std::memcpy(to + (values + out * stride) * value_bytes_, from + (values + in * stride) * value_bytes_,
              static_cast<size_t>(stride * value_bytes_));
}

KvCache::KvCache(std::shared_ptr<const CacheShape> shape, int64_t capacity)
    : capacity(capacity), shape_(std::move(shape)) {}

std::vector<uint64_t> KvCache::block_ids() const {
  std::vector<uint64_t> ids;
  for (const auto& block : blocks_) ids.push_back(reinterpret_cast<uintptr_t>(block.get()));
  return ids;
}

// No huge pages: every layer and head has its own range, and a short text touches only the start of each.
std::shared_ptr<KvCache::Block> KvCache::new_block() const {
  return std::make_shared<Block>(static_cast<size_t>(shape_->block_bytes()), Pages::small);
}

std::shared_ptr<KvCache::Block> KvCache::copy_of(const Block& block, int64_t count) const {
  auto copy = new_block();
  const int64_t panels = (count + kPanel - 1) / kPanel, size = shape_->value_bytes();
  for (const CacheShape::Layer& layer : shape_->layers())
    for (int64_t head = 0; head < layer.kv_heads; ++head) {
      const uint8_t* from = block.data() + layer.first + head * layer.head_bytes;
      uint8_t* to = copy->data() + layer.first + head * layer.head_bytes;
      std::copy_n(from, panels * kPanel * layer.head_dim * size, to);
      std::copy_n(from + kChunk * layer.head_dim * size, count * layer.value_stride * size,
                  to + kChunk * layer.head_dim * size);
    }
  return copy;
}

// Only this cache's owner adds owners to its blocks, so a count of 1 cannot rise meanwhile.
void KvCache::own(size_t block) {
  std::shared_ptr<Block>& held = blocks_[block];
  if (held.use_count() == 1) return;
  const int64_t count = length_ - static_cast<int64_t>(block) * kChunk;
  held = count <= 0 ? new_block() : copy_of(*held, std::min<int64_t>(count, kChunk));
}

void KvCache::reserve(int64_t length) {
  const size_t needed = blocks_for(length);
  for (auto block = static_cast<size_t>(length_ / kChunk); block < std::min(needed, blocks_.size()); ++block) own(block);
  while (blocks_.size() < needed) blocks_.push_back(new_block());
}

void KvCache::trim(int64_t length) {
  length_ = length;
  if (blocks_.size() > blocks_for(length) + 1) blocks_.resize(blocks_for(length) + 1);
}

void KvCache::keep(int64_t base, const std::vector<int64_t>& rows) {
  size_t first = 0;  // rows before it stay where they are
  while (first < rows.size() && rows[first] == static_cast<int64_t>(first)) ++first;
  const int64_t length = base + static_cast<int64_t>(rows.size());
  if (first < rows.size())
    for (auto block = static_cast<size_t>((base + static_cast<int64_t>(first)) / kChunk); block < blocks_for(length); ++block)
      own(block);
  for (size_t j = first; j < rows.size(); ++j) move(base + rows[j], base + static_cast<int64_t>(j));
  trim(length);
}

void KvCache::move(int64_t from, int64_t to) {
  for (const CacheShape::Layer& layer : shape_->layers())
    for (int64_t head = 0; head < layer.kv_heads; ++head)
      shape_->copy_place(layer, keys(layer, head, from / kChunk), from % kChunk, keys(layer, head, to / kChunk),
                         to % kChunk);
}

std::unique_ptr<KvCache> KvCache::fork(int64_t length, int64_t capacity) const {
  auto copy = std::make_unique<KvCache>(shape_, capacity);
  const auto whole = static_cast<size_t>(length / kChunk);
  copy->blocks_.assign(blocks_.begin(), blocks_.begin() + static_cast<int64_t>(whole));
  if (length % kChunk != 0) copy->blocks_.push_back(copy_of(*blocks_[whole], length % kChunk));
  copy->length_ = length;
  return copy;
}

}  // namespace specdec
