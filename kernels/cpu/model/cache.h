// Keys and values of one sequence, float16, laid out for the attention kernels.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "kernel_table.h"

namespace specdec {

class KvCache {
 public:
  KvCache(int layers, int kv_heads, int head_dim, int64_t capacity)
      : layers(layers),
        kv_heads(kv_heads),
        head_dim(head_dim),
        value_stride((head_dim + kPanel - 1) / kPanel * kPanel),
        capacity(capacity),
        room_((capacity + kChunk - 1) / kChunk * kChunk),
        // No huge pages: every (layer, head) has its own range, and a short text touches only the start of each.
        keys_(static_cast<size_t>(layers * kv_heads * room_ * head_dim), Pages::small),
        values_(static_cast<size_t>(layers * kv_heads * room_ * value_stride), Pages::small) {}

  // [position / 32][head_dim][32]
  uint16_t* keys(int layer, int head) { return keys_.data() + (layer * kv_heads + head) * room_ * head_dim; }
  // [position][value_stride]
  uint16_t* values(int layer, int head) { return values_.data() + (layer * kv_heads + head) * room_ * value_stride; }

  uint64_t bytes() const { return keys_.bytes() + values_.bytes(); }

  const int64_t layers, kv_heads, head_dim, value_stride, capacity;
  int64_t length = 0;

 private:
  int64_t room_;
  Buffer<uint16_t> keys_, values_;
};

}  // namespace specdec
