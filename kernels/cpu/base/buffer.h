// An aligned array without constructors or copies; large ones ask for huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace specdec {

enum class Pages { huge, small };

template <class T>
class Buffer {
 public:
  Buffer() = default;
  // `count` zeros, 64-byte aligned. Zeros cost nothing until touched when the buffer is large.
  explicit Buffer(size_t count, Pages pages = Pages::huge) { allocate(count, pages); }
  ~Buffer() { release(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Part of another buffer, which must live as long.
  static Buffer part(T* data, size_t count) {
    Buffer buffer;
    buffer.data_ = data;
    buffer.count_ = count;
    return buffer;
  }

  // Gives memory back where the system can; what was in it is lost, and its whole pages are zeros.
  void discard() {
#if defined(__linux__)
    constexpr uintptr_t kPage = 4096;
    const auto from = (reinterpret_cast<uintptr_t>(data_) + kPage - 1) / kPage * kPage;
    const auto to = reinterpret_cast<uintptr_t>(data_ + count_) / kPage * kPage;
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
#endif
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  size_t bytes() const { return count_ * sizeof(T); }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

  // At least `count` elements; contents are lost (and zero) when it has to grow.
  void reserve(size_t count) {
    if (count <= count_) return;
    release();
    allocate(count, Pages::huge);
  }

 private:
  static constexpr size_t kHuge = size_t{2} << 20;
  static constexpr size_t kPlain = size_t{64} << 10;  // from here on small pages are mapped, and so cost nothing yet

  void allocate(size_t count, Pages pages) {
    if (count == 0) return;
    // Room past the end lets kernels load whole vectors.
    size_t bytes = count * sizeof(T) + 256;
    (void)pages;
#if defined(__linux__)
    if (pages == Pages::small && bytes >= kPlain) {
      void* room = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (room == MAP_FAILED) throw std::bad_alloc();
      base_ = room;
      mapped_ = bytes;
      data_ = static_cast<T*>(room);
      count_ = count;
      return;
    }
    if (bytes >= kHuge) {
      bytes = (bytes + kHuge - 1) / kHuge * kHuge;
      void* room = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (room == MAP_FAILED) throw std::bad_alloc();
      base_ = room;
      mapped_ = bytes + kHuge;
      const auto address = (reinterpret_cast<uintptr_t>(room) + kHuge - 1) / kHuge * kHuge;
      data_ = reinterpret_cast<T*>(address);
      madvise(data_, bytes, MADV_HUGEPAGE);
      count_ = count;
      return;
    }
#endif
    bytes = (bytes + 63) / 64 * 64;
    base_ = std::aligned_alloc(64, bytes);
    if (base_ == nullptr) throw std::bad_alloc();
    std::memset(base_, 0, bytes);
    data_ = static_cast<T*>(base_);
    count_ = count;
  }

  void release() {
#if defined(__linux__)
    if (mapped_ != 0)
      munmap(base_, mapped_);
    else
#endif
      std::free(base_);
    data_ = nullptr;
    base_ = nullptr;
    count_ = mapped_ = 0;
  }

  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(base_, other.base_);
    std::swap(count_, other.count_);
    std::swap(mapped_, other.mapped_);
  }

  T* data_ = nullptr;
  void* base_ = nullptr;
  size_t count_ = 0, mapped_ = 0;
};

}  // namespace specdec
