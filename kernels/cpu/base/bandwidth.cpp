#include "bandwidth.h"

#include <atomic>
#include <chrono>
#include <cstdint>

#include "buffer.h"

namespace specdec {
namespace {

constexpr size_t kPart = size_t{1} << 20;

uint64_t sum_part(const uint64_t* words, size_t count) {
  uint64_t sums[16] = {};
  for (size_t i = 0; i + 16 <= count; i += 16)
    for (size_t j = 0; j < 16; ++j) sums[j] += words[i + j];
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

}  // namespace

double seconds_to_read(Pool& pool, size_t bytes) {
  static Buffer<uint64_t> memory;
  const size_t count = bytes / sizeof(uint64_t);
  if (memory.size() < count) {
    memory.reserve(count);
    for (size_t i = 0; i < memory.size(); i += 8) memory[i] = i;
  }
  std::atomic<uint64_t> total{0};  // or the reads would be for nothing and go
  const size_t words = kPart / sizeof(uint64_t);
  const auto start = std::chrono::steady_clock::now();
  pool.run(static_cast<int>(count / words),
           [&](int part, int) { total += sum_part(memory.data() + static_cast<size_t>(part) * words, words); });
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  return total.load() == 0 ? 0 : taken.count();
}

}  // namespace specdec
