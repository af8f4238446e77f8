// Keys and values of one sequence, in float16 or float32, laid out for the attention kernels, in blocks of kChunk positions.
//
// Memory grows with the sequence. Caches that share a beginning share its blocks: a block of several caches is copied
// before either of them writes to it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernel_table.h"

namespace specdec {

// How the layers of a model lie in a block.
class CacheShape {
 public:
  struct Layer {
    int64_t kv_heads, head_dim;
    int64_t value_stride = 0;  // head_dim rounded up to kPanel
    int64_t first = 0;         // byte of a block at which its keys begin
    int64_t head_bytes = 0;    // of one head
  };

  // `single` keeps float32.
  CacheShape(std::vector<Layer> layers, bool single);
  const std::vector<Layer>& layers() const { return layers_; }
  const Layer& layer(int number) const { return layers_[static_cast<size_t>(number)]; }
  bool single() const { return value_bytes_ == 4; }
  int64_t value_bytes() const { return value_bytes_; }
  int64_t block_bytes() const { return block_bytes_; }
  bool operator==(const CacheShape& other) const;

  // Of a head whose keys begin at `keys`: where its values begin, and the value that holds dimension d of a key.
  uint8_t* values_of(const Layer& layer, uint8_t* keys) const { return keys + kChunk * layer.head_dim * value_bytes_; }
  static int64_t key_at(const Layer& layer, int64_t place, int64_t d) {
    return (place / kPanel * layer.head_dim + d) * kPanel + place % kPanel;
  }
  // Copies the key and the value at `in` of one head and chunk to `out` of another.
  void copy_place(const Layer& layer, const uint8_t* from, int64_t in, uint8_t* to, int64_t out) const;

 private:
  std::vector<Layer> layers_;
  int64_t value_bytes_, block_bytes_ = 0;
};

class KvCache {
 public:
  // `capacity` bounds the length; nothing is allocated yet.
  KvCache(std::shared_ptr<const CacheShape> shape, int64_t capacity);

  // Of one layer, head and chunk: keys [kChunk / 32][head_dim][32] and values [kChunk][value_stride].
  uint8_t* keys(int layer, int64_t head, int64_t chunk) const { return keys(shape_->layer(layer), head, chunk); }

  // Makes the positions from the length up to `length` writable. Throws std::bad_alloc, with the contents as they were.
  void reserve(int64_t length);
  // Counts the first positions as held, once they are written.
  void set_length(int64_t length) { length_ = length; }
  // Keeps the first `length` positions, and memory for one block more.
  void trim(int64_t length);
  // Keeps the first `base` positions and then, of those after them, `rows`, which ascend.
  void keep(int64_t base, const std::vector<int64_t>& rows);
  // Another cache that begins with the first `length` positions.
  std::unique_ptr<KvCache> fork(int64_t length, int64_t capacity) const;

  int64_t length() const { return length_; }
  const CacheShape& shape() const { return *shape_; }
  uint64_t block_bytes() const { return static_cast<uint64_t>(shape_->block_bytes()); }
  uint64_t bytes() const { return blocks_.size() * block_bytes(); }
  // A number for each block held, equal for blocks that caches share.
  std::vector<uint64_t> block_ids() const;

  const int64_t capacity;

 private:
  using Block = Buffer<uint8_t>;
  uint8_t* keys(const CacheShape::Layer& layer, int64_t head, int64_t chunk) const {
    return blocks_[static_cast<size_t>(chunk)]->data() + layer.first + head * layer.head_bytes;
  }
  std::shared_ptr<Block> new_block() const;
  // A block of its own with the first `count` positions of another one.
  std::shared_ptr<Block> copy_of(const Block& block, int64_t count) const;
  void own(size_t block);
  void move(int64_t from, int64_t to);

  std::shared_ptr<const CacheShape> shape_;
  int64_t length_ = 0;
  std::vector<std::shared_ptr<Block>> blocks_;
};

}  // namespace specdec
