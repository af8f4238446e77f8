// The yardstick of the benchmarks: how fast this machine's threads read memory when they do nothing else.
#pragma once

#include <cstddef>

#include "pool.h"

namespace specdec {

// Seconds that the pool takes to read `bytes` of memory (allocated once, then reused) from front to back, once.
double seconds_to_read(Pool& pool, size_t bytes);

}  // namespace specdec
