// Places memory near the threads that use it, on machines with several memories (NUMA).
#pragma once

#include <cstdint>

#include "pool.h"

namespace specdec {

// Writes a zero into every page of new memory, each thread into its share, in order. A page belongs to the memory of the
// processor that first writes to it, and threads begin with the same shares of a matrix when they multiply it.
inline void touch_shares(Pool& pool, void* data, uint64_t bytes) {
  constexpr uint64_t kPage = 4096, kWorthSharing = uint64_t{1} << 20;
  if (bytes < kWorthSharing || pool.threads() == 1) return;
  const auto shares = static_cast<uint64_t>(pool.threads());
  pool.run(pool.threads(), [&](int part, int) {
    const uint64_t first = bytes * static_cast<uint64_t>(part) / shares, last = bytes * (static_cast<uint64_t>(part) + 1) / shares;
    for (uint64_t at = first; at < last; at += kPage) static_cast<volatile uint8_t*>(data)[at] = 0;
  });
}

}  // namespace specdec
