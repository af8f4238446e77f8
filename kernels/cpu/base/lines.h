// Lines of memory that other threads have just written, asked for together: they arrive in the time of one, where reading
// them in order waits for one after the other.
#pragma once

#include <cstddef>

namespace specdec {

inline void ask_for(const void* data, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(data) + at);
}

}  // namespace specdec
